"""From extents to compacted segments: the same records at the same offsets, damage skipped, memory and pace bound."""

from __future__ import annotations

import asyncio
import struct

import pytest
from prometheus_client import CollectorRegistry

from ingest.compacted_segment import CompactedFooter
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.rewrite import PURPOSE, Rewriter
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import SegmentNames, WrittenSegment
from ingest.compression import iterate_records
from ingest.segment import PartitionRun, check_segment, encode_segment, parse_segment_key
from metadata.compaction import FINISHED_LEVEL
from metadata.job_model import COMPACTED_SEQUENCE_MIN
from metadata.model import Extent
from runtime.budget import Budget
from runtime.clock import SeededEntropy
from storage.memory import MemoryStore
from storage.store import ObjectNotFound
from tests.support.batches import build_batch
from tests.support.ingest_fakes import pending
from tests.support.virtual_time import VirtualClock

TOPIC = bytes(range(16))
MIB = 1 << 20


class World:
    """A store with ingested segments, and a rewriter."""

    def __init__(self, segment_bytes_max: int = 64 * MIB, bytes_per_second: int = 10**12) -> None:
        clock = VirtualClock()
        self.store = MemoryStore(clock)
        self.budget = Budget(512 * MIB)
        self.registry = CollectorRegistry()
        self.held_bytes_max = 0
        self.extents: list[Extent] = []
        self.values: dict[int, list[bytes]] = {}
        self._sequence = 0
        self.throttle = Throttle(bytes_per_second, clock)
        self.rewriter = Rewriter(
            self.store,
            SegmentNames(SeededEntropy(1)),
            self.throttle,
            self.budget,
            clock,
            CompactionMetrics(self.registry),
            segment_bytes_max,
        )

    async def ingest(self, *parts: tuple[int, list[bytes]]) -> None:
        """One segment; each batch of a partition holds two records, made of one value."""
        self._sequence += 1
        key = f"segments/{self._sequence}"
        runs = []
        for partition, values in parts:
            run = PartitionRun(TOPIC, partition)
            for value in values:
                batch = build_batch([value, value + b"'"])
                run.payloads.append(batch)
                run.batches.append(pending(batch).draft)
            runs.append(run)
        encoded = encode_segment(1, self._sequence, 0, runs)
        await self.store.put(key, encoded.chunks(), encoded.crc32c)
        for draft, (partition, values) in zip(encoded.extents, parts, strict=True):
            known = self.values.setdefault(partition, [])
            length = sum(batch.byte_length for batch in draft.batches)
            base = len(known)
            known += [each for value in values for each in (value, value + b"'")]
            self.extents.append(
                Extent(TOPIC, partition, base, len(known) - 1, key, draft.byte_position, length, self._sequence, 7)
            )

    async def rewrite(self, extents: list[Extent] | None = None, level: int = 0) -> list[WrittenSegment]:
        written = []
        async for segment in self.rewriter.rewrite(self.extents if extents is None else extents, level, 4):
            written.append(segment)
            self.held_bytes_max = max(self.held_bytes_max, self.budget.by_purpose[PURPOSE])
        assert self.budget.held_bytes == 0
        return written

    async def read(self, extent: Extent) -> list[tuple[int, bytes]]:
        """The records of a placed extent, with their offsets."""
        data = await self.store.get(extent.segment_key, extent.byte_position, extent.byte_length)
        found = []
        position = 0
        while position < len(data):
            base, length, leader_epoch = struct.unpack_from(">qii", data, position)
            assert leader_epoch == 0
            end = position + length + 12
            found += [(base + each.offset_delta, each.value or b"") for each in iterate_records(data[position:end])]
            position = end
        return found


