"""Kafka's rules for compaction by key, batch by batch."""

from __future__ import annotations

import struct

import crc32c
import pytest

from ingest.batch_header import BatchHeader
from ingest.compaction.clean import DELETE_HORIZON_BIT, OffsetMap, Rules, clean_batch, empty_batch
from ingest.compression import iterate_records
from storage.store import Chunk
from tests.support.batches import CODECS, build_batch

NOW, RETENTION = 1_800_000_000_000, 1_000
RULES = Rules(NOW, RETENTION)
T0 = 1_700_000_000_000


def offset_map(*batches: bytes, keys_max: int = 1_000) -> OffsetMap:
    offsets = OffsetMap(keys_max)
    for batch in batches:
        header = BatchHeader.parse(batch)
        last = header.base_offset + header.last_offset_delta
        assert offsets.add(header.base_offset, last, iterate_records(batch, dense=False))
    return offsets


def records(batch: Chunk | None) -> list[tuple[int, bytes | None, bytes | None, int]]:
    """(offset, key, value, timestamp); the batch is whole and its checksum right."""
    if batch is None:
        return []
    header = BatchHeader.parse(batch)
    assert header.byte_length == len(batch)
    assert crc32c.crc32c(bytes(batch[21:])) == header.crc
    found = [
        (header.base_offset + each.offset_delta, each.key, each.value, each.timestamp_ms)
        for each in iterate_records(batch, dense=False)
    ]
    assert len(found) == header.record_count
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_the_last_value_of_each_key_stays_where_it_was(codec: str) -> None:
    batch = build_batch(
        [(b"a", b"1"), (b"b", b"2", [("h", b"x"), ("n", None)]), (b"a", b"3"), (b"c", b"4")],
        codec=codec,
        timestamps_ms=[T0, T0 + 1, T0 + 2, T0 + 7],
        base_timestamp_ms=T0,
        base_offset=100,
        producer_id=7,
        producer_epoch=1,
        base_sequence=20,
    )
    later = build_batch([(b"c", b"5")], base_offset=104)
    cleaned = clean_batch(batch, offset_map(batch, later), RULES, 1 << 20)
    assert records(cleaned) == [(101, b"b", b"2", T0 + 1), (102, b"a", b"3", T0 + 2)]
    assert cleaned is not None
    before, after = BatchHeader.parse(batch), BatchHeader.parse(cleaned)
    assert (after.base_offset, after.last_offset_delta, after.codec) == (100, 3, before.codec)
    assert (after.producer_id, after.producer_epoch, after.base_sequence) == (7, 1, 20)
    assert (after.base_timestamp_ms, after.max_timestamp_ms, after.record_count) == (T0 + 1, T0 + 2, 2)
    assert next(iterate_records(cleaned, dense=False)).headers == ((b"h", b"x"), (b"n", None))
    assert clean_batch(cleaned, offset_map(batch, later), RULES, 1 << 20) is cleaned, "nothing more to do"


def test_what_lies_behind_the_map_stays_and_a_batch_may_go_whole() -> None:
    old, new = build_batch([(b"a", b"1")], base_offset=0), build_batch([(b"a", b"2")], base_offset=1)
    offsets = offset_map(old, new)
    assert clean_batch(old, offsets, RULES, 1 << 20) is None
    assert clean_batch(new, offsets, RULES, 1 << 20) is new
    behind = build_batch([(b"z", None), (None, b"no key")], base_offset=2)
    assert len(records(clean_batch(behind, offsets, RULES, 1 << 20))) == 2
    within = build_batch([(None, b"no key"), (b"q", b"1")], base_offset=0)
    assert records(clean_batch(within, offset_map(within), RULES, 1 << 20)) == [(1, b"q", b"1", T0)]


def test_a_tombstone_gets_a_horizon_and_goes_when_it_has_passed() -> None:
    batch = build_batch([(b"a", b"1"), (b"a", None), (b"b", b"2")], base_offset=5, timestamps_ms=[T0, T0 + 4, T0 + 9])
    offsets = offset_map(batch)
    first = clean_batch(batch, offsets, RULES, 1 << 20)
    assert first is not None
    header = BatchHeader.parse(first)
    assert header.attributes & DELETE_HORIZON_BIT
    assert header.base_timestamp_ms == NOW + RETENTION
    assert records(first) == [(6, b"a", None, T0 + 4), (7, b"b", b"2", T0 + 9)], "clients read the same times"
    almost = Rules(NOW + RETENTION - 1, RETENTION)
    assert clean_batch(first, offsets, almost, 1 << 20) is first
    passed = clean_batch(first, offsets, Rules(NOW + RETENTION, RETENTION), 1 << 20)
    assert records(passed) == [(7, b"b", b"2", T0 + 9)]
    assert passed is not None
    assert BatchHeader.parse(passed).attributes & DELETE_HORIZON_BIT, "as in Kafka, it stays with the batch"


def test_log_append_time_is_the_batches() -> None:
    batch = build_batch([(b"a", b"1"), (b"a", b"2")], attributes=8, max_timestamp_ms=T0 + 50, base_offset=3)
    assert records(clean_batch(batch, offset_map(batch), RULES, 1 << 20)) == [(4, b"a", b"2", T0 + 50)]


def test_an_empty_batch_stands_for_offsets() -> None:
    header = BatchHeader.parse(batch := empty_batch(10, 19))
    assert (header.base_offset, header.last_offset_delta, header.record_count, header.magic) == (10, 9, 0, 2)
    assert records(batch) == []
    assert struct.unpack_from(">i", batch, 8)[0] == len(batch) - 12


def test_the_map_is_bounded() -> None:
    offsets = OffsetMap(2)
    full = build_batch([(b"a", b"1"), (b"b", b"1"), (b"a", b"2")])
    assert offsets.add(0, 2, iterate_records(full))
    assert not offsets.add(3, 3, iterate_records(build_batch([(b"c", b"1")])))
    assert (len(offsets), offsets.end_offset) == (2, 2)
    assert offsets.is_last(b"a", 2)
    assert not offsets.is_last(b"a", 0)
