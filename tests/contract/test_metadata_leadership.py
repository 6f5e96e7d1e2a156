"""Several metadata processes on one store: who leads, who answers, and what becomes of calls when that changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import metadata.leadership
from metadata.agent_model import AgentCondition, AgentHeartbeat
from metadata.leadership import Leadership
from metadata.metrics import MetadataMetrics
from metadata.model import ExtentsQuery, MetadataUnavailable
from metadata.rpc.client import RemoteMetadata
from metadata.service import MetadataService
from metadata.store.port import MetadataStore, StoreUnavailable
from metadata.store.sqlite import SqliteMetadataStore
from runtime.clock import SeededEntropy
from runtime.settings import AgentsSettings, GroupSettings, TopicSettings
from runtime.tasks import Supervisor
from tests.support.leased_store import LeasedStore, SharedDatabase
from tests.support.metadata import SettableClock, batch, registration, segment
from tests.support.metadata_rpc import RpcNode, remote_metadata

LEASE_MS = 1_000


class Process:
    """One metadata process: its clock, its session with the store, its transport, and its leadership."""

    def __init__(self, seed: int) -> None:
        self.clock = SettableClock()
        self.node = RpcNode(clock=self.clock)
        self.entropy = SeededEntropy(seed)
        self.store: MetadataStore
        self.leadership: Leadership
        self.services: list[MetadataService] = []
        self.failures: list[BaseException] = []
        self.supervisor = Supervisor(lambda _name, error: self.failures.append(error))
        self.ended = 0

    def build(self, store: MetadataStore, supervisor: Supervisor) -> MetadataService:
        service = MetadataService(
            store,
            self.clock,
            self.entropy,
            supervisor,
            MetadataMetrics(CollectorRegistry()),
            GroupSettings(initial_rebalance_delay_ms=300),
            TopicSettings(),
            AgentsSettings(),
        )
        self.services.append(service)
        return service

    @property
    def leads(self) -> bool:
        return self.node.server.term is not None

    async def until(self, leads: bool, within_seconds: float = 5.0) -> float:
        """Wait until it leads, or does not; how long that took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(within_seconds):
            while self.leads != leads:
                await asyncio.sleep(0.005)
        return loop.time() - began

    def term_ended(self) -> None:
        self.ended += 1


class Cluster:
    def __init__(self) -> None:
        self.database = SharedDatabase(LEASE_MS / 1000)
        self.processes = [Process(1), Process(2)]
        self.client: RemoteMetadata

    def open(self, process: Process) -> MetadataStore:
        process.store = LeasedStore(self.database)
        return process.store

    async def start(self, stack: AsyncExitStack) -> None:
        for process in self.processes:
            await process.node.start()
            stack.push_async_callback(process.node.stop)
            stack.push_async_callback(process.supervisor.stop)
            process.leadership = Leadership(
                lambda process=process: self.open(process),  # type: ignore[misc]
                process.build,
                process.node.server,
                process.clock,
                process.entropy,
                process.supervisor,
                LEASE_MS,
                process.term_ended,
            )
            process.leadership.start()
            stack.push_async_callback(process.leadership.stop)
            if process is self.processes[0]:
                await process.until(True)
        self.client = await stack.enter_async_context(remote_metadata([process.node.url for process in self.processes]))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata.leadership, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(metadata.leadership, "RETRY_SECONDS", (0.05, 0.2))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    async with AsyncExitStack() as stack:
        await cluster.start(stack)
        yield cluster
    for process in cluster.processes:
        assert not process.failures, process.failures


async def test_one_leads_and_the_other_stands_by_with_nothing_in_memory(cluster: Cluster) -> None:
    first, second = cluster.processes
    await asyncio.sleep(0.5)
    assert first.leads and not second.leads
    assert second.services == []
    assert (first.leadership.problem(), second.leadership.problem()) == (None, None)
    assert cluster.database.generation == 1


async def test_a_leader_that_stops_is_replaced_at_once_and_nothing_is_lost(cluster: Cluster) -> None:
    first, second = cluster.processes
    topic = await cluster.client.create_topic("logs", 1, {})
    creating = [asyncio.create_task(cluster.client.create_topic(f"t{number}", 1, {})) for number in range(10)]
    await asyncio.sleep(0.005)
    await first.leadership.stop()
    assert await second.until(True) < 0.5
    assert first.ended == 1
    assert len({created.topic_id for created in await asyncio.gather(*creating)}) == 10
    (offsets,) = await cluster.client.partition_offsets([(topic.topic_id, 0)])
    assert offsets is not None
    assert cluster.client.generation == 2


async def test_a_leader_that_cannot_renew_falls_silent_before_it_is_replaced(cluster: Cluster) -> None:
    first, second = cluster.processes
    assert isinstance(first.store, LeasedStore)
    old_store, old_service = first.store, first.services[0]
    first.store.cut = True
    silent_after = await first.until(False)
    assert not second.leads, "nobody answers for a moment, and never two"
    assert silent_after < LEASE_MS / 1000
    assert await second.until(True) < 1.0
    old_store.cut = False
    with pytest.raises(StoreUnavailable):
        await old_store.write([])
    with pytest.raises(MetadataUnavailable):
        await old_service.create_topic("stale", 1, {})
    await cluster.client.create_topic("logs", 1, {})
    await second.leadership.stop()
    await first.until(True)
    assert [topic.name for topic in first.services[-1]._visible.topics.values()] == ["logs"]
    assert len(first.services) == 2, "the new term built everything anew"


