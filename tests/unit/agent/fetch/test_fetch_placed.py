"""Placed extents, whose batches carry their offsets: served as they lie, gaps and all, large ones by one GET."""

from __future__ import annotations

import struct

import pytest

from agent.fetch.patch import CorruptSegment
from agent.fetch.placed import EXACT_BYTES_MIN, PlacedRunBuilder, run_builder
from metadata.model import Extent
from tests.support.batches import build_batch
from tests.unit.agent.fetch.world import TOPIC, World, make_batch, records_of


def at(batch: bytes, base_offset: int) -> bytes:
    return struct.pack(">q", base_offset) + batch[8:12] + bytes(4) + batch[16:]


BATCHES = [at(make_batch([b"a", b"b"]), 10), at(make_batch([b"c"]), 20), at(make_batch([b"d"] * 3), 21)]
EXTENT = Extent(TOPIC, 0, 5, 23, "segments/1", 1_000, sum(map(len, BATCHES)), 0, 0, 1)


def build(extent: Extent, data: bytes, size: int = 10**9):  # type: ignore[no-untyped-def]
    builder = PlacedRunBuilder(extent, [memoryview(data)[i : i + size] for i in range(0, len(data), size)])
    while not builder.advance(1):
        pass
    return builder.finish()


@pytest.mark.parametrize("size", [7, 100, 10**9])
def test_offsets_are_the_batches_own_and_gaps_are_skipped(size: int) -> None:
    run = build(EXTENT, b"".join(BATCHES), size)
    everything = [(10, b"a"), (11, b"b"), (20, b"c"), (21, b"d"), (22, b"d"), (23, b"d")]
    for offset, expected in ((5, everything), (10, everything), (11, everything), (12, everything[2:])):
        assert records_of(run.slice(offset, 2**40, False).chunks) == expected
    assert records_of(run.slice(23, 2**40, False).chunks) == everything[3:]
    assert run.slice(5, len(BATCHES[0]), False).next_offset == 12
    assert (run.base_offset, run.last_offset, run.byte_length) == (5, 23, EXTENT.byte_length)


def test_large_extents_in_one_buffer_are_not_copied() -> None:
    batch = at(make_batch([b"x" * EXACT_BYTES_MIN]), 5)
    extent = Extent(TOPIC, 0, 5, 5, "segments/1", 0, len(batch), 0, 0, 1)
    run = build(extent, batch)
    assert run.borrowed
    assert run.held_bytes < 1_000
    assert not build(extent, batch, 1_000_000).borrowed
    assert isinstance(run_builder(extent, [memoryview(batch)]), PlacedRunBuilder)


@pytest.mark.parametrize(
    ("batches", "last", "rule"),
    [
        ([BATCHES[1], BATCHES[0]], 23, "base offset 10, 21 or more is next"),
        (BATCHES, 22, "base offset 21, 21 or more is next"),
        (BATCHES, 24, "end at offset 23, the metadata says 24"),
        ([at(make_batch([b"a"]), 4)], 4, "base offset 4, 5 or more is next"),
        ([BATCHES[0][:16] + b"\1" + BATCHES[0][17:]], 11, "magic 1"),
        ([BATCHES[0][:30]], 11, "no batch|inside a batch header"),
    ],
)
def test_what_contradicts_the_metadata_is_corrupt(batches: list[bytes], last: int, rule: str) -> None:
    data = b"".join(batches)
    with pytest.raises(CorruptSegment, match=rule):
        build(Extent(TOPIC, 0, 5, last, "segments/1", 0, len(data), 0, 0, 1), data)
    with pytest.raises(CorruptSegment, match="the object ends after"):
        build(Extent(TOPIC, 0, 5, last, "segments/1", 0, len(data) + 1, 0, 0, 1), data)


async def placed(world: World, sizes: list[int]) -> list[Extent]:
    """A compacted segment of partition 0 with extents of about these sizes, each of two batches with a gap between."""
    log = world.metadata.logs[TOPIC, 0]
    data = b""
    for size in sizes:
        base = log.high_watermark
        batches = at(make_batch([b"1" * (size // 2)]), base) + at(make_batch([b"2" * (size // 2)]), base + 5)
        log.extents.append(Extent(TOPIC, 0, base, base + 5, "segments/c", len(data), len(batches), 0, 0, 1))
        log.high_watermark = base + 6
        data += batches
    await world.store.put("segments/c", [data, b"footer"], 0)
    return log.extents


async def test_a_large_extent_is_one_get_of_exactly_its_bytes() -> None:
    world = World()
    world.create()
    extents = await placed(world, [EXACT_BYTES_MIN + 77, 2 * EXACT_BYTES_MIN + 5, 3_000])
    offset = 0
    seen = []
    while offset < 18:
        fetched = await world.fetch(offset, partition_bytes=100)
        records = records_of(fetched.partitions[0].chunks)
        seen += [each for each, _ in records]
        offset = records[-1][0] + 1
        fetched.release()
    assert seen == [0, 5, 6, 11, 12, 17]
    exact = [(key, start) for key, start in world.store.gets if start in (0, extents[1].byte_position)]
    assert exact == [("segments/c", 0), ("segments/c", extents[1].byte_position)]
    await world.settle()
    assert world.budget.held_bytes == 0


async def test_an_extent_that_was_compacted_away_is_resolved_again() -> None:
    world = World()
    world.create()
    (old,) = await world.write([(0, [make_batch([b"a", b"b"])])], tail=False)
    (await world.fetch(0)).release()  # the old extent is known here
    log = world.metadata.logs[TOPIC, 0]
    batch = at(make_batch([b"a", b"b"]), 0)
    log.extents[0] = Extent(TOPIC, 0, 0, 1, "segments/c", 0, len(batch), 0, 0, 1)
    await world.store.put("segments/c", [batch], 0)
    await world.store.delete([old.segment_key])
    world.evict()
    fetched = await world.fetch(0)
    assert records_of(fetched.partitions[0].chunks) == [(0, b"a"), (1, b"b")]
    fetched.release()


def test_an_empty_batch_moves_a_consumer_on() -> None:
    empty = build_batch([], base_offset=10, last_offset_delta=13)
    run = build(Extent(TOPIC, 0, 5, 23, "segments/1", 0, len(empty), 0, 0, 1), empty)
    assert run.slice(7, 2**40, False).next_offset == 24
