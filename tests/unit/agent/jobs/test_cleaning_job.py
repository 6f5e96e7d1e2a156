"""Compaction by key as a job: what is cleaned and when, and that a tombstone never goes before what it deletes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from agent.jobs.cleaning import CleanPartitions
from agent.jobs.swapping import Swapper
from ingest.compaction import cleaner as module
from ingest.compaction.cleaner import Cleaner, cleanable
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import SegmentNames
from ingest.compression import iterate_records
from ingest.segment import PartitionRun, check_segment, encode_segment
from metadata.client import MetadataClient
from metadata.compaction import CLEANED_LEVEL, CleanJob, ExtentSwap
from metadata.model import Extent, ExtentsQuery, Refusal, Refused, SegmentCommit
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.budget import Budget
from runtime.clock import SeededEntropy
from storage.memory import MemoryStore
from tests.support.batches import build_batch
from tests.support.ingest_fakes import pending
from tests.support.metadata import SettableClock, registration, running_service

JOB = CleanJob(bytes(16), 0, 0.5, 0, 2**62, 1_000, 0)
LATER_MS = 10_000


def extent(base: int, *, level: int = 0, size: int = 100, timestamp: int = 0, commit_ms: int = 0) -> Extent:
    return Extent(bytes(16), 0, base, base + 9, "s", 0, size, timestamp, commit_ms, level)


CLEAN, DIRTY = extent(0, level=CLEANED_LEVEL), extent(10)


@pytest.mark.parametrize(
    ("extents", "job", "count"),
    [
        ([CLEAN], JOB, 0),
        ([CLEAN, DIRTY], JOB, 2),
        ([CLEAN, extent(10, size=99)], JOB, 0),
        ([CLEAN, extent(10, size=99)], msgspec.structs.replace(JOB, lag_ms_max=999), 2),
        ([DIRTY, extent(20, timestamp=600)], msgspec.structs.replace(JOB, lag_ms_min=500), 1),
        ([DIRTY, extent(20, commit_ms=501)], msgspec.structs.replace(JOB, age_ms_min=500), 1),
        ([extent(0, commit_ms=501), DIRTY], msgspec.structs.replace(JOB, age_ms_min=500), 0),
        ([CLEAN, DIRTY, extent(20, level=CLEANED_LEVEL)], JOB, 3),
    ],
)
def test_what_is_cleaned_when(extents: list[Extent], job: CleanJob, count: int) -> None:
    assert len(cleanable(extents, job, 1_000)) == count


class World:
    """A compacted topic of one partition, in memory."""

    def __init__(self, service: MetadataService, clock: SettableClock) -> None:
        self.service, self.clock = service, clock
        self.store = MemoryStore(clock)
        self.swap = service.swap_extents
        self.budget = Budget(512 << 20)
        metrics = CompactionMetrics(CollectorRegistry())
        throttle, names = Throttle(10**12, clock), SegmentNames(SeededEntropy(1))
        self.cleaner = Cleaner(self.store, names, throttle, self.budget, clock, metrics, 64 << 20)
        client = cast("MetadataClient", self)
        swapper = Swapper(self.store, client, clock, metrics)
        self.handler = CleanPartitions(client, self.cleaner, swapper, lambda: self.epoch, clock, asyncio.Lock())
        self.partition_offsets, self.find_extents = service.partition_offsets, service.find_extents
        self.epoch, self.topic, self.sequence = -1, b"", 0

    async def swap_extents(self, agent_epoch: int, swap: ExtentSwap) -> None:
        await self.swap(agent_epoch, swap)

    async def start(self) -> None:
        self.epoch = (await self.service.register_agent(registration())).agent_epoch
        self.topic = (await self.service.create_topic("keyed", 1, {"cleanup.policy": "compact"})).topic_id

    async def produce(self, *records: tuple[bytes, bytes | None]) -> None:
        """A segment with one batch."""
        run = PartitionRun(self.topic, 0)
        run.payloads.append(batch := build_batch(records))
        run.batches.append(pending(batch).draft)
        encoded = encode_segment(self.epoch, self.sequence, 0, [run])
        key = f"segments/{self.sequence}"
        await self.store.put(key, encoded.chunks(), encoded.crc32c)
        commit = SegmentCommit(self.sequence, key, encoded.byte_length, encoded.extents)
        await self.service.commit_segments(self.epoch, self.sequence - 1, [commit])
        self.sequence += 1

    async def clean(self, retention_ms: int = 1_000) -> None:
        self.clock.wall_ms += LATER_MS
        job = CleanJob(self.topic, 0, 0.0, 0, 2**62, retention_ms, 0)
        await self.handler.run(msgspec.msgpack.encode(job))
        assert self.budget.held_bytes == 0

    async def read(self) -> list[tuple[int, bytes | None, bytes | None]]:
        (found,) = await self.service.find_extents([ExtentsQuery(self.topic, 0, 0, 10**9)])
        records, offset = [], 0
        for each in found.extents:
            assert each.base_offset == offset, "extents tile the offsets"
            offset = each.last_offset + 1
            if each.level:
                check_segment(await self.store.get(each.segment_key))
            data = await self.store.get(each.segment_key, each.byte_position, each.byte_length)
            base = each.base_offset
            for batch in module._batches(data):
                base = module._span(batch)[0] if each.level else base
                for record in iterate_records(batch, dense=False):
                    records.append((base + record.offset_delta, record.key, record.value))
        assert offset == found.high_watermark
        return records


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = SettableClock()
    async with running_service(MemoryMetadataStore(), clock) as service:
        world = World(service, clock)
        await world.start()
        yield world


async def test_the_last_of_each_key_stays_and_a_tombstone_for_its_time(world: World) -> None:
    await world.produce((b"a", b"1"), (b"b", b"1"))
    await world.produce((b"a", b"2"), (b"c", b"1"))
    await world.produce((b"b", None), (b"a", b"3"))
    await world.clean(retention_ms=LATER_MS + 1)
    expected = [(3, b"c", b"1"), (4, b"b", None), (5, b"a", b"3")]
    assert await world.read() == expected
    await world.produce((b"d", b"1"))
    await world.clean(retention_ms=0)
    assert await world.read() == [*expected, (6, b"d", b"1")], "the horizon was set by the first cleaning"
    await world.produce((b"d", b"2"))
    await world.clean(retention_ms=0)
    assert await world.read() == [(3, b"c", b"1"), (5, b"a", b"3"), (7, b"d", b"2")]


async def test_offsets_whose_records_are_gone_are_kept_by_an_empty_batch(world: World) -> None:
    await world.produce((b"a", None), (b"a", None))
    await world.clean(retention_ms=0)
    await world.produce((b"b", None))
    await world.clean(retention_ms=0)
    await world.produce((b"b", None))
    await world.clean(retention_ms=0)
    assert [key for _, key, _ in await world.read()] in ([b"b"], [])


async def test_nothing_is_swapped_behind_a_swap_that_was_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a tombstone could go while what it deletes is still there, and come back to life."""
    await world.produce((b"a", b"old"))
    await world.produce((b"a", None))
    await world.produce((b"z", b"1"))
    before = await world.read()
    monkeypatch.setattr(module, "SWAPPED_EXTENTS_MAX", 1)  # each extent by itself
    swap, asked = world.swap, []

    async def refuse_first(agent_epoch: int, wanted: ExtentSwap) -> None:
        asked.append(wanted.extents[0].base_offset)
        raise Refused(Refusal.INVALID_REQUEST, "somebody else was here")

    world.swap = refuse_first  # type: ignore[method-assign]
    world.cleaner._segment_bytes_max = 1
    with pytest.raises(Refused):
        await world.clean(retention_ms=0)
    assert asked == [0]
    assert await world.read() == before
    world.swap = swap  # type: ignore[method-assign]
    await world.clean(retention_ms=0)
    assert b"old" not in [value for _, _, value in await world.read()]


async def test_as_many_keys_as_have_room_are_cleaned_at_a_time(world: World) -> None:
    for number in range(6):
        await world.produce((b"k%d" % number, b"x"), (b"same", b"%d" % number))
    world.cleaner._keys_max = 4
    await world.clean()
    found = await world.read()
    assert [value for _, key, value in found if key == b"same"] == [b"1", b"2", b"3", b"4", b"5"]
    await world.clean()
    await world.clean()
    assert [value for _, key, value in await world.read() if key == b"same"] == [b"5"]
    assert len([key for _, key, _ in await world.read() if key != b"same"]) == 6


async def test_more_keys_than_there_can_be_room_for_are_refused_by_name(world: World) -> None:
    await world.produce((b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
    world.cleaner._keys_max = 2
    with pytest.raises(ValueError, match="more than 2 keys"):
        await world.clean()
