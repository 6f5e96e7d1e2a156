"""The segment format: layout, what damage is found, and the frozen bytes of version 1."""

from __future__ import annotations

import hashlib
import itertools

import crc32c
import pytest

from ingest.segment import (
    EncodedSegment,
    PartitionRun,
    SegmentName,
    check_segment,
    decode_footer,
    encode_segment,
    parse_segment_key,
)
from ingest.segment_ending import TRAILER_BYTES, SegmentCorrupt, ending_byte_length
from metadata.model import BatchDraft, ExtentDraft
from tests.support.batches import build_batch
from tests.support.ingest_fakes import TOPIC, pending


def run(partition: int, *batches: bytes, topic_id: bytes = TOPIC) -> PartitionRun:
    made = PartitionRun(topic_id, partition)
    for batch in batches:
        made.payloads.append(batch)
        made.batches.append(pending(batch).draft)
    return made


def whole(encoded: EncodedSegment) -> bytes:
    return b"".join(encoded.chunks())


SMALL = build_batch([b"small"])
LARGE = build_batch([b"large" * 10_000], producer_id=4, producer_epoch=1, base_sequence=2)


def test_runs_lie_back_to_back_and_describe_themselves() -> None:
    encoded = encode_segment(3, 8, 1234, [run(0, SMALL, LARGE), run(1, LARGE), run(0, SMALL, topic_id=bytes(16))])
    data = whole(encoded)
    assert len(data) == encoded.byte_length
    assert crc32c.crc32c(data) == encoded.crc32c
    assert data.startswith(SMALL + LARGE + LARGE + SMALL)
    footer = check_segment(data)
    assert (footer.agent_epoch, footer.sequence, footer.sealed_ms) == (3, 8, 1234)
    assert [ExtentDraft(e.topic_id, e.partition, e.byte_position, e.batches) for e in footer.extents] == list(
        encoded.extents
    )
    assert footer.extents[0].batches[1] == BatchDraft(len(LARGE), 1, 1_700_000_000_000, 4, 1, 2)


def test_large_batches_are_borrowed_and_small_ones_joined() -> None:
    encoded = encode_segment(1, 0, 0, [run(0, LARGE, LARGE), run(1, SMALL, SMALL), run(2, SMALL), run(3, LARGE)])
    assert [chunk is LARGE for _, chunk in encoded.data] == [True, True, False, True]
    assert encoded.data[2] == (2 * len(LARGE), SMALL * 3)
    assert encoded.copied_bytes == 3 * len(SMALL)


def test_joined_pieces_have_a_bounded_size() -> None:
    encoded = encode_segment(1, 0, 0, [run(n, *[SMALL] * 4000) for n in range(16)])
    assert len(encoded.data) > 2
    assert all(len(chunk) <= (1 << 20) + 4000 * len(SMALL) for _, chunk in encoded.data)
    assert len(check_segment(whole(encoded)).extents) == 16


def test_a_huge_batch_is_not_read_again_and_damage_to_it_shows_in_the_objects_checksum() -> None:
    batch = bytearray(build_batch([b"huge" * 100_000]))
    encoded = encode_segment(1, 0, 0, [run(0, SMALL, bytes(batch), SMALL), run(1, bytes(batch))])
    assert encoded.crc32c == crc32c.crc32c(whole(encoded))
    check_segment(whole(encoded))
    batch[5_000] ^= 1
    encoded = encode_segment(1, 0, 0, [run(0, bytes(batch))])
    assert encoded.crc32c != crc32c.crc32c(whole(encoded)), "the store would refuse it"
    with pytest.raises(SegmentCorrupt):
        check_segment(whole(encoded))


def test_a_run_can_be_checked_alone() -> None:
    """The checksum of its row continues the row's before it."""
    data = whole(encode_segment(1, 0, 0, [run(n, SMALL, LARGE) for n in range(4)]))
    extents = decode_footer(data, len(data)).extents
    for before, extent in itertools.pairwise(extents):
        alone = data[extent.byte_position : extent.byte_position + extent.byte_length]
        assert crc32c.crc32c(alone, before.crc32c) == extent.crc32c


def test_a_reader_needs_the_trailer_then_the_ending() -> None:
    data = whole(encode_segment(1, 0, 0, [run(0, LARGE)]))
    length = ending_byte_length(data[-TRAILER_BYTES:])
    assert decode_footer(data[-length:], len(data)) == check_segment(data)
    with pytest.raises(SegmentCorrupt):
        decode_footer(data[-length + 1 :], len(data))


