"""The runner of background jobs: takes what it has room for, keeps leases while jobs run, and lets go of lost ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agent.jobs.metrics import JobMetrics
from agent.jobs.runner import JobRunner
from metadata.job_model import JobLease
from metadata.model import Fenced, MetadataUnavailable
from runtime.clock import SeededEntropy
from runtime.settings import JobsSettings
from runtime.tasks import Supervisor
from storage.store import StorageUnavailable
from tests.support.metadata import SettableClock

LEASE_MS = 8_000


class Board:
    """The service's end: leases what ``waiting`` has, and writes down what it is told."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.asked: list[int] = []
        self.renewed = 0
        self.lost = False
        self.away = False
        self.finished: list[tuple[int, bytes | None]] = []
        self._next = 0

    async def lease_jobs(self, agent_epoch: int, kinds: Sequence[str], count_max: int) -> list[JobLease]:
        assert list(kinds) == ["work"]
        self.asked.append(count_max)
        if self.away:
            raise MetadataUnavailable("planted")
        taken, self.waiting = self.waiting[:count_max], self.waiting[count_max:]
        leases = []
        for target in taken:
            self._next += 1
            leases.append(JobLease(self._next, "work", target, target.encode(), LEASE_MS))
        return leases

    async def renew_jobs(self, agent_epoch: int, lease_ids: Sequence[int]) -> list[int]:
        self.renewed += 1
        if self.away:
            raise MetadataUnavailable("planted")
        if self.lost:
            raise Fenced("planted")
        return list(lease_ids)

    async def finish_job(self, agent_epoch: int, lease_id: int, result: bytes | None) -> bool:
        self.finished.append((lease_id, result))
        return True


class Work:
    """Runs until it is let go."""

    kind = "work"

    def __init__(self) -> None:
        self.running: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.go = asyncio.Event()

    async def run(self, payload: bytes) -> bytes:
        if payload == b"broken":
            raise StorageUnavailable("planted")
        self.running.append(payload)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(payload)
            raise
        finally:
            self.running.remove(payload)
        return payload.upper()


class World:
    def __init__(self) -> None:
        self.board, self.work, self.clock = Board(), Work(), SettableClock()
        self.failures: list[BaseException] = []
        self.supervisor = Supervisor(lambda _, error: self.failures.append(error))
        client: Any = self.board
        self.runner = JobRunner(
            client,
            [self.work],
            JobsSettings(at_once=2, poll_ms=1_000),
            lambda: 7,
            self.clock,
            SeededEntropy(1),
            self.supervisor,
            JobMetrics(CollectorRegistry()),
        )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.runner.start()
    yield world
    await world.runner.stop()
    await world.supervisor.stop()
    assert world.failures == []


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_takes_as_many_as_it_has_room_for_and_asks_again_when_one_is_done(world: World) -> None:
    world.board.waiting = ["a", "b", "c"]
    await world.clock.pass_seconds(1.1)
    assert world.work.running == [b"a", b"b"]
    assert world.board.waiting == ["c"]
    asked = len(world.board.asked)
    await world.clock.pass_seconds(3)
    assert len(world.board.asked) == asked, "a full runner asks for nothing"
    world.work.go.set()
    await settled()
    assert (1, b"A") in world.board.finished and (2, b"B") in world.board.finished
    await world.clock.pass_seconds(1.1)
    assert (3, b"C") in world.board.finished


async def test_what_fails_is_given_back(world: World) -> None:
    world.board.waiting = ["broken"]
    await world.clock.pass_seconds(1.1)
    assert world.board.finished == [(1, None)]


async def test_leases_are_renewed_while_a_job_runs(world: World) -> None:
    world.board.waiting = ["a"]
    await world.clock.pass_seconds(20)
    assert world.work.running == [b"a"]
    assert 8 <= world.board.renewed <= 10
    world.work.go.set()
    await settled()
    renewed = world.board.renewed
    await world.clock.pass_seconds(5)
    assert world.board.renewed == renewed


async def test_a_job_whose_lease_is_lost_is_cancelled_and_its_result_not_told(world: World) -> None:
    world.board.waiting = ["a"]
    await world.clock.pass_seconds(1.1)
    world.board.lost = True
    await world.clock.pass_seconds(3)
    assert world.work.cancelled == [b"a"]
    assert world.board.finished == []


async def test_a_service_that_is_away_for_less_than_a_lease_costs_nothing(world: World) -> None:
    world.board.waiting = ["a"]
    await world.clock.pass_seconds(1.1)
    world.board.away = True
    await world.clock.pass_seconds(5)
    assert world.work.running == [b"a"]
    await world.clock.pass_seconds(6)
    assert world.work.cancelled == [b"a"], "by now another agent may have it"
    world.board.away = False
    world.board.waiting = ["b"]
    await world.clock.pass_seconds(6)
    assert world.work.running == [b"b"]


async def test_stopping_gives_up_what_runs(world: World) -> None:
    world.board.waiting = ["a"]
    await world.clock.pass_seconds(1.1)
    await world.runner.stop()
    assert world.work.cancelled == [b"a"]
