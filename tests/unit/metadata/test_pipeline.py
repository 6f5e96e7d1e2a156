"""What is decided while a write runs: who waits for what, and what a failure takes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

import metadata.pipeline
from metadata.metrics import MetadataMetrics
from metadata.model import MetadataUnavailable, Refusal, Refused
from metadata.pipeline import CommandPipeline, Transaction
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import Change, CounterSaved, StoreSnapshot, StoreUnavailable
from runtime.clock import SystemClock
from runtime.tasks import Supervisor
from tests.support.metadata import FaultyMetadataStore


class Tally:
    """A state of one number, which every command raises; it remembers what it was when each was decided."""

    def __init__(self) -> None:
        self.store = FaultyMetadataStore(MemoryMetadataStore())
        self.store.gate = asyncio.Event()
        self.pipeline = CommandPipeline(self.store, SystemClock(), MetadataMetrics(CollectorRegistry()))
        self.pipeline.on_reload(self._load)
        self.value = 0
        self.decided: list[str] = []
        self.durable: list[str] = []

    def _load(self, snapshot: StoreSnapshot) -> None:
        self.value = snapshot.counters.get("tally", 0)

    def command(self, name: str) -> Callable[[Transaction], int]:
        def decide(transaction: Transaction) -> int:
            self.decided.append(name)
            self.value += 1
            transaction.change(CounterSaved("tally", self.value))
            transaction.after_durable(lambda: self.durable.append(name))
            return self.value

        return decide

    def start(self, name: str) -> asyncio.Task[int]:
        return asyncio.create_task(self.pipeline.run(self.command(name)))

    def open(self) -> None:
        assert self.store.gate is not None
        self.store.gate.set()


@pytest.fixture
async def tally() -> AsyncIterator[Tally]:
    tally = Tally()
    supervisor = Supervisor()
    await tally.pipeline.start(supervisor, "cluster")
    yield tally
    tally.open()
    await tally.pipeline.stop()
    await supervisor.stop()


async def test_commands_are_decided_while_a_write_runs_and_answered_after_their_own(tally: Tally) -> None:
    first = tally.start("first")
    await asyncio.sleep(0.001)
    second, third = tally.start("second"), tally.start("third")
    await asyncio.sleep(0.001)
    assert tally.decided == ["first", "second", "third"]
    assert not first.done() and not second.done()
    assert len(tally.store.writes) == 1 and tally.durable == []
    tally.open()
    assert await asyncio.gather(first, second, third) == [1, 2, 3]
    assert tally.durable == ["first", "second", "third"]
    assert [len(changes) for changes in tally.store.writes] == [1, 2]


async def test_an_answer_without_changes_waits_for_the_write_it_was_decided_during(tally: Tally) -> None:
    first = tally.start("first")
    await asyncio.sleep(0.001)

    def refuse(_: Transaction) -> None:
        raise Refused(Refusal.INVALID_REQUEST, f"the tally is {tally.value} already")

    reading = asyncio.create_task(tally.pipeline.run(lambda _: tally.value))
    refused = asyncio.create_task(tally.pipeline.run(refuse))
    await asyncio.sleep(0.001)
    assert not reading.done() and not refused.done(), "they saw what is not durable"
    tally.open()
    assert await reading == 1
    with pytest.raises(Refused, match="1 already"):
        await refused
    assert await first == 1
    assert len(tally.store.writes) == 1


async def test_the_next_write_takes_so_many_commands_and_the_others_wait_undecided(
    tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.pipeline, "COMMANDS_PER_WRITE_MAX", 2)
    running = [tally.start("0")]
    await asyncio.sleep(0.001)
    running += [tally.start(str(number)) for number in range(1, 6)]
    await asyncio.sleep(0.001)
    assert tally.decided == ["0", "1", "2"]
    tally.open()
    assert await asyncio.gather(*running) == [1, 2, 3, 4, 5, 6]
    assert [len(changes) for changes in tally.store.writes] == [1, 2, 2, 1]


@pytest.mark.parametrize(("fault", "before"), [("fail_before", 0), ("fail_after", 1)])
async def test_a_failed_write_takes_back_what_was_decided_on_it(tally: Tally, fault: str, before: int) -> None:
    setattr(tally.store, fault, 1)
    first = tally.start("first")
    await asyncio.sleep(0.001)
    others = [tally.start("second"), tally.start("third")]
    await asyncio.sleep(0.001)
    tally.open()
    with pytest.raises(MetadataUnavailable):
        await first
    assert await asyncio.gather(*others) == [before + 1, before + 2], "decided on what is durable, in the same order"
    assert tally.decided == ["first", "second", "third", "second", "third"]
    assert tally.durable == ["second", "third"], "callbacks of what was taken back are never called"
    assert (await tally.store.reload()).counters["tally"] == before + 2


async def test_a_defect_in_what_is_decided_ahead_does_not_touch_the_write_under_way(tally: Tally) -> None:
    def defect(transaction: Transaction) -> int:
        tally.value += 100
        transaction.change(CounterSaved("tally", tally.value))
        raise ZeroDivisionError

    first = tally.start("first")
    await asyncio.sleep(0.001)
    broken = asyncio.create_task(tally.pipeline.run(defect))
    after = tally.start("after")
    await asyncio.sleep(0.001)
    assert tally.decided == ["first"], "nothing is decided on a state that is half changed"
    tally.open()
    assert await first == 1
    with pytest.raises(ZeroDivisionError):
        await broken
    assert await after == 2
    assert tally.store.reloads == 1


async def test_the_state_is_rebuilt_after_a_defect_although_nobody_asks(tally: Tally) -> None:
    first = tally.start("first")
    await asyncio.sleep(0.001)

    def defect(_: Transaction) -> int:
        tally.value += 100
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await tally.pipeline.run(defect)
    tally.open()
    await first
    await asyncio.sleep(0.001)
    assert (tally.value, tally.store.reloads) == (1, 1)


async def test_what_is_durable_is_told_before_a_write_that_fails_at_once_takes_anything_back(tally: Tally) -> None:
    """The next write begins before the last one is answered; that one's callbacks never run on a state built anew."""
    first = tally.start("first")
    await asyncio.sleep(0.001)
    second = tally.start("second")
    loaded: list[list[str]] = []
    tally.pipeline.on_reload(lambda _: loaded.append(list(tally.durable)))
    await asyncio.sleep(0.001)
    write = tally.store.write

    async def write_once(changes: Sequence[Change]) -> None:
        if len(tally.store.writes) == 2:
            raise StoreUnavailable("planted: without waiting for anything")
        await write(changes)

    tally.store.writes.append([])
    tally.store.write = write_once  # type: ignore[method-assign]
    tally.open()
    assert await first == 1
    with pytest.raises(MetadataUnavailable):
        await second
    assert loaded == [["first"]]
