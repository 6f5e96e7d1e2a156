"""The memory of mutating calls: once each, the first answer again, never a settled one, and never without bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from metadata.rpc import answers
from metadata.rpc.answers import AnswerMemory, Encoded, Overloaded, Settled
from metadata.rpc.wire import Head, Outcome
from runtime.clock import SystemClock
from runtime.tasks import Supervisor


class Executed:
    """Work that is counted, and waits for ``gate`` when there is one."""

    def __init__(self, outcome: Outcome = Outcome.VALUE, gated: bool = False, size: int = 1) -> None:
        self.count = 0
        self.cancelled = 0
        self._outcome = outcome
        self._size = size
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def __call__(self) -> Encoded:
        self.count += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._outcome, bytes([self.count]) * self._size


class LateClock(SystemClock):
    """Ahead of the machine's by ``ahead`` seconds."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


def head(number: int, settled_below: int = 0, *, client: int = 1, lane: int = 0) -> Head:
    return Head(client.to_bytes(16, "big"), lane, number, settled_below, 1, 100)


@pytest.fixture
async def clock() -> LateClock:
    return LateClock()


@pytest.fixture
async def memory(clock: LateClock) -> AsyncIterator[AnswerMemory]:
    supervisor = Supervisor()
    yield AnswerMemory(clock, supervisor)
    await supervisor.stop()


async def test_a_repetition_gets_the_first_answer(memory: AnswerMemory) -> None:
    work = Executed()
    first = await memory.ask("call", head(1), work)
    assert await memory.ask("call", head(1), work) == first
    assert await memory.ask("call", head(1, client=2), work) != first, "numbers are each client's own"
    assert await memory.ask("call", head(1, lane=1), work) != first
    assert work.count == 3


async def test_a_repetition_joins_the_call_under_way(memory: AnswerMemory) -> None:
    work = Executed(gated=True)
    asked = [memory.ask("call", head(1), work) for _ in range(3)]
    await asyncio.wait(asked, timeout=0.01)
    work.gate.set()
    assert len({await each for each in asked}) == 1
    assert work.count == 1


async def test_a_copy_of_a_settled_call_is_refused(memory: AnswerMemory) -> None:
    work = Executed()
    await memory.ask("call", head(1), work)
    await memory.ask("call", head(5, settled_below=5), work)
    assert memory.answer_bytes == 1, "what is settled is forgotten"
    for late in (1, 4):
        with pytest.raises(Settled):
            memory.ask("call", head(late), work)
    assert work.count == 2


async def test_a_call_given_up_is_not_executed_later(memory: AnswerMemory) -> None:
    work = Executed(gated=True)
    given_up = memory.ask("call", head(1), work)
    await asyncio.sleep(0)
    memory.ask("call", head(2, settled_below=2), work)
    await asyncio.wait((given_up,))
    assert given_up.cancelled() and work.cancelled == 1
    with pytest.raises(Settled):
        memory.ask("call", head(1), work)


@pytest.mark.parametrize("outcome", [Outcome.UNAVAILABLE, Outcome.FAILED])
async def test_a_call_of_unknown_outcome_is_executed_again(memory: AnswerMemory, outcome: Outcome) -> None:
    work = Executed(outcome)
    for _ in range(2):
        assert (await memory.ask("call", head(1), work))[0] is outcome
        await asyncio.sleep(0)
    assert work.count == 2
    assert memory.answer_bytes == 0


async def test_refusals_are_answers(memory: AnswerMemory) -> None:
    work = Executed(Outcome.REFUSED)
    assert await memory.ask("call", head(1), work) == await memory.ask("call", head(1), work)
    assert work.count == 1


async def test_parked_calls_are_given_up_at_the_end_of_a_term(memory: AnswerMemory) -> None:
    work = Executed(gated=True)
    ordinary, parked = memory.ask("call", head(1), work), memory.ask("join", head(2), work, parked=True)
    await asyncio.sleep(0)
    memory.cancel_parked()
    await asyncio.wait((parked,))
    assert parked.cancelled() and not ordinary.done()


async def test_calls_of_a_lane_are_bounded(memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LANE_CALLS_MAX", 3)
    work = Executed()
    for number in range(3):
        await memory.ask("call", head(number), work)
    with pytest.raises(Overloaded):
        memory.ask("call", head(3), work)
    await memory.ask("call", head(3, settled_below=1), work)


async def test_a_full_lane_takes_the_call_that_the_others_wait_for(
    memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LANE_CALLS_MAX", 2)
    work = Executed()
    for number in (1, 2, 0):
        await memory.ask("call", head(number), work)
    await memory.ask("call", head(3, settled_below=3), work)


async def test_calls_under_way_are_bounded(memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "UNDER_WAY_MAX", 2)
    work = Executed(gated=True)
    asked = [memory.ask("call", head(number), work) for number in range(2)]
    with pytest.raises(Overloaded):
        memory.ask("call", head(2), work)
    work.gate.set()
    await asyncio.wait(asked)
    await asyncio.sleep(0)
    assert memory.under_way == 0
    await memory.ask("call", head(2), work)


async def test_lanes_are_bounded_and_idle_ones_go(
    memory: AnswerMemory, clock: LateClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LANES_MAX", 2)
    work = Executed()
    for client in (1, 2):
        await memory.ask("call", head(1, client=client), work)
    with pytest.raises(Overloaded):
        memory.ask("call", head(1, client=3), work)
    clock.ahead = answers.LANE_IDLE_SECONDS + 1
    await memory.ask("call", head(1, client=3), work)
    assert memory.answer_bytes == 1


async def test_bytes_of_answers_are_bounded_and_what_was_forgotten_is_not_executed_again(
    memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ANSWER_BYTES_MAX", 250)
    work = Executed(size=100)
    for number in range(3):
        await memory.ask("call", head(number), work)
        await asyncio.sleep(0)
    assert memory.answer_bytes == 200
    with pytest.raises(Settled):
        memory.ask("call", head(0), work)
    await memory.ask("call", head(1), work)
    assert work.count == 3
