"""Applying changes to the SQLite schema, inside a transaction the caller owns. Blocking; owns no thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

import msgspec

from metadata.model import Topic, TopicId
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CallsForgotten,
    Change,
    CounterSaved,
    ExtentsAdded,
    ExtentsSwapped,
    GroupDropped,
    GroupSaved,
    LogStartMoved,
    OffsetsDropped,
    OffsetsSaved,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    SegmentsDropped,
    TopicDropped,
    TopicHidden,
    TopicRestored,
    TopicSaved,
)
from metadata.store.sqlite_compaction import swap_extents
from metadata.store.sqlite_reader import PARTITIONS

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode

ROWS_PER_STATEMENT = (300, 50, 10, 1)
"""Rows go into a table many to a statement: Python gives up the interpreter lock around each statement and has to win
it back from a busy event loop, up to 5 ms each time. 300 rows of 11 columns are far below SQLite's 32,766 values."""


class _Partition:
    """What every insert needs to know of a partition, so that it need not ask."""

    __slots__ = ("high_watermark", "key", "max_timestamp_ms")

    def __init__(self, key: int, high_watermark: int, max_timestamp_ms: int) -> None:
        self.key = key
        self.high_watermark = high_watermark
        self.max_timestamp_ms = max_timestamp_ms


class _Segment:
    """One that this transaction adds, and how much of it is referenced."""

    __slots__ = ("added", "contents", "live_bytes", "segment_id")

    def __init__(self, segment_id: int, added: SegmentAdded) -> None:
        self.segment_id = segment_id
        self.added = added
        self.live_bytes = 0
        self.contents: list[tuple[int, int]] = []
        """Partition key and base offset of each extent."""


class _Bulk:
    """Rows collected for one table: ``add`` takes their values one row after the other."""

    def __init__(self, insert: str, column_count: int) -> None:
        self._statements = [
            (size * column_count, f"{insert} VALUES " + ", ".join([f"({', '.join('?' * column_count)})"] * size))
            for size in ROWS_PER_STATEMENT
        ]
        self._values: list[int | str | bytes] = []
        self.add = self._values.extend

    def flush(self, connection: sqlite3.Connection) -> None:
        """Insert the rows in the order they were added."""
        values = self._values
        start = 0
        for count, statement in self._statements:
            while len(values) - start >= count:
                connection.execute(statement, values[start : start + count])
                start += count
        values.clear()


def pairs_text(pairs: Sequence[tuple[int, int]]) -> str:
    """The column ``segments.contents``."""
    return _encode_json(pairs)[1:-1].decode()


