"""The leader's memory of mutating calls: each is executed once, and its repetitions get the first answer.

A call is known by (client, lane, number). Clients say below which number everything is settled: those answers are
dropped, and a copy that comes later is refused instead of executed. Everything is bounded: calls of a lane, lanes,
calls under way, and the bytes of all answers, of which the oldest are then forgotten (but not that they were given).
When there are too many lanes, the peer that has most of them loses the one it used longest ago: it takes a flood of
clients to come so far, and they must not keep agents out. What agents themselves use stays (:meth:`AnswerMemory.ask`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from metadata.rpc.wire import SHARED_LANE, Head, Outcome
from runtime.clock import Clock
from runtime.shares import FairShare, Places
from runtime.tasks import Supervisor

LANE_CALLS_MAX = 10_000
"""Calls of one lane that are not settled; the first of them, which the others wait for, is always taken."""
LANES_MAX = 50_000
"""Clients, and parked calls of clients."""
LANE_IDLE_SECONDS = 900.0
"""A lane without calls for so long is forgotten: no copy of a call is delayed that much."""
UNDER_WAY_MAX = 30_000
"""Also those whose callers have gone; one peer alone may have four fifths of them."""
ANSWER_BYTES_MAX = 128 * 1024 * 1024

Encoded = tuple[Outcome, bytes]


class Settled(Exception):
    """Not executed: a copy of a call that is settled, or whose answer is no longer known."""


class Overloaded(Exception):
    """Not executed, because a bound was reached; try again."""


class _Call:
    __slots__ = ("answer", "peer", "task")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.task: asyncio.Task[Encoded] | None = None
        self.answer: Encoded | None = None
        """None beside no task: it was answered, and the answer had to be forgotten."""


class _Lane:
    __slots__ = ("calls", "heard_at", "settled_below")

    def __init__(self) -> None:
        self.calls: dict[int, _Call] = {}
        self.settled_below = 0
        self.heard_at = 0.0


class AnswerMemory:
    """One for each term of a leader; one event loop. Tasks run under ``supervisor``, and must not raise.

    ``is_member(client)``: whether it speaks for a registered agent.
    """

    def __init__(
        self, clock: Clock, supervisor: Supervisor, is_member: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._is_member = is_member
        self._under_way = FairShare(UNDER_WAY_MAX)
        self._places: Places[tuple[bytes, int]] = Places()
        self._lanes: OrderedDict[tuple[bytes, int], _Lane] = OrderedDict()
        self._answered: dict[_Call, None] = {}
        """Calls with an answer, the oldest first."""
        self._parked: set[asyncio.Task[Encoded]] = set()
        self.answer_bytes = 0

    @property
    def under_way(self) -> int:
        """Calls that were begun and have no answer yet."""
        return self._under_way.held

    def ask(
        self,
        name: str,
        head: Head,
        work: Callable[[], Coroutine[Any, Any, Encoded]],
        parked: bool = False,
        peer: str = "unknown",
    ) -> asyncio.Future[Encoded]:
        """The outcome of the call, now or later; ``work`` is started when the call is new. Cancelling the future (a
        task, maybe of others too) is not for callers: use :func:`asyncio.wait`. ``peer`` is where it comes from.

        An UNAVAILABLE or FAILED outcome is not remembered. Lanes that a member has calls under way in, and the one it
        shares among its ordinary calls, are forgotten only when they are idle.

        :raises Settled:
        :raises Overloaded:
        """
        lane = self._lane(head, peer)
        self._settle(lane, head.settled_below)
        if head.number < lane.settled_below:
            raise Settled("the call was settled")
        call = lane.calls.get(head.number)
        if call is None:
            lane_is_full = len(lane.calls) >= LANE_CALLS_MAX and head.number != lane.settled_below
            if lane_is_full or not self._under_way.take(peer):
                raise Overloaded
            call = lane.calls[head.number] = _Call(peer)
            call.task = self._supervisor.start(f"rpc-{name}", work())
            if parked:
                self._parked.add(call.task)
            call.task.add_done_callback(lambda task: self._done(lane, head.number, call, task))
        if call.task is not None:
            return call.task
        if call.answer is None:
            raise Settled("the answer was given, and forgotten since")
        answered: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        answered.set_result(call.answer)
        return answered

    def cancel_parked(self) -> None:
        """Give up the calls that wait for others: their callers ask another leader."""
        for task in tuple(self._parked):
            task.cancel()

    def _lane(self, head: Head, peer: str) -> _Lane:
        key = head.client, head.lane
        lane = self._lanes.get(key)
        now = self._clock.monotonic()
        if lane is None:
            self._forget_idle(now)
            if len(self._lanes) >= LANES_MAX:
                self._crowd_out()
            lane = self._lanes[key] = _Lane()
            self._places.add(key, peer)
        else:
            self._lanes.move_to_end(key)
            self._places.used(key)
        lane.heard_at = now
        return lane

    def _crowd_out(self) -> None:
        """:raises Overloaded: all lanes are members'."""
        key = self._places.yielding(self._stays)
        if key is None:
            raise Overloaded
        self._forget_lane(key)

    def _stays(self, key: tuple[bytes, int]) -> bool:
        client, number = key
        if not self._is_member(client):
            return False
        return number == SHARED_LANE or any(call.task is not None for call in self._lanes[key].calls.values())

    def _forget_idle(self, now: float) -> None:
        while self._lanes:
            key, lane = next(iter(self._lanes.items()))
            if lane.heard_at > now - LANE_IDLE_SECONDS:
                return
            self._forget_lane(key)

    def _forget_lane(self, key: tuple[bytes, int]) -> None:
        lane = self._lanes.pop(key)
        self._places.discard(key)
        for call in lane.calls.values():
            self._drop(call)
        lane.calls.clear()

    def _settle(self, lane: _Lane, settled_below: int) -> None:
        if settled_below <= lane.settled_below:
            return
        lane.settled_below = settled_below
        for number in [number for number in lane.calls if number < settled_below]:
            self._drop(lane.calls.pop(number))

    def _drop(self, call: _Call) -> None:
        """Nobody waits for it any more; what has not begun yet need not."""
        if call.task is not None:
            call.task.cancel()
        self._forget_answer(call)

    def _done(self, lane: _Lane, number: int, call: _Call, task: asyncio.Task[Encoded]) -> None:
        self._under_way.give(call.peer)
        call.task = None
        self._parked.discard(task)
        if lane.calls.get(number) is not call:
            return
        if task.cancelled() or task.exception() is not None:
            del lane.calls[number]
            return
        answer = task.result()
        if answer[0] in (Outcome.UNAVAILABLE, Outcome.FAILED):
            del lane.calls[number]
            return
        call.answer = answer
        self.answer_bytes += len(answer[1])
        self._answered[call] = None
        while self.answer_bytes > ANSWER_BYTES_MAX:
            self._forget_answer(next(iter(self._answered)))

    def _forget_answer(self, call: _Call) -> None:
        if call.answer is not None:
            self.answer_bytes -= len(call.answer[1])
            call.answer = None
            del self._answered[call]
