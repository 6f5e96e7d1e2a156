"""Segments of random runs round-trip; random bytes and random damage are never a segment."""

from __future__ import annotations

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.segment import PartitionRun, check_segment, decode_footer, encode_segment
from ingest.segment_ending import SegmentCorrupt
from tests.support.batches import build_batch
from tests.support.ingest_fakes import pending

RUNS = st.lists(
    st.tuples(
        st.binary(min_size=16, max_size=16),
        st.integers(0, 2**31 - 1),
        st.lists(st.sampled_from([0, 10, 1_000, 20_000, 300_000]), min_size=1, max_size=6),
    ),
    max_size=8,
    unique_by=lambda run: run[:2],
)


def encode(runs: list[tuple[bytes, int, list[int]]]) -> bytes:
    made = []
    for topic_id, partition, sizes in runs:
        run = PartitionRun(topic_id, partition)
        for size in sizes:
            batch = pending(build_batch([b"v" * size]))
            run.payloads.append(memoryview(batch.payload))
            run.batches.append(batch.draft)
        made.append(run)
    encoded = encode_segment(1, 2, 3, made)
    data = b"".join(encoded.chunks())
    assert (len(data), crc32c.crc32c(data)) == (encoded.byte_length, encoded.crc32c)
    positions = [position for position, _ in encoded.data]
    assert positions == [sum(len(chunk) for _, chunk in encoded.data[:index]) for index in range(len(positions))]
    return data


@settings(deadline=None)
@given(RUNS)
def test_runs_round_trip(runs: list[tuple[bytes, int, list[int]]]) -> None:
    footer = check_segment(encode(runs))
    assert [(extent.topic_id, extent.partition, len(extent.batches)) for extent in footer.extents] == [
        (topic_id, partition, len(sizes)) for topic_id, partition, sizes in runs
    ]


@settings(deadline=None)
@given(RUNS, st.integers(0, 2**31), st.integers(1, 255))
def test_damage_anywhere_is_found(runs: list[tuple[bytes, int, list[int]]], position: int, change: int) -> None:
    data = bytearray(encode(runs))
    data[position % len(data)] ^= change
    with pytest.raises(SegmentCorrupt):
        check_segment(data)


@given(st.binary(max_size=500), st.integers(0, 600))
def test_random_bytes_are_no_segment(data: bytes, object_byte_length: int) -> None:
    with pytest.raises(SegmentCorrupt):
        check_segment(data)
    with pytest.raises(SegmentCorrupt):
        decode_footer(data, object_byte_length)