class SqliteWriter:
    """Turns changes into statements. After a failed transaction a new one is made from what is durable."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._partitions = {
            (topic_id, partition): _Partition(key, high_watermark, max_timestamp_ms)
            for topic_id, partition, key, _, high_watermark, max_timestamp_ms, _ in connection.execute(PARTITIONS)
        }
        self._segment_id: int = connection.execute("SELECT coalesce(max(segment_id), 0) FROM segments").fetchone()[0]
        self._segments: dict[str, _Segment] = {}
        self._segment_rows = _Bulk("INSERT INTO segments", 11)
        self._extents = _Bulk("INSERT INTO extents", 9)
        self._producers = _Bulk("INSERT OR REPLACE INTO producers", 4)
        self._offsets = _Bulk("INSERT OR REPLACE INTO group_offsets", 6)

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` in order.

        :raises sqlite3.Error: the transaction must be rolled back and this writer replaced.
        :raises ValueError: the same; the changes contradict what is stored.
        """
        for change in changes:
            match change:
                case SegmentAdded():
                    self._add_segment(change)
                case ExtentsAdded():
                    self._add_extents(change)
                case ProducerSaved():
                    partition = self._partition(change.topic_id, change.partition)
                    self._producers.add((partition.key, change.producer_id, change.state, change.updated_ms))
                case OffsetsSaved():
                    self._save_offsets(change)
                case ExtentsSwapped():
                    self._swap_extents(change)
                case _:
                    if isinstance(
                        change, TopicHidden | TopicDropped | ProducersExpired | GroupDropped | OffsetsDropped
                    ):
                        self._flush()  # these remove rows that may be among those collected
                    self._apply_small(change)
        self._flush()

    def _apply_small(self, change: Change) -> None:
        execute = self._connection.execute
        match change:
            case TopicSaved(topic=topic):
                self._save_topic(topic, change.producer_id_floor)
            case SegmentsDropped(segments=segments):
                self._connection.executemany(
                    "DELETE FROM segments WHERE agent_epoch = ? AND sequence = ? AND dead_ms > 0", segments
                )
            case LogStartMoved():
                self._move_log_start(change)
            case AnswersSettled():
                execute(
                    "DELETE FROM answers WHERE agent_epoch = ? AND sequence <= ?",
                    (change.agent_epoch, change.sequence),
                )
            case AgentSaved():
                columns = msgspec.structs.asdict(change) | {"roles": ",".join(change.roles)}
                execute(
                    "INSERT OR REPLACE INTO agents (agent_uid, node_id, agent_epoch, zone, agent_group, host, port,"
                    " http_address, version, roles, registered_ms, fenced_ms) VALUES (:agent_uid, :node_id,"
                    " :agent_epoch, :zone, :group, :host, :port, :http_address, :version, :roles, :registered_ms,"
                    " :fenced_ms)",
                    columns,
                )
            case AgentDropped(agent_uid=agent_uid):
                execute("DELETE FROM agents WHERE agent_uid = ?", (agent_uid,))
            case CallAnswered():
                execute(
                    "INSERT OR REPLACE INTO calls (call_id, answer, answered_ms) VALUES (?, ?, ?)",
                    (change.call_id, change.answer, change.answered_ms),
                )
            case CallsForgotten(before_ms=before_ms):
                execute("DELETE FROM calls WHERE answered_ms < ?", (before_ms,))
            case CounterSaved():
                execute(
                    "INSERT INTO counters VALUES (?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
                    (change.name, change.value),
                )
            case GroupSaved(record=record):
                execute("INSERT OR REPLACE INTO consumer_groups VALUES (?, ?)", (record.group_id, _encode(record)))
            case GroupDropped(group_id=group_id):
                execute("DELETE FROM consumer_groups WHERE group_id = ?", (group_id,))
                execute("DELETE FROM group_offsets WHERE group_id = ?", (group_id,))
            case TopicHidden(topic_id=topic_id):
                execute("UPDATE topics SET deleted_ms = ? WHERE topic_id = ?", (change.deleted_ms, topic_id))
                execute(
                    "DELETE FROM group_offsets WHERE partition_key IN"
                    " (SELECT partition_key FROM partitions WHERE topic_id = ?)",
                    (topic_id,),
                )
            case TopicRestored(topic_id=topic_id):
                execute("UPDATE topics SET deleted_ms = 0 WHERE topic_id = ?", (topic_id,))
            case TopicDropped(topic_id=topic_id):
                self._drop_topic(topic_id)
            case ProducersExpired():
                self._expire_producers(change)
            case OffsetsDropped(group_id=group_id):
                keys = [self._partitions[key].key for key in change.partitions if key in self._partitions]
                self._connection.executemany(
                    "DELETE FROM group_offsets WHERE group_id = ? AND partition_key = ?",
                    [(group_id, key) for key in keys],
                )
            case _:
                raise ValueError(f"not a change: {type(change).__name__}")

    def _partition(self, topic_id: TopicId, partition: int) -> _Partition:
        kept = self._partitions.get((topic_id, partition))
        if kept is None:
            raise ValueError(f"no partition {topic_id.hex()}/{partition}")
        return kept

    def _add_segment(self, change: SegmentAdded) -> None:
        self._segment_id += 1
        self._segments[change.segment_key] = _Segment(self._segment_id, change)
        self._connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?)", (change.agent_epoch, change.sequence, change.answer)
        )

    def _add_extents(self, change: ExtentsAdded) -> None:
        """Checks that offsets stay dense: the last guard before they are durable."""
        partitions, segments, add = self._partitions, self._segments, self._extents.add
        for extent in change.extents:
            partition = partitions.get((extent.topic_id, extent.partition))
            segment = segments.get(extent.segment_key)
            if partition is None or segment is None or extent.base_offset != partition.high_watermark:
                raise ValueError(f"extent does not follow what is stored: {extent}")
            partition.high_watermark = extent.last_offset + 1
            segment.contents.append((partition.key, extent.base_offset))
            segment.live_bytes += extent.byte_length
            timestamp_ms = extent.max_timestamp_ms
            if timestamp_ms > partition.max_timestamp_ms:
                partition.max_timestamp_ms = timestamp_ms
            add(
                (
                    partition.key,
                    extent.base_offset,
                    extent.last_offset,
                    segment.segment_id,
                    extent.byte_position,
                    extent.byte_length,
                    timestamp_ms,
                    partition.max_timestamp_ms,
                    extent.commit_ms,
                )
            )

    def _swap_extents(self, change: ExtentsSwapped) -> None:
        self._flush()  # it replaces rows that may be among those collected
        self._segment_id += 1
        swap_extents(self._connection, change, lambda *key: self._partition(*key).key, self._segment_id)

    def _flush(self) -> None:
        for segment in self._segments.values():
            added = segment.added
            self._segment_rows.add(
                (
                    segment.segment_id,
                    added.agent_epoch,
                    added.sequence,
                    added.segment_key,
                    added.byte_length,
                    added.commit_ms,
                    len(segment.contents),
                    segment.live_bytes,
                    0 if segment.contents else added.commit_ms,
                    added.level,
                    pairs_text(segment.contents),
                )
            )
        self._segments.clear()
        for bulk in (self._segment_rows, self._extents, self._producers, self._offsets):
            bulk.flush(self._connection)

    def _save_topic(self, topic: Topic, producer_id_floor: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO topics (topic_id, name, partition_count, configs, created_ms)"
            " VALUES (?, ?, ?, ?, ?)",
            (topic.topic_id, topic.name, topic.partition_count, json.dumps(topic.configs), topic.created_ms),
        )
        for partition in range(topic.partition_count):
            if (topic.topic_id, partition) not in self._partitions:
                cursor = self._connection.execute(
                    "INSERT INTO partitions (topic_id, partition, producer_id_floor) VALUES (?, ?, ?)",
                    (topic.topic_id, partition, producer_id_floor),
                )
                assert cursor.lastrowid is not None
                self._partitions[topic.topic_id, partition] = _Partition(cursor.lastrowid, 0, -1)

    def _drop_topic(self, topic_id: TopicId) -> None:
        """The topic and its partitions go now, which hides all their rows; :meth:`purge` removes those."""
        row = self._connection.execute("SELECT partition_count FROM topics WHERE topic_id = ?", (topic_id,)).fetchone()
        if row is None:
            return
        keys = [self._partitions.pop((topic_id, partition)).key for partition in range(row[0])]
        self._connection.executemany("INSERT INTO dropped_partitions VALUES (?)", [(key,) for key in keys])
        self._connection.execute("DELETE FROM partitions WHERE topic_id = ?", (topic_id,))
        self._connection.execute("DELETE FROM topics WHERE topic_id = ?", (topic_id,))

    def _move_log_start(self, change: LogStartMoved) -> None:
        partition = self._partition(change.topic_id, change.partition)
        if change.log_start_offset > partition.high_watermark:
            raise ValueError(f"the log start would pass the high watermark {partition.high_watermark}: {change}")
        if change.log_start_offset == partition.high_watermark:
            partition.max_timestamp_ms = -1
        self._connection.execute(
            "UPDATE partitions SET log_start_offset = max(log_start_offset, ?) WHERE partition_key = ?",
            (change.log_start_offset, partition.key),
        )
        self._connection.execute("INSERT OR IGNORE INTO trimmed_partitions VALUES (?)", (partition.key,))

    def _expire_producers(self, change: ProducersExpired) -> None:
        expired = [
            (self._partitions[topic_id, partition].key, producer_id)
            for topic_id, partition, producer_id in change.producers
            if (topic_id, partition) in self._partitions
        ]
        self._connection.executemany("DELETE FROM producers WHERE partition_key = ? AND producer_id = ?", expired)
        floors: dict[int, int] = {}
        for key, producer_id in expired:
            floors[key] = max(producer_id + 1, floors.get(key, 0))
        self._connection.executemany(
            "UPDATE partitions SET producer_id_floor = max(producer_id_floor, ?) WHERE partition_key = ?",
            [(floor, key) for key, floor in floors.items()],
        )

    def _save_offsets(self, change: OffsetsSaved) -> None:
        for offset in change.offsets:
            partition = self._partitions.get((offset.topic_id, offset.partition))
            if partition is not None:
                self._offsets.add(
                    (
                        change.group_id,
                        partition.key,
                        offset.offset,
                        offset.leader_epoch,
                        offset.metadata,
                        offset.commit_ms,
                    )
                )


