"""Version 2 of the segment format: what is written is found again, and whatever does not fit is found out."""

from __future__ import annotations

import hashlib
import struct

import crc32c
import pytest

from ingest.compacted_segment import CompactedFooter, PlacedExtent, encode_compacted_segment
from ingest.segment import check_segment, decode_footer
from ingest.segment_ending import TRAILER_BYTES, SegmentCorrupt, ending_byte_length
from tests.support.batches import build_batch

TOPIC = bytes(range(16))


def placed(
    partition: int, *batches: bytes, base: int = 0, last: int | None = None, topic_id: bytes = TOPIC
) -> PlacedExtent:
    """``batches`` carry their offsets; the extent ends with the last one unless ``last`` says otherwise."""
    extent = PlacedExtent(topic_id, partition, base)
    extent.chunks += batches
    extent.byte_length = sum(map(len, batches))
    extent.batch_count = len(batches)
    base_offset = struct.unpack_from(">q", batches[-1])[0]
    extent.last_offset = base_offset + struct.unpack_from(">i", batches[-1], 23)[0] if last is None else last
    extent.max_timestamp_ms, extent.commit_ms = 1_700_000_000_000, 5_000
    return extent


def whole(*extents: PlacedExtent, level: int = 1) -> bytes:
    return b"".join(encode_compacted_segment(3, 500_000_000_008, 1234, level, extents).chunks)


A = build_batch([b"a", b"b"], base_offset=10)
B = build_batch([b"c"], base_offset=12)
FAR = build_batch([b"d"], base_offset=40)


def test_extents_lie_back_to_back_and_the_footer_says_what_the_metadata_says() -> None:
    encoded = encode_compacted_segment(
        3, 500_000_000_008, 1234, 2, [placed(0, A, B, base=10), placed(0, FAR, base=13), placed(1, A, base=10)]
    )
    data = b"".join(encoded.chunks)
    assert data.startswith(A + B + FAR + A)
    assert (len(data), crc32c.crc32c(data)) == (encoded.byte_length, encoded.crc32c)
    footer = check_segment(data)
    assert isinstance(footer, CompactedFooter)
    assert (footer.agent_epoch, footer.sequence, footer.sealed_ms, footer.level) == (3, 500_000_000_008, 1234, 2)
    assert footer.extents == encoded.extents
    assert [(e.partition, e.byte_position, e.base_offset, e.last_offset, e.batch_count) for e in footer.extents] == [
        (0, 0, 10, 12, 2),
        (0, len(A + B), 13, 40, 1),
        (1, len(A + B + FAR), 10, 11, 1),
    ]
    ending = data[-ending_byte_length(data[-TRAILER_BYTES:]) :]
    assert decode_footer(ending, len(data)) == footer


def test_every_flipped_byte_is_found_but_for_what_readers_overwrite() -> None:
    """Leader epochs are outside of a batch's own CRC32C; the object's and the extent's cover them."""
    data = whole(placed(0, A, B, base=10), placed(1, FAR, base=40))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        with pytest.raises(SegmentCorrupt):
            check_segment(damaged)


def test_every_cut_is_found() -> None:
    data = whole(placed(0, A, base=10))
    for end in range(len(data)):
        with pytest.raises(SegmentCorrupt):
            check_segment(data[:end])


@pytest.mark.parametrize(
    ("extents", "complaint"),
    [
        ([placed(0, A, base=11)], "base offset 10 instead of 11"),
        ([placed(0, A, base=10, last=14)], "the footer says 1 to 14"),
        ([placed(0, B, A, base=10)], "base offset 10 instead of 13"),
        ([placed(0, B, base=12), placed(0, A, base=10)], "offset 10 comes late"),
        ([placed(0, A, base=10, topic_id=b"short")], "footer row"),
        ([placed(0, A[:-1] + b"?", base=10)], "CRC32C of the batch"),
    ],
)
def test_contradictions_are_found(extents: list[PlacedExtent], complaint: str) -> None:
    with pytest.raises(SegmentCorrupt, match=complaint):
        check_segment(whole(*extents))


def test_an_empty_batch_may_stand_for_offsets_that_are_gone() -> None:
    empty = build_batch([], base_offset=12, last_offset_delta=30)
    footer = check_segment(whole(placed(0, A, empty, base=5)))
    assert (footer.extents[0].base_offset, footer.extents[0].last_offset) == (5, 42)


def test_version_2_stays_readable() -> None:
    """Written by the first release that compacts; never change these bytes, add a version instead."""
    frozen = bytes.fromhex(FROZEN)
    footer = check_segment(frozen)
    assert isinstance(footer, CompactedFooter)
    assert (footer.agent_epoch, footer.sequence, footer.level) == (3, 500_000_000_008, 1)
    assert [(e.partition, e.base_offset, e.last_offset) for e in footer.extents] == [(0, 10, 12), (7, 40, 40)]
    data = A + B + FAR
    assert hashlib.sha256(frozen[: len(data)]).hexdigest() == hashlib.sha256(data).hexdigest()


FROZEN = (
    "000000000000000a00000041ffffffff02dd5912920000000000010000018bcfe568000000018bcfe56800ffffffffffffffffffffffff"
    "ffff000000020e000000010261000e00000201026200000000000000000c00000039ffffffff02b11fa45f0000000000000000018bcfe5"
    "68000000018bcfe56800ffffffffffffffffffffffffffff000000010e00000001026300000000000000002800000039ffffffff02cb72"
    "6d1a0000000000000000018bcfe568000000018bcfe56800ffffffffffffffffffffffffffff000000010e0000000102640028b52ffd20"
    "668d020074049503cf000000746a528808cd04d201929ac410000102030405060708090a0b0c0d0e0f0000cc92cea6ed5c440a0c02cf00"
    "00018bcfe56800cd138807cc9245ce7d49595a2828010200804beb1205050000005a00000066000200009f0b90b8544944454c4f4700"
)
