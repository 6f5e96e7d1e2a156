"""The objects of the journal and of snapshots (docs/rfcs/0008-journal.md): their keys, their bytes. Pure.

Every object is one zstd frame with a checksum, of MessagePack. A change of these bytes is a new version number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
import zstandard

from metadata.store.port import Change, SegmentAdded
from metadata.store.tables import Row, Table

META_PREFIX: Final = "meta/"
JOURNAL_PREFIX: Final = "meta/journal/"
SNAPSHOT_PREFIX: Final = "meta/snapshot/"
FORMAT_VERSION: Final = 1
OBJECT_BYTES_MAX: Final = 1 << 30
"""Of an uncompressed object: a reader's bound."""
_ZSTD_LEVEL: Final = 1
_ENTRY_KEY = re.compile(r"meta/journal/(\d{10})-(\d{10})")
_PART_KEY = re.compile(r"meta/snapshot/(\d{10})-(\d{6})/(\d{6}|complete)")

T = TypeVar("T")


class JournalCorrupt(Exception):
    """An object of the journal or of a snapshot is not whole, or not what its key says."""


class JournalEntry(msgspec.Struct, frozen=True, array_like=True):
    """Writes in the order in which they became durable, each with its changes in order.

    An entry goes on where the one with the number before it ended; a number that is missing is a gap.
    """

    version: int
    cluster_id: str
    generation: int
    number: int
    first_ms: int
    last_ms: int
    """When the first and the last of the writes had become durable, by the leader's clock."""
    writes: tuple[tuple[Change, ...], ...]


class _RawEntry(msgspec.Struct, frozen=True, array_like=True):
    version: int
    cluster_id: str
    generation: int
    number: int
    first_ms: int
    last_ms: int
    writes: list[msgspec.Raw]


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one table, in the order of its key."""

    version: int
    cluster_id: str
    generation: int
    number: int
    part: int
    table: Table
    rows: list[Row]


class SnapshotComplete(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot whose parts 0 to ``parts`` - 1 are all in the bucket.

    It has everything up to the journal's entry ``after`` of its generation, and nothing later.
    """

    version: int
    cluster_id: str
    generation: int
    number: int
    after: int
    taken_ms: int
    parts: int
    byte_length: int
    """Of all parts together, as they are in the bucket."""
    rows: dict[str, int]
    """By table."""


class EntryName(msgspec.Struct, frozen=True, order=True):
    generation: int
    number: int

    @property
    def key(self) -> str:
        return f"{JOURNAL_PREFIX}{self.generation:010d}-{self.number:010d}"


class SnapshotName(msgspec.Struct, frozen=True, order=True):
    generation: int
    number: int

    @property
    def complete_key(self) -> str:
        return f"{SNAPSHOT_PREFIX}{self.generation:010d}-{self.number:06d}/complete"

    def part_key(self, part: int) -> str:
        return f"{SNAPSHOT_PREFIX}{self.generation:010d}-{self.number:06d}/{part:06d}"

    def __str__(self) -> str:
        return f"{self.generation}-{self.number}"


def parse_entry_key(key: str) -> EntryName | None:
    """None: not an entry's key."""
    match = _ENTRY_KEY.fullmatch(key)
    return None if match is None else EntryName(int(match[1]), int(match[2]))


def parse_snapshot_key(key: str) -> tuple[SnapshotName, bool] | None:
    """The snapshot, and whether the key is that of its last object; None: not a snapshot's key."""
    match = _PART_KEY.fullmatch(key)
    return None if match is None else (SnapshotName(int(match[1]), int(match[2])), match[3] == "complete")


_encode = msgspec.msgpack.Encoder().encode


def encode_write(changes: Sequence[Change]) -> bytes:
    """A write, as it goes into an entry. Answers to commits stay out: after a restore nobody may ask for them."""
    return _encode(
        [msgspec.structs.replace(change, answer=b"") if type(change) is SegmentAdded else change for change in changes]
    )


def encode_entry(cluster_id: str, name: EntryName, first_ms: int, last_ms: int, writes: Sequence[bytes]) -> bytes:
    """The object of an entry; ``writes`` come from :func:`encode_write`."""
    raw = [msgspec.Raw(write) for write in writes]
    return _pack(_RawEntry(FORMAT_VERSION, cluster_id, name.generation, name.number, first_ms, last_ms, raw))


def decode_entry(data: bytes, name: EntryName) -> JournalEntry:
    """:raises JournalCorrupt:"""
    entry = _unpack(data, JournalEntry)
    if (entry.generation, entry.number) != (name.generation, name.number):
        raise JournalCorrupt(f"{name.key} says that it is {entry.generation}-{entry.number}")
    return entry


def encode_part(part: SnapshotPart) -> bytes:
    return _pack(part)


def decode_part(data: bytes, name: SnapshotName, part: int) -> SnapshotPart:
    """:raises JournalCorrupt:"""
    found = _unpack(data, SnapshotPart)
    if (found.generation, found.number, found.part) != (name.generation, name.number, part):
        raise JournalCorrupt(f"{name.part_key(part)} says that it is part {found.part} of {found.generation}")
    return found


def encode_complete(complete: SnapshotComplete) -> bytes:
    return _pack(complete)


def decode_complete(data: bytes, name: SnapshotName) -> SnapshotComplete:
    """:raises JournalCorrupt:"""
    found = _unpack(data, SnapshotComplete)
    if (found.generation, found.number) != (name.generation, name.number):
        raise JournalCorrupt(f"{name.complete_key} says that it is {found.generation}-{found.number}")
    return found


def _pack(value: msgspec.Struct) -> bytes:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compress(_encode(value))


def _unpack(data: bytes, kind: type[T]) -> T:
    try:
        if zstandard.frame_content_size(data) > OBJECT_BYTES_MAX:
            raise JournalCorrupt("an impossible length")
        plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        version = msgspec.msgpack.decode(plain, type=list[msgspec.Raw])[:1]
        known = version and msgspec.msgpack.decode(version[0]) == FORMAT_VERSION
        if not known:
            raise JournalCorrupt("a format that this program does not know: it comes from a newer Tidelog")
        return msgspec.msgpack.decode(plain, type=kind)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise JournalCorrupt(f"it cannot be read: {error}") from None
