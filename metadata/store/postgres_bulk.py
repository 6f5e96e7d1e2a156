"""The one statement that adds the rows of a usual write to PostgreSQL, and the rows that are collected for it.

It is a transaction of its own: one round trip for the rows, the check of the generation and the commit. Columns travel
as arrays, those of numbers as text: the driver takes five times as long for each number in binary.

Many extents go by COPY instead, beside the statement. It takes four more round trips, and for each row half of the
server's time (2.0 instead of 3.6 us), which is what a busy cluster waits for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from metadata.store.port import SegmentAdded
from metadata.store.postgres_connections import Connection

Row = tuple[int | str | bytes, ...]

# Table, its columns with their types, and what to do with a row whose key is there. Rows of one statement have
# different keys: later ones replaced earlier ones when they were collected.
_TABLES: tuple[tuple[str, str, str], ...] = (
    (
        "segments",
        "segment_id bigint, agent_epoch bigint, sequence bigint, segment_key text, byte_length bigint,"
        " commit_ms bigint, live_extents bigint, live_bytes bigint, dead_ms bigint, level bigint, contents text",
        "",
    ),
    ("answers", "agent_epoch bigint, sequence bigint, answer bytea", ""),
    (
        "extents",
        "partition_key bigint, base_offset bigint, last_offset bigint, segment_id bigint, byte_position bigint,"
        " byte_length bigint, max_timestamp_ms bigint, running_timestamp_ms bigint, commit_ms bigint",
        "",
    ),
    (
        "producers",
        "partition_key bigint, producer_id bigint, state bytea, updated_ms bigint",
        "(partition_key, producer_id) DO UPDATE SET state = excluded.state, updated_ms = excluded.updated_ms",
    ),
    (
        "group_offsets",
        "group_id bytea, partition_key bigint, committed_offset bigint, leader_epoch bigint, metadata bytea,"
        " commit_ms bigint",
        "(group_id, partition_key) DO UPDATE SET committed_offset = excluded.committed_offset,"
        " leader_epoch = excluded.leader_epoch, metadata = excluded.metadata, commit_ms = excluded.commit_ms",
    ),
    ("consumer_groups", "group_id bytea, record bytea", "(group_id) DO UPDATE SET record = excluded.record"),
    (
        "counters",
        "name text, value bigint",
        "(name) DO UPDATE SET value = greatest(counters.value, excluded.value)",
    ),
)
_NUMBERS = "text::bigint"
LEADS = "SELECT FROM leader WHERE generation = {generation} FOR SHARE"
"""One row if ``generation`` leads, and then it does so until the transaction ends; none if another does."""


def _bulk_statement() -> str:
    """Answers 1 if the generation ($1) leads and everything was done, 0 if another leads and nothing was."""
    parts = [
        f"WITH leads AS MATERIALIZED ({LEADS.format(generation='$1')})",
        "settled AS (DELETE FROM answers USING unnest($2::bigint[], $3::bigint[]) AS upto (agent_epoch, sequence)"
        " WHERE answers.agent_epoch = upto.agent_epoch AND answers.sequence <= upto.sequence"
        " AND EXISTS (SELECT FROM leads))",
    ]
    number = 4
    for table, declared, conflict in _TABLES:
        columns = [column.split() for column in declared.split(", ")]
        names = ", ".join(name for name, _ in columns)
        arrays = ", ".join(
            f"${number + index}::{_NUMBERS if kind == 'bigint' else kind}[]" for index, (_, kind) in enumerate(columns)
        )
        number += len(columns)
        parts.append(
            f"new_{table} AS (INSERT INTO {table} ({names})"
            f" SELECT new.* FROM leads, unnest({arrays}) AS new ({names})"
            + (f" ON CONFLICT {conflict})" if conflict else ")")
        )
    return ",\n".join(parts) + "\nSELECT count(*) FROM leads"


BULK = _bulk_statement()
COPY_EXTENTS = "COPY extents"
"""Stands for :func:`copy_extents` in a list of statements."""
COPY_ROWS_MIN = 1_000
"""From so many extents on COPY saves more than its round trips take."""
_EXTENT_COLUMNS = [
    column.split()[0] for table, columns, _ in _TABLES if table == "extents" for column in columns.split(", ")
]
_KINDS = [[column.split()[1] for column in declared.split(", ")] for _, declared, _ in _TABLES]
_encode = msgspec.json.Encoder().encode


class SegmentRow:
    """A segment that is being added, and how much of it is referenced."""

    __slots__ = ("added", "contents", "live_bytes", "segment_id")

    def __init__(self, segment_id: int, added: SegmentAdded) -> None:
        self.segment_id = segment_id
        self.added = added
        self.live_bytes = 0
        self.contents: list[tuple[int, int]] = []
        """Partition key and base offset of each extent."""

    def row(self) -> Row:
        added = self.added
        return (
            self.segment_id,
            added.agent_epoch,
            added.sequence,
            added.segment_key,
            added.byte_length,
            added.commit_ms,
            len(self.contents),
            self.live_bytes,
            0 if self.contents else added.commit_ms,
            added.level,
            _encode(self.contents)[1:-1].decode(),
        )


class Bulk:
    """The rows of one bulk statement, by table and key."""

    __slots__ = ("answers", "counters", "extents", "groups", "offsets", "producers", "segments", "settled")

    def __init__(self) -> None:
        self.settled: dict[int, int] = {}
        self.segments: list[SegmentRow] = []
        self.answers: dict[int, dict[int, Row]] = {}
        """By agent epoch and sequence."""
        self.extents: list[Row] = []
        self.producers: dict[tuple[int, int], Row] = {}
        self.offsets: dict[tuple[bytes, int], Row] = {}
        self.groups: dict[bytes, Row] = {}
        self.counters: dict[str, Row] = {}

    def settle(self, agent_epoch: int, sequence: int) -> None:
        """What the statement deletes is what was there before it: answers it adds itself are left out instead."""
        self.settled[agent_epoch] = max(sequence, self.settled.get(agent_epoch, sequence))
        added = self.answers.get(agent_epoch, {})
        for each in [each for each in added if each <= sequence]:
            del added[each]

    def count_up(self, name: str, value: int) -> None:
        kept = self.counters.get(name)
        if kept is None or value > kept[1]:  # type: ignore[operator]  # rows are of many types, this one is a number
            self.counters[name] = (name, value)

    def take_extents_to_copy(self) -> bytes | None:
        """Many extents leave the bulk, as COPY wants them: by key, so that neighbours go into the same index page."""
        if len(self.extents) < COPY_ROWS_MIN:
            return None
        rows, self.extents = sorted(self.extents), []
        return _encode(rows)[2:-2].replace(b"],[", b"\n") + b"\n"

    def columns(self) -> list[object]:
        """Columns, as :data:`BULK` wants them after the generation; empty when there is nothing to do."""
        tables: list[Sequence[Row]] = [
            [segment.row() for segment in self.segments],
            [row for added in self.answers.values() for row in added.values()],
            self.extents,
            list(self.producers.values()),
            list(self.offsets.values()),
            list(self.groups.values()),
            list(self.counters.values()),
        ]
        if not self.settled and not any(tables):
            return []
        columns: list[object] = [list(self.settled), list(self.settled.values())]
        for rows, kinds in zip(tables, _KINDS, strict=True):
            transposed: Sequence[tuple[object, ...]] = list(zip(*rows, strict=True)) or [()] * len(kinds)
            columns += [
                _numbers(column) if kind == "bigint" else column for kind, column in zip(kinds, transposed, strict=True)
            ]
        return columns


async def copy_extents(connection: Connection, rows: bytes) -> None:
    """Add the rows of :meth:`Bulk.take_extents_to_copy`, in the transaction that is open."""

    async def source() -> AsyncIterator[bytes]:
        yield rows

    await connection.copy_to_table("extents", source=source(), columns=_EXTENT_COLUMNS, format="text", delimiter=",")


def _numbers(column: tuple[object, ...]) -> str:
    """PostgreSQL's text for an array of numbers."""
    return "{" + _encode(column)[1:-1].decode() + "}"
