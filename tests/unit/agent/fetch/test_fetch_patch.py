from __future__ import annotations

import struct

import pytest

from agent.fetch.patch import BORROW_BATCH_BYTES_MIN, CorruptSegment, Run, RunBuilder
from metadata.model import Extent
from tests.unit.agent.fetch.world import TOPIC, make_batch, records_of

SMALL = [make_batch([b"a", b"b"]), make_batch([b"c"]), make_batch([b"d"] * 5)]
LARGE = [make_batch([bytes([65 + i]) * BORROW_BATCH_BYTES_MIN, b"x"]) for i in range(3)]
MIXED = [LARGE[0], SMALL[0], SMALL[1], LARGE[1], SMALL[2]]


def extent_of(batches: list[bytes], base_offset: int = 100) -> Extent:
    count = sum(struct.unpack_from(">i", batch, 57)[0] for batch in batches)
    length = sum(map(len, batches))
    return Extent(TOPIC, 0, base_offset, base_offset + count - 1, "segments/1", 1000, length, 0, 0)


def build_run(extent: Extent, sources: list[memoryview]) -> Run:
    builder = RunBuilder(extent, sources)
    builder.advance(extent.byte_length)
    return builder.finish()


def cut(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[i : i + size] for i in range(0, len(data), size)]


def whole(run: Run) -> list[tuple[int, bytes]]:
    return records_of(run.slice(run.base_offset, 2**40, False).chunks)


@pytest.mark.parametrize("batches", [SMALL, LARGE, MIXED], ids=["small", "large", "mixed"])
@pytest.mark.parametrize("pieces", [7, 100, 4096, 10**9])
def test_offsets_are_dense_and_bytes_otherwise_untouched(batches: list[bytes], pieces: int) -> None:
    data = b"".join(batches)
    run = build_run(extent_of(batches), cut(data, pieces))
    values = [value for batch in batches for _, value in records_of([patched(batch)])]
    assert whole(run) == list(enumerate(values, 100))
    assert run.byte_length == len(data)
    assert run.last_offset == 100 + len(values) - 1
    assert run.borrowed == (batches is not SMALL)


def patched(batch: bytes) -> bytes:
    return batch[:12] + b"\0\0\0\0" + batch[16:]


def test_stored_bytes_are_not_changed() -> None:
    data = bytearray(b"".join(SMALL))
    before = bytes(data)
    build_run(extent_of(SMALL), [memoryview(data)])
    assert bytes(data) == before


@pytest.mark.parametrize("batches", [SMALL, LARGE, MIXED], ids=["small", "large", "mixed"])
def test_slices_begin_at_the_batch_that_holds_the_offset(batches: list[bytes]) -> None:
    run = build_run(extent_of(batches, 0), cut(b"".join(batches), 1000))
    everything = whole(run)
    base = 0
    for batch in batches:
        count = struct.unpack_from(">i", batch, 57)[0]
        for offset in range(base, base + count):
            part = run.slice(offset, 2**40, False)
            assert records_of(part.chunks) == everything[base:]
            assert part.byte_length == sum(map(len, part.chunks))
            assert part.record_count == len(everything) - base
            one = run.slice(offset, len(batch), False)
            assert records_of(one.chunks) == everything[base : base + count]
            assert one.next_offset == base + count
        base += count


def test_limits_hold_whole_batches_only() -> None:
    run = build_run(extent_of(SMALL, 0), cut(b"".join(SMALL), 10**6))
    assert run.slice(0, len(SMALL[0]) - 1, False).chunks == []
    assert run.slice(0, 0, True).record_count == 2
    assert run.slice(0, len(SMALL[0]) + len(SMALL[1]) - 1, True).record_count == 2
    assert run.slice(0, len(SMALL[0]) + len(SMALL[1]), True).record_count == 3


@pytest.mark.parametrize("batches", [SMALL[:1], SMALL], ids=["one batch", "several"])
def test_nothing_is_left_when_an_earlier_run_took_more_than_there_was(batches: list[bytes]) -> None:
    part = build_run(extent_of(batches), [memoryview(b"".join(batches))]).slice(100, -50, False)
    assert (part.chunks, part.byte_length, part.next_offset) == ([], 0, 100)


def test_zstd_is_noticed_in_any_batch() -> None:
    for attributes, expected in ((0, False), (1, False), (2, False), (3, False), (4, True)):
        batches = [SMALL[0], make_batch([b"z"], attributes=attributes), SMALL[1]]
        assert build_run(extent_of(batches), [memoryview(b"".join(batches))]).zstd is expected


def test_the_walk_can_be_taken_in_steps() -> None:
    batches = SMALL * 10
    builder = RunBuilder(extent_of(batches), [memoryview(b"".join(batches))])
    steps = 1
    while not builder.advance(4):
        steps += 1
    assert steps == 8
    assert len(whole(builder.finish())) == 80


def broken(batch: bytes, at: int, form: str, value: int) -> bytes:
    copy = bytearray(batch)
    struct.pack_into(form, copy, at, value)
    return bytes(copy)


@pytest.mark.parametrize("batches", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("at", "form", "value", "rule"),
    [
        (8, ">i", -1, "batch length -1"),
        (8, ">i", 48, "batch length 48"),
        (8, ">i", 2**31 - 1, "batch length 2147483647"),
        (16, ">b", 1, "magic 1"),
        (23, ">i", -5, "last offset delta -5"),
    ],
)
def test_a_bad_header_names_segment_position_and_rule(
    batches: list[bytes], at: int, form: str, value: int, rule: str
) -> None:
    bad = [batches[0], broken(batches[1], at, form, value), batches[2]]
    with pytest.raises(CorruptSegment, match=rule) as caught:
        build_run(extent_of(batches), cut(b"".join(bad), 5000))
    assert f"segment segments/1 at byte {1000 + len(batches[0])}:" in str(caught.value)


def test_offsets_must_add_up_to_what_was_committed() -> None:
    bad = [SMALL[0], broken(SMALL[1], 23, ">i", 7), SMALL[2]]
    with pytest.raises(CorruptSegment, match="end at offset 114, the metadata says 107"):
        build_run(extent_of(SMALL), [memoryview(b"".join(bad))])


@pytest.mark.parametrize("missing", [1, 60, 200])
def test_a_short_object_is_corrupt(missing: int) -> None:
    data = b"".join(SMALL)
    with pytest.raises(CorruptSegment, match="the object ends after"):
        build_run(extent_of(SMALL), [memoryview(data)[:-missing]])


def test_an_extent_that_ends_inside_a_header_is_corrupt() -> None:
    data = b"".join(SMALL) + b"\0" * 20
    extent = Extent(TOPIC, 0, 0, 7, "segments/1", 0, len(data), 0, 0)
    with pytest.raises(CorruptSegment, match="inside a batch header"):
        build_run(extent, [memoryview(data)])