_PURGE_TABLE = """
    CREATE TEMP TABLE IF NOT EXISTS gone (
        partition_key INTEGER, base_offset INTEGER, segment_id INTEGER, byte_length INTEGER,
        PRIMARY KEY (partition_key, base_offset)
    ) WITHOUT ROWID
"""
_DROPPED = "(SELECT partition_key FROM dropped_partitions ORDER BY partition_key LIMIT :count)"
_TRIMMED = "(SELECT partition_key FROM trimmed_partitions ORDER BY partition_key LIMIT :count)"
_GONE = "INSERT INTO gone SELECT extents.partition_key, base_offset, segment_id, byte_length FROM"
# CROSS JOIN fixes the order: from the partitions to the first of their extents, which are those to be removed, and one.
_COLLECT = (
    f"{_GONE} {_DROPPED} CROSS JOIN extents USING (partition_key) LIMIT :count",
    f"""{_GONE} {_TRIMMED} AS trimmed CROSS JOIN partitions USING (partition_key)
        CROSS JOIN extents ON extents.partition_key = partitions.partition_key
            AND base_offset < log_start_offset AND last_offset < log_start_offset
        LIMIT :count - (SELECT count(*) FROM gone)""",
)
_RELEASE = """
    UPDATE segments SET
        live_extents = live_extents - went.extents,
        live_bytes = live_bytes - went.bytes,
        dead_ms = iif(live_extents = went.extents, :now, 0)
    FROM (SELECT segment_id, count(*) AS extents, sum(byte_length) AS bytes FROM gone GROUP BY segment_id) AS went
    WHERE segments.segment_id = went.segment_id
"""


