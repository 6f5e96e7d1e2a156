"""Compaction jobs: planned by a real metadata service, done in a store in memory, and what happens when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from agent.jobs import swapping
from agent.jobs.compaction import CompactSegments
from agent.jobs.swapping import Swapper
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.rewrite import Rewriter
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import SegmentNames
from ingest.segment import PartitionRun, check_segment, encode_segment
from metadata.client import MetadataClient
from metadata.compaction import CompactionJob, ExtentSwap
from metadata.job_model import COMPACT_SEGMENTS, JobLease
from metadata.model import Extent, ExtentsQuery, Fenced, MetadataUnavailable, SegmentCommit
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.budget import Budget
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import CompactionSettings
from storage.memory import MemoryStore
from tests.support.batches import build_batch
from tests.support.ingest_fakes import pending
from tests.support.metadata import SettableClock, registration, running_service

EAGER = CompactionSettings(job_bytes=64 << 10, min_age_ms=1_000, wait_ms=5_000, fan_in=2)


class Flaky:
    """The service, some of whose answers to swaps are lost before or after the effect."""

    def __init__(self, service: MetadataService) -> None:
        self.service = service
        self.swaps: list[ExtentSwap] = []
        self.fail_before = 0
        self.fail_after = 0

    async def find_segment_extents(self, segments: list[tuple[int, int]]) -> list[Extent]:
        return await self.service.find_segment_extents(segments)

    async def swap_extents(self, agent_epoch: int, swap: ExtentSwap) -> None:
        self.swaps.append(swap)
        if self.fail_before:
            self.fail_before -= 1
            raise MetadataUnavailable("lost on the way there")
        await self.service.swap_extents(agent_epoch, swap)
        if self.fail_after:
            self.fail_after -= 1
            raise MetadataUnavailable("lost on the way back")


class World:
    def __init__(self, service: MetadataService, clock: SettableClock) -> None:
        self.service = service
        self.clock = clock
        self.store = MemoryStore(SystemClock())
        self.metadata = Flaky(service)
        self.registry = CollectorRegistry()
        self.budget = Budget(512 << 20)
        self.epoch = -1
        self.topic = b""
        self.sequence = 0
        metrics = CompactionMetrics(self.registry)
        rewriter = Rewriter(
            self.store,
            SegmentNames(SeededEntropy(1)),
            Throttle(10**12, SystemClock()),
            self.budget,
            SystemClock(),
            metrics,
            64 << 20,
        )
        client = cast("MetadataClient", self.metadata)
        swapper = Swapper(self.store, client, SystemClock(), metrics)
        self.handler = CompactSegments(client, rewriter, swapper, lambda: self.epoch, SystemClock(), asyncio.Lock())

    async def start(self) -> None:
        self.epoch = (await self.service.register_agent(registration())).agent_epoch
        self.topic = (await self.service.create_topic("logs", 2, {})).topic_id

    async def ingest(self, count: int) -> None:
        """Segments with two records of each partition."""
        for _ in range(count):
            runs = []
            for partition in range(2):
                run = PartitionRun(self.topic, partition)
                run.payloads.append(batch := build_batch([b"%d" % self.sequence, b"x" * 4_100]))
                run.batches.append(pending(batch).draft)
                runs.append(run)
            encoded = encode_segment(self.epoch, self.sequence, 0, runs)
            key = f"segments/{self.sequence}"
            await self.store.put(key, encoded.chunks(), encoded.crc32c)
            commit = SegmentCommit(self.sequence, key, encoded.byte_length, encoded.extents)
            await self.service.commit_segments(self.epoch, self.sequence - 1, [commit])
            self.sequence += 1
            self.clock.wall_ms += 1

    async def lease(self) -> list[JobLease]:
        """What the service has to be compacted, a little later."""
        self.clock.wall_ms += EAGER.min_age_ms
        for _ in range(100):
            leases = await self.service.lease_jobs(self.epoch, [COMPACT_SEGMENTS], 9)
            if leases:
                return leases
            await self.clock.pass_seconds(1)
        return []

    async def extents(self, partition: int = 0) -> list[tuple[int, int, int]]:
        (found,) = await self.service.find_extents([ExtentsQuery(self.topic, partition, 0, 10**9)])
        for each in found.extents:
            check_segment(await self.store.get(each.segment_key))
        return [(each.base_offset, each.last_offset, each.level) for each in found.extents]

    def refused(self) -> float:
        return self.registry.get_sample_value("tidelog_compaction_swaps_refused_total") or 0.0


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(swapping, "SWAP_PAUSE_SECONDS", 0.01)
    clock = SettableClock()
    async with running_service(MemoryMetadataStore(), clock, compaction=EAGER) as service:
        world = World(service, clock)
        await world.start()
        yield world
        assert world.budget.held_bytes == 0


async def test_what_is_planned_is_done_and_planned_again_on_the_next_level(world: World) -> None:
    await world.ingest(16)
    leases = await world.lease()
    assert [lease.target for lease in leases] == ["0/segments/0", "0/segments/8"]
    for lease in leases:
        assert await world.service.finish_job(world.epoch, lease.lease_id, await world.handler.run(lease.payload))
    assert await world.extents() == await world.extents(1) == [(0, 15, 1), (16, 31, 1)]
    (lease,) = await world.lease()
    await world.service.finish_job(world.epoch, lease.lease_id, await world.handler.run(lease.payload))
    assert await world.extents() == [(0, 31, 2)]


async def test_segments_of_jobs_under_way_are_not_planned_again(world: World) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    await world.ingest(8)
    (other,) = await world.lease()
    assert other.target == "0/segments/8"
    for each in (lease, other):
        await world.handler.run(each.payload)
    assert await world.extents() == [(0, 15, 1), (16, 31, 1)]


@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (2, 2)])
async def test_a_lost_answer_is_asked_for_again(world: World, before: int, after: int) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    world.metadata.fail_before, world.metadata.fail_after = before, after
    await world.handler.run(lease.payload)
    assert await world.extents() == [(0, 15, 1)]
    assert len(world.metadata.swaps) == 1 + before + after


async def test_a_service_that_is_away_ends_the_job_and_its_object_is_left_alone(world: World) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    world.metadata.fail_before = 99
    with pytest.raises(MetadataUnavailable):
        await world.handler.run(lease.payload)
    assert len(await world.extents()) == 8
    assert await world.store.head(world.metadata.swaps[0].segment_key), "its swap may still be under way"
    world.metadata.fail_before = 0
    await world.handler.run(lease.payload)
    assert await world.extents() == [(0, 15, 1)]


async def test_done_twice_it_is_done_once(world: World) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    await asyncio.gather(world.handler.run(lease.payload), world.handler.run(lease.payload))
    assert await world.extents() == [(0, 15, 1)]
    objects = [info.key async for info in world.store.list("segments/")]
    assert len(objects) == 9, "eight ingested, one compacted: the second found nothing to do"


async def test_two_who_read_the_same_extents(world: World) -> None:
    """The later swap is refused, and its object, which nothing refers to, goes at once."""
    await world.ingest(8)
    (lease,) = await world.lease()
    find = world.metadata.find_segment_extents
    read = await find([segment.name for segment in msgspec.msgpack.decode(lease.payload, type=CompactionJob).segments])

    async def stale(_: list[tuple[int, int]]) -> list[Extent]:
        return read

    await world.handler.run(lease.payload)
    world.metadata.find_segment_extents = stale  # type: ignore[method-assign]
    await world.handler.run(lease.payload)
    assert await world.extents() == [(0, 15, 1)]
    assert world.refused() == 2, "one for each partition"
    assert len([info async for info in world.store.list("segments/")]) == 9


async def test_one_range_that_changed_does_not_keep_the_others_from_it(world: World) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    swap = world.metadata.swap_extents

    async def race(agent_epoch: int, wanted: ExtentSwap) -> None:
        if not world.metadata.swaps:  # somebody else compacts partition 1 in the last moment
            key = "segments/other"
            found = await world.service.find_extents([ExtentsQuery(world.topic, 1, 0, 10**9)])
            first, last = found[0].extents[0], found[0].extents[-1]
            other = msgspec.structs.replace(first, last_offset=last.last_offset, segment_key=key, level=1)
            inputs = frozenset(each.segment_key for each in found[0].extents)
            await world.service.swap_extents(world.epoch, ExtentSwap(7 * 10**11, key, 9, 1, 1, inputs, (other,)))
        await swap(agent_epoch, wanted)

    world.metadata.swap_extents = race  # type: ignore[method-assign]
    await world.handler.run(lease.payload)
    assert await world.extents() == [(0, 15, 1)]
    assert world.refused() == 1


async def test_a_fenced_agent_changes_nothing(world: World) -> None:
    await world.ingest(8)
    (lease,) = await world.lease()
    await world.service.register_agent(registration())
    with pytest.raises(Fenced):
        await world.handler.run(lease.payload)
    assert len(await world.extents()) == 8
