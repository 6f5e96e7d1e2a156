"""Reading the SQLite schema: the hot state at start-up, and extents by offset or timestamp. Blocking."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import EXTENTS_FOUND_MAX, DeletedTopic, Extent, Topic, TopicId
from metadata.store.port import (
    AgentSaved,
    CallAnswered,
    DeadSegment,
    PartitionRow,
    ProducerSaved,
    SegmentAdded,
    SegmentTotals,
    StoreSnapshot,
)

_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode
_ExtentRow = tuple[int, int, str, int, int, int, int, int]
_AgentRow = tuple[str, int, int, str, str, str, int, str, str, str, int, int]
_decode_extents = msgspec.json.Decoder(list[_ExtentRow]).decode

EXTENTS_READ = (16, 64, 256, 1_024, EXTENTS_FOUND_MAX - 1_360)
"""Extents read at once: few for a small answer, more each time they were not enough."""

PARTITIONS = """
    SELECT topic_id, partition, partitions.partition_key, log_start_offset,
        coalesce(last_offset + 1, log_start_offset),
        CASE WHEN last_offset >= log_start_offset THEN running_timestamp_ms ELSE -1 END, producer_id_floor
    FROM partitions LEFT JOIN extents ON extents.partition_key = partitions.partition_key AND base_offset = (
        SELECT max(base_offset) FROM extents AS newest WHERE newest.partition_key = partitions.partition_key
    )
    ORDER BY partitions.partition_key
"""

# CROSS JOIN fixes the order of the join: from the few rows asked for to the segments they name.
_EXTENT_ROW = """
    json_array(base_offset, last_offset, segment_key, byte_position, extents.byte_length, max_timestamp_ms,
        extents.commit_ms, level) AS extent
    FROM extents CROSS JOIN segments USING (segment_id)
"""
_PARTITION_KEY = "(SELECT partition_key FROM partitions WHERE topic_id = :topic_id AND partition = :partition)"
_FIND = f"""
    WITH wanted (key) AS {_PARTITION_KEY}
    SELECT json_group_array(json(extent)) FROM (
        SELECT {_EXTENT_ROW}
        WHERE partition_key = (SELECT key FROM wanted)
            AND base_offset >= coalesce((
                SELECT max(base_offset) FROM extents
                WHERE partition_key = (SELECT key FROM wanted) AND base_offset <= :offset
            ), :offset)
            AND base_offset < :before AND last_offset >= :offset
        ORDER BY base_offset LIMIT :count
    )
"""
# Halves the offsets from the log start to the last extent: ``found`` is the best extent so far, the last is none
# better. What set the running maximum of the first extents may be gone: then the walk goes on from the one found.
_FIND_BY_TIMESTAMP = f"""
    WITH RECURSIVE wanted (key, first) AS (
        SELECT partition_key, log_start_offset FROM partitions WHERE topic_id = :topic_id AND partition = :partition
    ),
    search (low, high, found) AS (
        SELECT first, base_offset, base_offset
        FROM wanted CROSS JOIN extents ON partition_key = key
            AND base_offset = (SELECT max(base_offset) FROM extents WHERE partition_key = key)
        WHERE last_offset >= first AND running_timestamp_ms >= :timestamp
        UNION ALL
        SELECT
            iif(running_timestamp_ms >= :timestamp, low, last_offset + 1),
            iif(running_timestamp_ms >= :timestamp, base_offset - 1, high),
            iif(running_timestamp_ms >= :timestamp, base_offset, found)
        FROM search CROSS JOIN extents ON partition_key = (SELECT key FROM wanted) AND base_offset = (
            SELECT max(base_offset) FROM extents AS probed
            WHERE probed.partition_key = (SELECT key FROM wanted) AND probed.base_offset <= low + (high - low) / 2
        )
        WHERE low <= high
    )
    SELECT json_group_array(json(extent)) FROM (
        SELECT {_EXTENT_ROW}
        WHERE partition_key = (SELECT key FROM wanted) AND base_offset >= (SELECT min(found) FROM search)
            AND max_timestamp_ms >= :timestamp
        ORDER BY base_offset LIMIT 1
    )