async def check(world: World, written: list[WrittenSegment]) -> None:
    """Every record is there once, at its offset, and the segments explain themselves."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    for segment in written:
        footer = check_segment(await world.store.get(segment.segment_key))
        assert isinstance(footer, CompactedFooter)
        assert (footer.level, footer.sequence) == (segment.level, segment.sequence)
        assert [(e.partition, e.base_offset, e.last_offset, e.byte_position) for e in footer.extents] == [
            (e.partition, e.base_offset, e.last_offset, e.byte_position) for e in segment.extents
        ]
        for extent, replaced in zip(segment.extents, segment.replaces, strict=True):
            assert (extent.segment_key, extent.level) == (segment.segment_key, segment.level)
            assert (replaced[0].base_offset, replaced[-1].last_offset) == (extent.base_offset, extent.last_offset)
            assert extent.max_timestamp_ms == max(each.max_timestamp_ms for each in replaced)
            found.setdefault(extent.partition, []).extend(await world.read(extent))
    assert found == {partition: list(enumerate(values)) for partition, values in world.values.items()}


@pytest.mark.parametrize("size", [10, 20_000], ids=["copied", "borrowed"])
async def test_the_same_records_at_the_same_offsets_in_one_segment(size: int) -> None:
    world = World()
    for n in range(5):
        await world.ingest((2, [bytes([n]) * size] * 3), (0, [bytes([n + 9]) * size]))
    written = await world.rewrite()
    assert [[(e.partition, e.base_offset, e.last_offset) for e in each.extents] for each in written] == [
        [(0, 0, 9), (2, 0, 29)]
    ]
    await check(world, written)
    name = parse_segment_key(written[0].segment_key)
    assert (name.agent_epoch, name.sequence) == (4, COMPACTED_SEQUENCE_MIN)
    again = await world.rewrite([extent for each in written for extent in each.extents], level=1)
    assert again[0].level == 2
    assert parse_segment_key(again[0].segment_key).sequence == COMPACTED_SEQUENCE_MIN + 1
    await check(world, [WrittenSegment(*_fields(again[0]))])


def _fields(segment: WrittenSegment) -> tuple[object, ...]:
    return tuple(getattr(segment, name) for name in segment.__dataclass_fields__)


async def test_segments_are_filled_and_memory_is_bounded_by_one() -> None:
    world = World(segment_bytes_max=100_000)
    for n in range(10):
        await world.ingest(*[(partition, [bytes([n]) * 5_000]) for partition in range(4)])
    written = await world.rewrite()
    assert len(written) > 3
    assert all(segment.byte_length <= 101_000 for segment in written)
    assert all(segment.byte_length > 50_000 for segment in written[:-1])
    await check(world, written)


async def test_a_segment_of_large_extents_is_finished() -> None:
    world = World()
    for n in range(6):
        await world.ingest((0, [bytes([n]) * MIB]))
    written = await world.rewrite()
    assert [segment.level for segment in written] == [FINISHED_LEVEL]
    await check(world, written)


async def test_damage_is_left_where_it_is_and_everything_else_compacted() -> None:
    world = World()
    for n in range(3):
        await world.ingest((0, [bytes([n]) * 100]), (1, [bytes([n]) * 100]))
    damaged = world.extents[2]
    whole = bytearray(await world.store.get(damaged.segment_key))
    whole[damaged.byte_position + 100] ^= 1
    await world.store.delete([damaged.segment_key])
    await world.store.put(damaged.segment_key, [bytes(whole)], 0)
    written = await world.rewrite()
    assert [[extent.partition for extent in segment.extents] for segment in written] == [[1]]
    assert world.registry.get_sample_value("tidelog_compaction_corrupt_extents_total") == 1


async def test_an_object_that_is_gone_ends_the_job_and_gives_memory_back() -> None:
    world = World()
    await world.ingest((0, [b"x"]))
    await world.store.delete(["segments/1"])
    with pytest.raises(ObjectNotFound):
        await world.rewrite()
    assert world.budget.held_bytes == 0


async def test_bytes_are_moved_no_faster_than_allowed() -> None:
    world = World(bytes_per_second=MIB)
    await world.ingest((0, [b"x" * (MIB // 8)]))
    clock = VirtualClock()
    began = clock.monotonic()
    await world.rewrite()
    await world.throttle.spend(0)
    assert clock.monotonic() - began == pytest.approx(0.5, rel=0.01), "a quarter of a mebibyte read, as much written"


async def test_nothing_is_begun_while_clients_need_the_memory() -> None:
    world = World()
    await world.ingest((0, [b"x"]))
    world.budget.take("request", 512 * MIB)
    rewriting = asyncio.create_task(world.rewriter.rewrite(world.extents, 0, 4).__anext__())
    await asyncio.sleep(0.3)
    assert not rewriting.done()
    assert world.registry.get_sample_value("tidelog_compaction_reads_total") == 0
    world.budget.give("request", 512 * MIB)
    assert (await rewriting).extents