def purge(connection: sqlite3.Connection, row_max: int, now_ms: int) -> bool:
    """Remove up to about ``row_max`` rows of deleted topics and below log starts; True when there may be more.

    Statements as few as for one partition, however many: each is a wait for the interpreter lock.
    """
    execute, wanted = connection.execute, {"count": row_max}
    execute(_PURGE_TABLE)
    left = row_max - sum(execute(collect, wanted).rowcount for collect in _COLLECT)
    if left < row_max:
        execute(_RELEASE, {"now": now_ms})
        execute(
            "DELETE FROM extents WHERE (partition_key, base_offset) IN (SELECT partition_key, base_offset FROM gone)"
        )
        execute("DELETE FROM gone")
    for table, column in (("producers", "producer_id"), ("group_offsets", "group_id")):
        if left > 0:
            left -= execute(
                f"DELETE FROM {table} WHERE (partition_key, {column}) IN (SELECT partition_key, {column}"
                f" FROM {_DROPPED} CROSS JOIN {table} USING (partition_key) LIMIT :left)",
                {"count": row_max, "left": left},
            ).rowcount
    if left <= 0:
        return True
    # There was room for more, so these partitions have nothing left that is to go.
    dropped = execute(f"DELETE FROM dropped_partitions WHERE partition_key IN {_DROPPED}", wanted).rowcount
    trimmed = execute(f"DELETE FROM trimmed_partitions WHERE partition_key IN {_TRIMMED}", wanted).rowcount
    return max(dropped, trimmed) == row_max