async def test_a_process_that_stood_still_says_nothing_until_it_knows_that_it_leads(cluster: Cluster) -> None:
    """SIGSTOP and SIGCONT, on a store where nobody else took over; agents are not blamed for the silence."""
    first, second = cluster.processes
    await second.leadership.stop()
    epoch = (await cluster.client.register_agent(registration())).agent_epoch
    assert isinstance(first.store, LeasedStore)
    first.store.slow_seconds = 0.15  # or the first renewal would mend it at once
    first.clock.jump(30)
    assert not first.leads
    asking = asyncio.create_task(cluster.client.describe_agents())
    await asyncio.sleep(0.1)
    assert not asking.done()
    assert [agent.info.agent_uid for agent in await asking] == ["agent-1"]
    await cluster.client.heartbeat_agent(AgentHeartbeat(epoch, AgentCondition.READY))
    assert (len(first.services), first.ended) == (1, 0), "the same term goes on"


async def test_a_process_that_stood_still_too_long_finds_itself_replaced(cluster: Cluster) -> None:
    first, second = cluster.processes
    assert isinstance(first.store, LeasedStore)
    topic = await cluster.client.create_topic("logs", 1, {})
    first.store.cut = True
    await second.until(True, LEASE_MS / 1000 + 1)
    first.clock.jump(30)
    first.store.cut = False
    epoch = (await cluster.client.register_agent(registration())).agent_epoch
    await cluster.client.commit_segments(epoch, -1, [segment(1, (topic.topic_id, 0, [batch()]))])
    await asyncio.sleep(0.5)
    assert not first.leads and second.leads
    assert cluster.database.holder is second.store
    (found,) = await cluster.client.find_extents([ExtentsQuery(topic.topic_id, 0, 0, 100)])
    assert found.high_watermark == 1


async def test_a_failed_task_of_the_service_ends_the_term_and_not_the_process(cluster: Cluster) -> None:
    first, second = cluster.processes
    await second.leadership.stop()
    service = first.services[0]
    assert service._pipeline._driver is not None

    async def broken() -> None:
        raise ZeroDivisionError

    service._supervisor.start("planted", broken())
    await first.until(False)
    await first.until(True)
    assert len(first.services) == 2
    await cluster.client.create_topic("logs", 1, {})


async def test_a_store_that_cannot_be_reached_is_said_and_tried_again(cluster: Cluster) -> None:
    first, second = cluster.processes
    cluster.database.reachable = False
    await first.until(False)
    async with asyncio.timeout(5):
        while not (first.leadership.problem() and second.leadership.problem()):
            await asyncio.sleep(0.01)
    assert "cannot be reached" in str(first.leadership.problem())
    cluster.database.reachable = True
    await cluster.client.create_topic("logs", 1, {})
    assert first.leads != second.leads
    leader = first if first.leads else second
    assert leader.leadership.problem() is None


async def test_over_failovers_of_every_kind_commits_stay_exact(cluster: Cluster) -> None:
    chance = random.Random(7)
    client = cluster.client
    topic = await client.create_topic("logs", 1, {})
    epoch = (await client.register_agent(registration())).agent_epoch
    acknowledged: dict[str, int] = {}
    stopping = asyncio.Event()

    async def committing() -> None:
        sequence = 0
        while not stopping.is_set():
            commit = segment(sequence, (topic.topic_id, 0, [batch(chance.randint(1, 3))]))
            (answer,) = await client.commit_segments(epoch, sequence - 1, [commit])
            acknowledged[commit.segment_key] = answer.extents[0][0].base_offset
            await client.heartbeat_agent(AgentHeartbeat(epoch, AgentCondition.READY))
            sequence += 1

    async def failing() -> None:
        for round_number in range(6):
            await asyncio.sleep(chance.uniform(0.1, 0.4))
            leader = next(process for process in cluster.processes if process.leads)
            other = next(process for process in cluster.processes if process is not leader)
            assert isinstance(leader.store, LeasedStore)
            if round_number % 2:
                leader.store.cut = True
                await other.until(True)
                leader.store.cut = False
            else:
                await leader.leadership.stop()
                await other.until(True)
                leader.leadership.start()
        stopping.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(committing())
        group.create_task(failing())
    (found,) = await client.find_extents([ExtentsQuery(topic.topic_id, 0, 0, 10**9)])
    assert len(acknowledged) > 50
    assert cluster.database.generation == 7
    high_watermark = found.high_watermark
    seen: dict[str, int] = {}
    while len(seen) < len(acknowledged):
        for extent in found.extents:
            seen[extent.segment_key] = extent.base_offset
        if not found.extents or found.extents[-1].last_offset + 1 == high_watermark:
            break
        (found,) = await client.find_extents(
            [ExtentsQuery(topic.topic_id, 0, found.extents[-1].last_offset + 1, 10**9)]
        )
    assert seen == acknowledged


async def test_two_processes_on_one_sqlite_file_take_turns(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.open = lambda _process: SqliteMetadataStore(tmp_path / "metadata.sqlite")  # type: ignore[method-assign]
    async with AsyncExitStack() as stack:
        await cluster.start(stack)
        topic = await cluster.client.create_topic("logs", 1, {})
        epoch = (await cluster.client.register_agent(registration())).agent_epoch
        for turn in range(3):
            leader, other = cluster.processes if turn % 2 == 0 else reversed(cluster.processes)
            assert leader.leads and not other.leads
            commit = segment(turn, (topic.topic_id, 0, [batch()]))
            (answer,) = await cluster.client.commit_segments(epoch, turn - 1, [commit])
            assert answer.extents[0][0].base_offset == turn
            await leader.leadership.stop()
            assert await other.until(True) < 1.0
            leader.leadership.start()
