"""The fetch path between a real writer, a real metadata service and a memory store: no fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client import CollectorRegistry

from agent.fetch.answer import FetchLimits, PartitionFetch
from agent.fetch.fetcher import Fetcher
from agent.fetch.metrics import FetchMetrics
from ingest.batch_header import BatchHeader
from ingest.metrics import IngestMetrics
from ingest.ticket import PendingBatch, ProduceTicket
from ingest.writer import SegmentWriter
from metadata.agent_model import AgentInfo, AgentRegistration
from metadata.metrics import MetadataMetrics
from metadata.model import BatchCommitted, Extent, Refusal, TopicsChanged
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.budget import Budget
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import AgentsSettings, GroupSettings, IngestSettings, MemorySettings, Settings, TopicSettings
from runtime.tasks import Supervisor
from storage.memory import MemoryStore
from tests.unit.agent.fetch.world import MIB, evict, make_batch, records_of


class Parts:
    """What ``tidelog.app`` builds, without sockets."""

    def __init__(self) -> None:
        clock, entropy, registry = SystemClock(), SeededEntropy(1), CollectorRegistry()
        self.supervisor = Supervisor()
        self.budget = Budget(64 * MIB)
        self.store = MemoryStore(clock)
        self.metadata = MetadataService(
            MemoryMetadataStore(),
            clock,
            entropy,
            self.supervisor,
            MetadataMetrics(registry),
            GroupSettings(),
            TopicSettings(),
            AgentsSettings(),
        )
        settings = Settings(memory=MemorySettings(budget_bytes=64 * MIB))
        self.metrics = FetchMetrics(registry)
        self.fetcher = Fetcher(self.store, self.metadata, settings, self.budget, clock, self.supervisor, self.metrics)
        self.writer = SegmentWriter(
            self.store,
            self.metadata,
            IngestSettings(linger_ms=5),
            self.budget,
            clock,
            entropy,
            self.supervisor,
            IngestMetrics(registry),
            self.fetcher,
        )

    async def start(self) -> None:
        await self.metadata.start()
        registered = await self.metadata.register_agent(AgentRegistration("a", "z", "g", "h", 1, "0"))
        self.fetcher.follower.start(await self.metadata.subscribe(self))
        self.writer.start(registered.agent_epoch)

    def topics_changed(self, change: TopicsChanged) -> None:
        if change.deleted:
            self.fetcher.topic_deleted(change.deleted)

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        self.fetcher.extents_committed(extents)

    def log_starts_moved(self, moved: object) -> None: ...

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None: ...

    def resynchronize(self) -> None:
        self.fetcher.resynchronize()

    async def produce(self, topic_id: bytes, partition: int, payload: bytes) -> int:
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = ProduceTicket(1, lambda _: settled.set_result(None))
        self.writer.append(ticket, [PendingBatch(topic_id, partition, payload, BatchHeader.parse(payload).draft())])
        await settled
        (outcome,) = ticket.outcomes
        assert isinstance(outcome, BatchCommitted) and outcome.refusal is None
        return outcome.base_offset

    async def stop(self) -> None:
        await self.writer.drain()
        await self.writer.stop()
        await self.metadata.stop()
        await self.supervisor.stop()


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    parts = Parts()
    await parts.start()
    yield parts
    await parts.stop()
    evict(parts.fetcher)
    assert parts.budget.held_bytes == 0


async def test_what_was_acknowledged_is_read_at_its_offset(parts: Parts) -> None:
    topic = await parts.metadata.create_topic("logs", 3, {})
    expected: list[dict[int, bytes]] = [{}, {}, {}]

    async def produce(number: int) -> None:
        partition = number % 3
        values = [b"%d/%d" % (number, index) + b"." * (number * 37 % 5000) for index in range(1 + number % 4)]
        base = await parts.produce(topic.topic_id, partition, make_batch(values))
        expected[partition].update({base + index: value for index, value in enumerate(values)})

    async def consume(partition: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        total = sum(1 + number % 4 for number in range(300) if number % 3 == partition)
        while len(found) < total:
            fetched = await parts.fetcher.fetch(
                [PartitionFetch(topic.topic_id, partition, len(found), 100_000)], FetchLimits(MIB, 1, 10_000)
            )
            assert fetched.partitions[0].problem is None
            found.update(records_of(fetched.partitions[0].chunks))
            fetched.release()
        return found

    consumers = [asyncio.create_task(consume(index)) for index in (0, 1, 2, 0)]
    await asyncio.gather(*map(produce, range(300)))
    found = await asyncio.wait_for(asyncio.gather(*consumers), 30)
    assert found == [*expected, expected[0]]
    assert parts.metrics.block_reads == 0, "tailing costs no GET"

    parts.fetcher.resynchronize()
    evict(parts.fetcher)
    assert await consume(1) == expected[1]
    assert parts.metrics.block_reads > 0


async def test_deleting_the_topic_ends_a_long_poll(parts: Parts) -> None:
    topic = await parts.metadata.create_topic("logs", 1, {})
    waiting = asyncio.create_task(
        parts.fetcher.fetch([PartitionFetch(topic.topic_id, 0, 0, MIB)], FetchLimits(MIB, 1, 60_000))
    )
    while parts.metrics.waiting == 0:
        await asyncio.sleep(0)
    await parts.metadata.delete_topic(topic.topic_id)
    fetched = await asyncio.wait_for(waiting, 5)
    assert fetched.partitions[0].problem is Refusal.UNKNOWN_TOPIC_ID
    fetched.release()


async def test_times_find_offsets(parts: Parts) -> None:
    topic = await parts.metadata.create_topic("logs", 1, {})
    for number in range(5):
        await parts.produce(topic.topic_id, 0, make_batch([b"a", b"b"], [number * 100, number * 100 + 50]))
    search = parts.fetcher.timestamps
    for timestamp, offset in ((0, 0), (1, 1), (50, 1), (51, 2), (250, 5), (450, 9)):
        found = await search.first_at_or_after(topic.topic_id, 0, timestamp)
        assert found is not None and found.offset == offset
    assert await search.first_at_or_after(topic.topic_id, 0, 451) is None
