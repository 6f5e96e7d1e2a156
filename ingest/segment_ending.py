"""How every segment ends, whatever its version: a compressed footer and a trailer of 24 bytes that says how to read it.

Source: docs/rfcs/0001-segment-format.md.
"""

from __future__ import annotations

import struct

import crc32c
import zstandard

from storage.store import Chunk

TRAILER_BYTES = 24
FOOTER_BYTES_MAX = 64 << 20
"""Of an uncompressed footer: a reader's bound."""
VERSIONS = (1, 2)
"""1: as ingested (RFC 1). 2: compacted, batches carry their offsets (RFC 7)."""

_MAGIC = b"TIDELOG\x00"
_TRAILER = struct.Struct(">IIHHI8s")
_TRAILER_CHECKED_BYTES = 12
assert _TRAILER.size == TRAILER_BYTES
_ZSTD_LEVEL = 1


class SegmentCorrupt(Exception):
    """The object is not a whole, undamaged segment. The message says where."""


def pack_ending(plain: bytes, version: int) -> bytes:
    """Footer and trailer, for the MessagePack of a footer."""
    packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plain)
    checked = packed + _TRAILER.pack(len(packed), len(plain), version, 0, 0, _MAGIC)[:_TRAILER_CHECKED_BYTES]
    return checked + struct.pack(">I8s", crc32c.crc32c(checked), _MAGIC)


def ending_byte_length(tail: Chunk) -> int:
    """How many bytes at the object's end are footer and trailer, from its last 24 bytes (or more).

    :raises SegmentCorrupt: not a trailer of a version known here.
    """
    packed_length, plain_length, version, _, _, magic = _unpack_trailer(tail)
    if magic != _MAGIC:
        raise SegmentCorrupt("the object does not end with a segment's trailer")
    if version not in VERSIONS:
        raise SegmentCorrupt(f"segment format version {version}, known are {VERSIONS}")
    if not 0 < packed_length <= FOOTER_BYTES_MAX or not 0 < plain_length <= FOOTER_BYTES_MAX:
        raise SegmentCorrupt(f"a footer of {packed_length} ({plain_length}) bytes")
    return packed_length + TRAILER_BYTES


def unpack_ending(tail: Chunk, object_byte_length: int) -> tuple[int, bytes, int]:
    """Version, MessagePack of the footer, and the length of the data before it, from the end of an object.

    :raises SegmentCorrupt:
    """
    ending_bytes = ending_byte_length(tail)
    if len(tail) < ending_bytes or object_byte_length < len(tail):
        raise SegmentCorrupt(f"footer and trailer take {ending_bytes} bytes, there are {len(tail)}")
    ending = memoryview(tail)[len(tail) - ending_bytes :]
    _, plain_length, version, _, checksum, _ = _unpack_trailer(tail)
    if crc32c.crc32c(ending[: ending_bytes - TRAILER_BYTES + _TRAILER_CHECKED_BYTES]) != checksum:
        raise SegmentCorrupt("the footer's checksum does not match")
    packed = ending[: ending_bytes - TRAILER_BYTES]
    try:
        if zstandard.frame_content_size(packed) != plain_length:
            raise SegmentCorrupt("the footer's length does not match")
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=plain_length)
    except zstandard.ZstdError as error:
        raise SegmentCorrupt(f"the footer cannot be read: {error}") from None
    return version, plain, object_byte_length - ending_bytes


def _unpack_trailer(tail: Chunk) -> tuple[int, int, int, int, int, bytes]:
    if len(tail) < TRAILER_BYTES:
        raise SegmentCorrupt(f"{len(tail)} bytes are no segment")
    trailer: tuple[int, int, int, int, int, bytes] = _TRAILER.unpack_from(tail, len(tail) - TRAILER_BYTES)
    return trailer
