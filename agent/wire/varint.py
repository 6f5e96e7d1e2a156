"""Unsigned varints, and the sections of tagged fields that begin with one (KIP-482)."""

from __future__ import annotations

from typing import Final

from agent.wire.errors import DecodeError
from agent.wire.frames import FrameBuffer

TAGS_MAX: Final = 64
"""Most tagged fields in one section that is skipped; Kafka itself defines none in the places where this is used."""


def read_uvarint(buffer: FrameBuffer, position: int) -> tuple[int, int]:
    """(value, position behind it) of an unsigned varint of at most five bytes.

    :raises DecodeError: it is longer, or the buffer ends in it.
    """
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(buffer):
            raise DecodeError("a varint is cut short")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a varint is longer than five bytes")


def skip_tags(buffer: FrameBuffer, position: int) -> int:
    """The position behind a section of tagged fields. May lie behind the request's end: the caller checks.

    :raises DecodeError: the buffer ends in it, or there are more than :data:`TAGS_MAX`.
    """
    count, position = read_uvarint(buffer, position)
    if count > TAGS_MAX:
        raise DecodeError(f"{count} tagged fields in one section")
    for _ in range(count):
        _, position = read_uvarint(buffer, position)
        length, position = read_uvarint(buffer, position)
        position += length
    return position


def write_uvarint(out: bytearray, value: int) -> None:
    """Seven bits a byte, lowest first; the high bit says that more follow."""
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