def test_an_empty_segment_is_a_segment() -> None:
    data = whole(encode_segment(1, 0, 0, []))
    assert check_segment(data).extents == ()


def test_every_flipped_byte_is_found() -> None:
    data = whole(encode_segment(1, 0, 0, [run(0, SMALL, SMALL), run(1, SMALL)]))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        with pytest.raises(SegmentCorrupt):
            check_segment(damaged)


def test_every_cut_is_found() -> None:
    data = whole(encode_segment(1, 0, 0, [run(0, SMALL)]))
    for end in range(len(data)):
        with pytest.raises(SegmentCorrupt):
            check_segment(data[:end])
        with pytest.raises(SegmentCorrupt):
            check_segment(data[end + 1 :])


def test_a_footer_that_lies_about_a_batch_is_found() -> None:
    lying = run(0, SMALL)
    lying.batches[0] = BatchDraft(len(SMALL), 7, 1_700_000_000_000)
    with pytest.raises(SegmentCorrupt, match="record_count=7"):
        check_segment(whole(encode_segment(1, 0, 0, [lying])))


def test_a_batch_damaged_before_it_was_sealed_is_found() -> None:
    damaged = bytearray(SMALL)
    damaged[-1] ^= 1
    with pytest.raises(SegmentCorrupt, match="own CRC32C"):
        check_segment(whole(encode_segment(1, 0, 0, [run(0, bytes(damaged))])))


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([run(0, SMALL), run(0, SMALL)], "footer row"),
        ([run(0, SMALL, topic_id=b"short")], "footer row"),
    ],
)
def test_impossible_layouts_are_found(runs: list[PartitionRun], complaint: str) -> None:
    with pytest.raises(SegmentCorrupt, match=complaint):
        check_segment(whole(encode_segment(1, 0, 0, runs)))


@pytest.mark.parametrize("runs", [[run(0)], [run(0), run(1, SMALL)], [run(0, SMALL), run(1)]])
def test_a_run_without_batches_is_not_written(runs: list[PartitionRun]) -> None:
    with pytest.raises(ValueError, match="without batches"):
        encode_segment(1, 0, 0, runs)


def test_version_1_stays_readable() -> None:
    """A segment written by the first release; never change these bytes, add a version instead."""
    frozen = bytes.fromhex(FROZEN)
    footer = check_segment(frozen)
    assert (footer.agent_epoch, footer.sequence, footer.sealed_ms) == (7, 42, 1_700_000_000_123)
    assert [(e.partition, e.byte_position, e.byte_length) for e in footer.extents] == [(0, 0, 73), (5, 73, 73)]
    assert hashlib.sha256(frozen[:146]).hexdigest() == hashlib.sha256(build_batch([b"value"]) * 2).hexdigest()


FROZEN = (
    "00000000000000000000003dffffffff02989487090000000000000000018bcfe568000000018bcfe56800ffffffffffffffffffffffff"
    "ffff0000000116000000010a76616c75650000000000000000000000003dffffffff02989487090000000000000000018bcfe568000000"
    "018bcfe56800ffffffffffffffffffffffffffff0000000116000000010a76616c75650028b52ffd2063250200840394072acf0000018b"
    "cfe5687b9296c410000102030405060708090a0b0c0d0e0f000049ce9106786d9196490100ffffff054949ced714e150030000e14e2542"
    "46a8320000004d0000006300010000e56a3a7c544944454c4f4700"
)


def test_keys_say_who_wrote_what_and_are_spread() -> None:
    names = [SegmentName(12, sequence, 1, 0xDEADBEEF) for sequence in range(200)]
    for name in names:
        assert parse_segment_key(name.key) == name
    assert SegmentName(12, 5, 1, 0xDEADBEEF).key.endswith("/0000000012-000000000005-01-deadbeef")
    assert len({name.key.split("/")[1] for name in names}) == 16
    assert len({SegmentName(1, 1, attempt, 1).key for attempt in range(120)}) == 120


@pytest.mark.parametrize(
    "key",
    ["", "segments/", "other/0/0000000012-000000000005-01-deadbeef", "segments/0/1-2-3-4", "segments/0/a-b-c-d"],
)
def test_other_keys_are_not_ours(key: str) -> None:
    with pytest.raises(ValueError, match="not a segment's key"):
        parse_segment_key(key)
    with pytest.raises(ValueError, match="not a segment's key"):
        parse_segment_key(SegmentName(1, 2, 3, 4).key + "0")
