"""The leader's memory of mutating calls: each is executed once, and its repetitions get the first answer.

A call is known by (client, lane, number). Clients say below which number everything is settled: those answers are
dropped, and a copy that comes later is refused instead of executed. Everything is bounded: calls of a lane, lanes,
calls under way, and the bytes of all answers, of which the oldest are then forgotten (but not that they were given).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any

from metadata.rpc.wire import Head, Outcome
from runtime.clock import Clock
from runtime.tasks import Supervisor

LANE_CALLS_MAX = 10_000
"""Calls of one lane that are not settled; the first of them, which the others wait for, is always taken."""
LANES_MAX = 50_000
"""Clients, and parked calls of clients."""
LANE_IDLE_SECONDS = 900.0
"""A lane without calls for so long is forgotten: no copy of a call is delayed that much."""
UNDER_WAY_MAX = 30_000
ANSWER_BYTES_MAX = 128 * 1024 * 1024

Encoded = tuple[Outcome, bytes]


class Settled(Exception):
    """Not executed: a copy of a call that is settled, or whose answer is no longer known."""


class Overloaded(Exception):
    """Not executed, because a bound was reached; try again."""


class _Call:
    __slots__ = ("answer", "task")

    def __init__(self) -> None:
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
    """One for each term of a leader; one event loop. Tasks run under ``supervisor``, and must not raise."""

    def __init__(self, clock: Clock, supervisor: Supervisor) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._lanes: OrderedDict[tuple[bytes, int], _Lane] = OrderedDict()
        self._answered: dict[_Call, None] = {}
        """Calls with an answer, the oldest first."""
        self._parked: set[asyncio.Task[Encoded]] = set()
        self.answer_bytes = 0
        self.under_way = 0

    def ask(
        self, name: str, head: Head, work: Callable[[], Coroutine[Any, Any, Encoded]], parked: bool = False
    ) -> asyncio.Future[Encoded]:
        """The outcome of the call, now or later; ``work`` is started when the call is new. Cancelling the future (a
        task, maybe of others too) is not for callers: use :func:`asyncio.wait`.

        An UNAVAILABLE or FAILED outcome is not remembered.

        :raises Settled:
        :raises Overloaded:
        """
        lane = self._lane(head)
        self._settle(lane, head.settled_below)
        if head.number < lane.settled_below:
            raise Settled("the call was settled")
        call = lane.calls.get(head.number)
        if call is None:
            lane_is_full = len(lane.calls) >= LANE_CALLS_MAX and head.number != lane.settled_below
            if lane_is_full or self.under_way >= UNDER_WAY_MAX:
                raise Overloaded
            call = lane.calls[head.number] = _Call()
            self.under_way += 1
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

    def _lane(self, head: Head) -> _Lane:
        key = head.client, head.lane
        lane = self._lanes.get(key)
        now = self._clock.monotonic()
        if lane is None:
            self._forget_idle(now)
            if len(self._lanes) >= LANES_MAX:
                raise Overloaded
            lane = self._lanes[key] = _Lane()
        else:
            self._lanes.move_to_end(key)
        lane.heard_at = now
        return lane

    def _forget_idle(self, now: float) -> None:
        while self._lanes:
            key, lane = next(iter(self._lanes.items()))
            if lane.heard_at > now - LANE_IDLE_SECONDS:
                return
            for call in lane.calls.values():
                self._drop(call)
            del self._lanes[key]

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
        self.under_way -= 1
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
