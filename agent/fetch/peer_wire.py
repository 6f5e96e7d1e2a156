"""How agents ask each other for bytes: ``POST /peer/read`` of the agents' HTTP address.

The request is a MessagePack :class:`PeerRead`; the answer is a table of lengths (one signed 32-bit big-endian integer
for each range, -1 for one that is not to be had) and then the bytes of all ranges, back to back.
"""

from __future__ import annotations

import struct

import msgspec

PATH = "/peer/read"
RANGES_MAX = 512
"""In one request."""
BYTES_MAX = 32 * 1024 * 1024
"""In one request; whoever wants more asks more than once."""
POSITION_MAX = 2**62
"""No object is that long, and file systems know no position above it."""
MISSING = -1


class PeerRange(msgspec.Struct, frozen=True, array_like=True):
    """``length`` bytes from ``start`` on. ``memory_only``: not worth a read of the object store. ``exactly``: a large
    extent, worth a read of its own."""

    segment_key: str
    start: int
    length: int
    hot: bool
    memory_only: bool
    exactly: bool = False


class PeerRead(msgspec.Struct, frozen=True, array_like=True):
    ranges: tuple[PeerRange, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PeerRead).decode


def encode_read(ranges: tuple[PeerRange, ...]) -> bytes:
    return _encode(PeerRead(ranges))


def decode_read(body: bytes) -> tuple[PeerRange, ...]:
    """:raises ValueError: it makes no sense, or asks for too much."""
    try:
        ranges = _decode(body).ranges
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a peer read: {error}") from None
    if len(ranges) > RANGES_MAX:
        raise ValueError(f"{len(ranges)} ranges, at most {RANGES_MAX}")
    if any(not 0 <= each.start <= POSITION_MAX or each.length < 1 for each in ranges):
        raise ValueError(f"a range does not begin between 0 and {POSITION_MAX}, or is empty")
    if sum(each.length for each in ranges) > BYTES_MAX:
        raise ValueError(f"more than {BYTES_MAX} bytes in one request")
    return ranges


def encode_lengths(lengths: list[int]) -> bytes:
    return struct.pack(f">{len(lengths)}i", *lengths)


def decode_answer(ranges: tuple[PeerRange, ...], body: bytes) -> list[memoryview | None]:
    """One entry a range, None for what the peer does not have. The views borrow ``body``.

    :raises ValueError: the answer is not one to these ranges.
    """
    view = memoryview(body)
    position = 4 * len(ranges)
    if len(view) < position:
        raise ValueError("the answer is cut short")
    found: list[memoryview | None] = []
    for wanted, length in zip(ranges, struct.unpack_from(f">{len(ranges)}i", view), strict=True):
        if length == MISSING:
            found.append(None)
            continue
        if length != wanted.length:
            raise ValueError(f"{length} bytes of {wanted.segment_key}, {wanted.length} were asked for")
        found.append(view[position : position + length])
        position += length
    if position != len(view):
        raise ValueError("the answer is not as long as it says")
    return found
