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
    GroupDropped,
    GroupSaved,
    OffsetsDropped,
    OffsetsSaved,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    TopicDropped,
    TopicSaved,
)
from metadata.store.sqlite_reader import PARTITIONS

_encode = msgspec.msgpack.Encoder().encode

ROWS_PER_STATEMENT = (100, 10, 1)
"""Rows go into a table many to a statement: Python gives up the interpreter lock around each statement and has to win
it back from a busy event loop, up to 5 ms each time. 100 rows of 9 columns stay below SQLite's oldest limit of 999."""


class _Partition:
    """What every insert needs to know of a partition, so that it need not ask."""

    __slots__ = ("high_watermark", "key", "max_timestamp_ms")

    def __init__(self, key: int, high_watermark: int, max_timestamp_ms: int) -> None:
        self.key = key
        self.high_watermark = high_watermark
        self.max_timestamp_ms = max_timestamp_ms


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


class SqliteWriter:
    """Turns changes into statements. After a failed transaction a new one is made from what is durable."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._partitions = {
            (topic_id, partition): _Partition(key, high_watermark, max_timestamp_ms)
            for topic_id, partition, key, _, high_watermark, max_timestamp_ms, _ in connection.execute(PARTITIONS)
        }
        self._segments: dict[str, int] = {}
        self._extents = _Bulk("INSERT INTO extents", 9)
        self._producers = _Bulk("INSERT OR REPLACE INTO producers", 4)
        self._offsets = _Bulk("INSERT OR REPLACE INTO group_offsets", 6)

    def apply(self, changes: Sequence[Change]) -> bool:
        """Apply ``changes`` in order. True when rows of a dropped topic are left to be purged.

        :raises sqlite3.Error: the transaction must be rolled back and this writer replaced.
        :raises ValueError: the same; the changes contradict what is stored.
        """
        dropped = False
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
                case _:
                    if isinstance(change, TopicDropped | ProducersExpired | GroupDropped | OffsetsDropped):
                        self._flush()  # these remove rows that may be among those collected
                    dropped = dropped or isinstance(change, TopicDropped)
                    self._apply_small(change)
        self._flush()
        self._segments.clear()
        return dropped

    def _apply_small(self, change: Change) -> None:
        execute = self._connection.execute
        match change:
            case TopicSaved(topic=topic):
                self._save_topic(topic, change.producer_id_floor)
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
        cursor = self._connection.execute(
            "INSERT INTO segments (agent_epoch, sequence, segment_key, byte_length, commit_ms) VALUES (?, ?, ?, ?, ?)",
            (change.agent_epoch, change.sequence, change.segment_key, change.byte_length, change.commit_ms),
        )
        assert cursor.lastrowid is not None
        self._segments[change.segment_key] = cursor.lastrowid
        self._connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?)", (change.agent_epoch, change.sequence, change.answer)
        )

    def _add_extents(self, change: ExtentsAdded) -> None:
        """Checks that offsets stay dense: the last guard before they are durable."""
        partitions, segments, add = self._partitions, self._segments, self._extents.add
        for extent in change.extents:
            partition = partitions.get((extent.topic_id, extent.partition))
            segment_id = segments.get(extent.segment_key)
            if partition is None or segment_id is None or extent.base_offset != partition.high_watermark:
                raise ValueError(f"extent does not follow what is stored: {extent}")
            partition.high_watermark = extent.last_offset + 1
            timestamp_ms = extent.max_timestamp_ms
            if timestamp_ms > partition.max_timestamp_ms:
                partition.max_timestamp_ms = timestamp_ms
            add(
                (
                    partition.key,
                    extent.base_offset,
                    extent.last_offset,
                    segment_id,
                    extent.byte_position,
                    extent.byte_length,
                    timestamp_ms,
                    partition.max_timestamp_ms,
                    extent.commit_ms,
                )
            )

    def _flush(self) -> None:
        for bulk in (self._extents, self._producers, self._offsets):
            bulk.flush(self._connection)

    def _save_topic(self, topic: Topic, producer_id_floor: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO topics VALUES (?, ?, ?, ?, ?)",
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


def purge(connection: sqlite3.Connection, row_max: int) -> bool:
    """Remove up to about ``row_max`` rows of deleted topics; True when there may be more."""
    left = row_max
    for (key,) in connection.execute("SELECT partition_key FROM dropped_partitions LIMIT ?", (row_max,)).fetchall():
        for table, column in (("extents", "base_offset"), ("producers", "producer_id"), ("group_offsets", "group_id")):
            left -= connection.execute(
                f"DELETE FROM {table} WHERE (partition_key, {column}) IN"
                f" (SELECT partition_key, {column} FROM {table} WHERE partition_key = ? LIMIT ?)",
                (key, left),
            ).rowcount
            if left <= 0:
                return True
        connection.execute("DELETE FROM dropped_partitions WHERE partition_key = ?", (key,))
        left -= 1
        if left <= 0:
            return True
    return False
