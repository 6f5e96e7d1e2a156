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
def members() -> set[bytes]:
    """Clients that speak for registered agents."""
    return set()


@pytest.fixture
async def memory(clock: LateClock, members: set[bytes]) -> AsyncIterator[AnswerMemory]:
    supervisor = Supervisor()
    yield AnswerMemory(clock, supervisor, members.__contains__)
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


async def test_calls_under_way_are_bounded(memory: AnswerMemory) -> None:
    memory._under_way.limit = 5
    work = Executed(gated=True)
    asked = [memory.ask("call", head(number), work) for number in range(4)]
    with pytest.raises(Overloaded):
        memory.ask("call", head(4), work)
    work.gate.set()
    await asyncio.wait(asked)
    await asyncio.sleep(0)
    assert memory.under_way == 0
    await memory.ask("call", head(4), work)


async def test_calls_under_way_of_one_address_leave_room_for_others(memory: AnswerMemory) -> None:
    memory._under_way.limit = 10
    work = Executed(gated=True)
    for number in range(8):
        memory.ask("call", head(number), work, peer="10.0.0.1")
    with pytest.raises(Overloaded):
        memory.ask("call", head(8), work, peer="10.0.0.1")
    memory.ask("call", head(0, client=2), work, peer="10.0.0.2")
    work.gate.set()


async def test_idle_lanes_go(memory: AnswerMemory, clock: LateClock) -> None:
    work = Executed()
    for client in (1, 2):
        await memory.ask("call", head(1, client=client), work)
    clock.ahead = answers.LANE_IDLE_SECONDS + 1
    await memory.ask("call", head(1, client=3), work)
    assert memory.answer_bytes == 1


async def test_a_flood_of_clients_pushes_out_its_own_and_no_agents(
    memory: AnswerMemory, members: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when an agent has the same address, and has been quiet for longer than any of the flood."""
    monkeypatch.setattr(answers, "LANES_MAX", 10)
    work = Executed()
    agent, neighbour = head(1, client=1), head(1, client=2)
    members.add(agent.client)
    first = await memory.ask("call", agent, work, peer="10.0.0.1")
    other = await memory.ask("call", neighbour, work, peer="10.0.0.2")
    joining = Executed(gated=True)
    parked = memory.ask("join", head(1, client=1, lane=1), joining, parked=True, peer="10.0.0.1")
    for client in range(3, 40):
        await memory.ask("call", head(1, client=client), work, peer="10.0.0.1")
    assert len(memory._lanes) == len(memory._places) == 10
    executed = work.count
    assert await memory.ask("call", agent, work, peer="10.0.0.1") == first
    assert await memory.ask("call", neighbour, work, peer="10.0.0.2") == other
    assert work.count == executed, "their answers were remembered"
    joining.gate.set()
    assert (await parked)[0] is Outcome.VALUE
    assert memory.answer_bytes == 10, "what was forgotten is counted no more"


async def test_a_lane_that_is_pushed_out_gives_up_its_calls(
    memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LANES_MAX", 1)
    work = Executed(gated=True)
    given_up = memory.ask("join", head(1, client=1), work, parked=True)
    await asyncio.sleep(0)
    memory.ask("join", head(1, client=2), work, parked=True)
    await asyncio.wait((given_up,))
    assert given_up.cancelled() and memory.under_way == 1


async def test_when_all_lanes_are_agents_the_next_client_waits(
    memory: AnswerMemory, members: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LANES_MAX", 2)
    for client in (1, 2):
        members.add(head(1, client=client).client)
        await memory.ask("call", head(1, client=client), Executed())
    with pytest.raises(Overloaded):
        memory.ask("call", head(1, client=3), Executed())


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