"""


def read_snapshot(connection: sqlite3.Connection) -> StoreSnapshot:
    """Everything but the extents. Time and memory follow the number of partitions, producers and groups."""
    query = connection.execute
    offsets: dict[str, list[OffsetRecord]] = defaultdict(list)
    for group_id, *offset in query(
        "SELECT group_id, topic_id, partition, committed_offset, leader_epoch, metadata, commit_ms"
        " FROM group_offsets JOIN partitions USING (partition_key)"
    ):
        offsets[group_id].append(OffsetRecord(*offset))
    return StoreSnapshot(
        cluster_id=query("SELECT value FROM meta WHERE name = 'cluster_id'").fetchone()[0],
        topics=tuple(
            Topic(topic_id, name, partition_count, json.loads(configs), created_ms)
            for topic_id, name, partition_count, configs, created_ms in query(
                "SELECT topic_id, name, partition_count, configs, created_ms FROM topics WHERE deleted_ms = 0"
                " ORDER BY created_ms, name"
            )
        ),
        partitions=tuple(PartitionRow(topic_id, partition, *row) for topic_id, partition, _, *row in query(PARTITIONS)),
        producers=tuple(
            ProducerSaved(*row)
            for row in query(
                "SELECT topic_id, partition, producer_id, state, updated_ms"
                " FROM producers JOIN partitions USING (partition_key)"
            )
        ),
        answers=tuple(
            SegmentAdded(*row)
            for row in query(
                "SELECT agent_epoch, sequence, segment_key, byte_length, commit_ms, answer, level"
                " FROM answers CROSS JOIN segments USING (agent_epoch, sequence)"
            )
        ),
        agents=tuple(
            _agent(row)
            for row in query(
                "SELECT agent_uid, node_id, agent_epoch, zone, agent_group, host, port, http_address, version, roles,"
                " registered_ms, fenced_ms FROM agents ORDER BY node_id"
            )
        ),
        counters=dict(query("SELECT name, value FROM counters").fetchall()),
        groups=tuple(_decode_group(record) for (record,) in query("SELECT record FROM consumer_groups")),
        offsets={group_id: tuple(records) for group_id, records in offsets.items()},
        calls=tuple(
            CallAnswered(*row) for row in query("SELECT call_id, answer, answered_ms FROM calls ORDER BY answered_ms")
        ),
        deleted_topics=tuple(
            DeletedTopic(Topic(topic_id, name, partition_count, json.loads(configs), created_ms), deleted_ms)
            for topic_id, name, partition_count, configs, created_ms, deleted_ms in query(
                "SELECT topic_id, name, partition_count, configs, created_ms, deleted_ms FROM topics"
                " WHERE deleted_ms > 0 ORDER BY deleted_ms, topic_id"
            )
        ),
    )


def _agent(row: _AgentRow) -> AgentSaved:
    return AgentSaved(*row[:9], tuple(filter(None, row[9].split(","))), *row[10:])


def find_extents(
    connection: sqlite3.Connection,
    topic_id: TopicId,
    partition: int,
    offset: int,
    byte_max: int,
    before_offset: int,
) -> list[Extent]:
    """See :meth:`metadata.store.port.MetadataStore.find_extents`. A few seeks, and one step for each extent read."""
    found: list[Extent] = []
    byte_count = 0
    for count in EXTENTS_READ:
        rows = _rows(
            connection,
            _FIND,
            {"topic_id": topic_id, "partition": partition, "offset": offset, "before": before_offset, "count": count},
        )
        for row in rows:
            if found and byte_count >= byte_max:
                return found
            extent = Extent(topic_id, partition, *row)
            found.append(extent)
            byte_count += extent.byte_length
        if len(rows) < count or byte_count >= byte_max:
            break
        offset = found[-1].last_offset + 1
    return found


def find_extent_by_timestamp(
    connection: sqlite3.Connection, topic_id: TopicId, partition: int, timestamp_ms: int
) -> Extent | None:
    """See :meth:`metadata.store.port.MetadataStore.find_extent_by_timestamp`. At most 63 seeks."""
    rows = _rows(
        connection, _FIND_BY_TIMESTAMP, {"topic_id": topic_id, "partition": partition, "timestamp": timestamp_ms}
    )
    return Extent(topic_id, partition, *rows[0]) if rows else None


def sum_extents(
    connection: sqlite3.Connection, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
) -> tuple[int, int]:
    """See :meth:`metadata.store.port.MetadataStore.sum_extents`. One step for each."""
    count, size, end = connection.execute(
        f"""
        WITH wanted (key) AS {_PARTITION_KEY}
        SELECT count(*), coalesce(sum(byte_length), 0), coalesce(max(last_offset) + 1, 0) FROM (
            SELECT byte_length, last_offset FROM extents
            WHERE partition_key = (SELECT key FROM wanted)
                AND base_offset >= coalesce((
                    SELECT max(base_offset) FROM extents
                    WHERE partition_key = (SELECT key FROM wanted) AND base_offset <= :offset
                ), :offset)
                AND base_offset < :before AND last_offset >= :offset
            ORDER BY base_offset LIMIT :count
        )
        """,
        {"topic_id": topic_id, "partition": partition, "offset": offset, "before": before_offset, "count": row_max},
    ).fetchone()
    return size, end if count == row_max else before_offset


def find_dead_segments(connection: sqlite3.Connection, until_ms: int, count_max: int) -> list[DeadSegment]:
    """See :meth:`metadata.store.port.MetadataStore.find_dead_segments`. One step for each found."""
    rows = connection.execute(
        "SELECT agent_epoch, sequence, segment_key, byte_length, dead_ms FROM segments"
        " WHERE dead_ms > 0 AND dead_ms <= ? AND NOT EXISTS (SELECT 1 FROM answers"
        " WHERE answers.agent_epoch = segments.agent_epoch AND answers.sequence = segments.sequence)"
        " ORDER BY dead_ms LIMIT ?",
        (until_ms, count_max),
    )
    return [DeadSegment(*row) for row in rows.fetchall()]


def find_segments(connection: sqlite3.Connection, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """See :meth:`metadata.store.port.MetadataStore.find_segments`. One seek for each."""
    query = (
        "SELECT json_group_array(json_array(agent_epoch, sequence, segment_key)) FROM json_each(?) AS wanted"
        " CROSS JOIN segments ON agent_epoch = wanted.value ->> 0 AND sequence = wanted.value ->> 1"
    )
    (found,) = connection.execute(query, (json.dumps(segments),)).fetchone()
    return {(agent_epoch, sequence): key for agent_epoch, sequence, key in json.loads(found)}


def segment_totals(connection: sqlite3.Connection, after_id: int, row_max: int) -> SegmentTotals:
    """See :meth:`metadata.store.port.MetadataStore.segment_totals`."""
    row = connection.execute(
        "SELECT count(*), coalesce(sum(byte_length), 0), coalesce(sum(live_bytes), 0), count(nullif(dead_ms, 0)),"
        " coalesce(sum(iif(dead_ms > 0, byte_length, 0)), 0), coalesce(max(segment_id), 0)"
        " FROM (SELECT * FROM segments WHERE segment_id > ? ORDER BY segment_id LIMIT ?)",
        (after_id, row_max),
    ).fetchone()
    return SegmentTotals(row[0], row[1], row[2], row[3], row[4], row[5] if row[0] == row_max else 0)


def _rows(connection: sqlite3.Connection, query: str, parameters: dict[str, bytes | int]) -> list[_ExtentRow]:
    """The extents of a query that answers with *one* row of JSON, in offset order.

    Python gives up the interpreter lock around every row it takes from SQLite and has to win it back from a busy
    event loop, up to 5 ms each time. One row is one such wait.
    """
    return sorted(_decode_extents(connection.execute(query, parameters).fetchone()[0]))
