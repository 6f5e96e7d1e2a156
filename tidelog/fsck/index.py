"""What the metadata says, read from one view of its tables, and what is wrong with that alone: holes and overlaps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from metadata.store.port import StoreUnavailable
from metadata.store.tables import Table, TableView

ROWS_READ = 2_000
FINDINGS_MAX = 10_000
"""Beyond it findings are counted only."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind``: missing, damaged, misplaced, hole, overlap, orphan or foreign."""

    kind: str
    what: str


@dataclass(slots=True)
class Findings:
    """Bounded."""

    found: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.found) < FINDINGS_MAX:
            self.found.append(Finding(kind, what))


@dataclass(frozen=True, slots=True)
class Partition:
    topic_id: bytes
    topic: str
    number: int
    log_start_offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An extent, from its segment's side."""

    partition: Partition
    base_offset: int
    last_offset: int
    byte_position: int
    byte_length: int


@dataclass(slots=True)
class Segment:
    """About 200 bytes, and as many for each extent."""

    segment_id: int
    key: str
    byte_length: int
    dead: bool
    references: list[Reference] = field(default_factory=list)


@dataclass(slots=True)
class Index:
    segments: dict[int, Segment] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    partitions: int = 0
    extents: int = 0
    records: int = 0


async def read_index(view: TableView, findings: Findings, progress: Callable[[str], None]) -> Index:
    """The moment of the view is now. :raises metadata.store.port.StoreUnavailable:"""
    index = Index(tables={table.name: table for table in await view.begin()})
    topics = {row["topic_id"]: row["name"] async for row in _rows(view, index, "topics")}
    partitions = {
        row["partition_key"]: Partition(
            row["topic_id"], topics.get(row["topic_id"], "?"), row["partition"], row["log_start_offset"]
        )
        async for row in _rows(view, index, "partitions")
    }
    index.partitions = len(partitions)
    async for row in _rows(view, index, "segments"):
        index.segments[row["segment_id"]] = Segment(
            row["segment_id"], row["segment_key"], row["byte_length"], row["dead_ms"] > 0
        )
    ends: dict[int, int] = {}
    async for row in _rows(view, index, "extents"):
        index.extents += 1
        if index.extents % 100_000 == 0:
            progress(f"metadata: {index.extents:,} extents read")
        partition = partitions.get(row["partition_key"])
        if partition is None:
            continue  # of a deleted topic: it is about to go
        _check_order(partition, ends.get(row["partition_key"]), row, findings)
        ends[row["partition_key"]] = row["last_offset"] + 1
        index.records += row["last_offset"] + 1 - row["base_offset"]
        segment = index.segments.get(row["segment_id"])
        if segment is None:
            findings.add("missing", f"{partition} offsets {row['base_offset']}-{row['last_offset']}: no segment row")
            continue
        if row["last_offset"] >= partition.log_start_offset:
            segment.references.append(
                Reference(partition, row["base_offset"], row["last_offset"], row["byte_position"], row["byte_length"])
            )
    return index


def _check_order(partition: Partition, end: int | None, row: dict[str, Any], findings: Findings) -> None:
    """Offsets are dense from the log start on."""
    base = row["base_offset"]
    if end is None:
        if base > partition.log_start_offset:
            findings.add("hole", f"{partition} offsets {partition.log_start_offset}-{base - 1}: no extent")
    elif base > max(end, partition.log_start_offset):
        findings.add("hole", f"{partition} offsets {end}-{base - 1}: no extent")
    elif base < end:
        findings.add("overlap", f"{partition} offsets {base}-{end - 1}: in two extents")
    if row["last_offset"] < base:
        findings.add(
            "overlap", f"{partition} offsets {base}-{row['last_offset']}: an extent that ends before it begins"
        )


async def still_referenced(view: TableView, segment: Segment) -> bool:
    """In a later view, which has begun. :raises metadata.store.port.StoreUnavailable:"""
    table = {table.name: table for table in await view.begin()}["segments"]
    rows = await view.rows(table, [segment.segment_id - 1], 1)
    if not rows:
        return False
    row = dict(zip([column.name for column in table.columns], rows[0], strict=True))
    return bool(row["segment_id"] == segment.segment_id and row["live_extents"] > 0)


async def _rows(view: TableView, index: Index, name: str) -> AsyncIterator[dict[str, Any]]:
    table = index.tables.get(name)
    if table is None:
        raise StoreUnavailable(f"it has no table {name}: not a metadata store of this release")
    names = [column.name for column in table.columns]
    after = None
    while rows := await view.rows(table, after, ROWS_READ):
        for row in rows:
            yield dict(zip(names, row, strict=True))
        after = table.key_of(rows[-1])
