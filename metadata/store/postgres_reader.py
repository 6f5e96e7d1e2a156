"""Reading the PostgreSQL schema: the hot state at start-up, and extents by offset or timestamp."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

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
from metadata.store.postgres_connections import Connection, Pool
from metadata.store.postgres_leadership import check_generation
from metadata.store.postgres_writer import PostgresWriter, commit

_AgentRow = tuple[str, int, int, str, str, str, int, str, str, str, int, int]
_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode

EXTENTS_READ = (64, 512, EXTENTS_FOUND_MAX - 576)
"""Extents read at once: few for a small answer, more each time they were not enough."""
SNAPSHOT_SECONDS = 60.0
"""For one table of the snapshot."""

# The snapshot reads whole tables, unlike anything else.
_SNAPSHOT = """
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL plan_cache_mode = auto
"""
_PARTITIONS = """
    SELECT topic_id, partition, partition_key, log_start_offset, coalesce(last_offset + 1, log_start_offset),
        CASE WHEN last_offset >= log_start_offset THEN running_timestamp_ms ELSE -1 END, producer_id_floor
    FROM partitions LEFT JOIN LATERAL (
        SELECT last_offset, running_timestamp_ms FROM extents WHERE extents.partition_key = partitions.partition_key
        ORDER BY base_offset DESC LIMIT 1
    ) AS newest ON true
    ORDER BY partition_key
"""

_EXTENT_ROW = """
    base_offset, last_offset, segment_key, byte_position, extents.byte_length, max_timestamp_ms, extents.commit_ms,
    level
    FROM extents JOIN segments USING (segment_id)
"""
_WANTED = """
    wanted AS MATERIALIZED (
        SELECT partition_key AS key, log_start_offset AS first FROM partitions WHERE topic_id = $1 AND partition = $2
    )
"""
_FIND = f"""
    WITH {_WANTED}
    SELECT {_EXTENT_ROW}
    WHERE partition_key = (SELECT key FROM wanted)
        AND base_offset >= coalesce((
            SELECT max(base_offset) FROM extents WHERE partition_key = (SELECT key FROM wanted) AND base_offset <= $3
        ), $3)
        AND base_offset < $4 AND last_offset >= $3
    ORDER BY base_offset LIMIT $5
"""
# Halves the offsets from the log start to the last extent: ``found`` is the best extent so far, the last is none
# better. What set the running maximum of the first extents may be gone: then the walk goes on from the one found.
_FIND_BY_TIMESTAMP = f"""
    WITH RECURSIVE {_WANTED},
    search (low, high, found) AS (
        SELECT first, base_offset, base_offset
        FROM wanted CROSS JOIN LATERAL (
            SELECT base_offset, last_offset, running_timestamp_ms FROM extents WHERE partition_key = key
            ORDER BY base_offset DESC LIMIT 1
        ) AS newest
        WHERE last_offset >= first AND running_timestamp_ms >= $3
        UNION ALL
        SELECT
            CASE WHEN running_timestamp_ms >= $3 THEN low ELSE last_offset + 1 END,
            CASE WHEN running_timestamp_ms >= $3 THEN base_offset - 1 ELSE high END,
            CASE WHEN running_timestamp_ms >= $3 THEN base_offset ELSE found END
        FROM search CROSS JOIN LATERAL (
            SELECT base_offset, last_offset, running_timestamp_ms FROM extents
            WHERE partition_key = (SELECT key FROM wanted) AND base_offset <= low + (high - low) / 2
            ORDER BY base_offset DESC LIMIT 1
        ) AS probed
        WHERE low <= high
    )
    SELECT {_EXTENT_ROW}
    WHERE partition_key = (SELECT key FROM wanted) AND base_offset >= (SELECT min(found) FROM search)
        AND max_timestamp_ms >= $3
    ORDER BY base_offset LIMIT 1
"""


async def load(connection: Connection, generation: int) -> tuple[StoreSnapshot, PostgresWriter]:
    """Everything but the extents, and a writer that goes on from there. Time follows partitions, producers and groups.

    :raises Deposed: another generation leads; what it wrote is not to be acted on.
    """
    await connection.execute(_SNAPSHOT)
    await check_generation(connection, generation)
    partitions = await _rows(connection, _PARTITIONS)
    snapshot = StoreSnapshot(
        cluster_id=await connection.fetchval("SELECT value FROM meta WHERE name = 'cluster_id'"),
        topics=tuple(
            Topic(topic_id, name, partition_count, json.loads(configs), created_ms)
            for topic_id, name, partition_count, configs, created_ms in await _rows(
                connection,
                "SELECT topic_id, name, partition_count, configs, created_ms FROM topics WHERE deleted_ms = 0"
                " ORDER BY created_ms, name",
            )
        ),
        partitions=tuple(PartitionRow(topic_id, partition, *row) for topic_id, partition, _, *row in partitions),
        producers=tuple(
            ProducerSaved(*row)
            for row in await _rows(
                connection,
                "SELECT topic_id, partition, producer_id, state, updated_ms"
                " FROM producers JOIN partitions USING (partition_key)",
            )
        ),
        answers=tuple(
            SegmentAdded(*row)
            for row in await _rows(
                connection,
                "SELECT agent_epoch, sequence, segment_key, byte_length, commit_ms, answer, level"
                " FROM answers JOIN segments USING (agent_epoch, sequence) ORDER BY agent_epoch, sequence",
            )
        ),
        agents=tuple(
            _agent(tuple(row))
            for row in await _rows(
                connection,
                "SELECT agent_uid, node_id, agent_epoch, zone, agent_group, host, port, http_address, version, roles,"
                " registered_ms, fenced_ms FROM agents ORDER BY node_id",
            )
        ),
        counters=dict(await _rows(connection, "SELECT name, value FROM counters")),
        groups=tuple(
            _decode_group(record)
            for (record,) in await _rows(connection, "SELECT record FROM consumer_groups ORDER BY group_id")
        ),
        offsets=await _offsets(connection),
        calls=tuple(
            CallAnswered(*row)
            for row in await _rows(connection, "SELECT call_id, answer, answered_ms FROM calls ORDER BY answered_ms")
        ),
        deleted_topics=tuple(
            DeletedTopic(Topic(topic_id, name, partition_count, json.loads(configs), created_ms), deleted_ms)
            for topic_id, name, partition_count, configs, created_ms, deleted_ms in await _rows(
                connection,
                "SELECT topic_id, name, partition_count, configs, created_ms, deleted_ms FROM topics"
                " WHERE deleted_ms > 0 ORDER BY deleted_ms, topic_id",
            )
        ),
    )
    segment_id_max = await connection.fetchval("SELECT max(segment_id) FROM segments")
    await commit(connection)
    known = ((topic_id, partition, key, high, latest) for topic_id, partition, key, _, high, latest, _ in partitions)
    return snapshot, PostgresWriter(generation, known, segment_id_max or 0)


def _agent(row: _AgentRow) -> AgentSaved:
    return AgentSaved(*row[:9], tuple(filter(None, row[9].split(","))), *row[10:])


async def _offsets(connection: Connection) -> dict[str, tuple[OffsetRecord, ...]]:
    offsets: dict[str, list[OffsetRecord]] = defaultdict(list)
    for group_id, topic_id, partition, offset, leader_epoch, metadata, commit_ms in await _rows(
        connection,
        "SELECT group_id, topic_id, partition, committed_offset, leader_epoch, metadata, commit_ms"
        " FROM group_offsets JOIN partitions USING (partition_key)",
    ):
        record = OffsetRecord(topic_id, partition, offset, leader_epoch, metadata.decode(), commit_ms)
        offsets[group_id.decode()].append(record)
    return {group_id: tuple(records) for group_id, records in offsets.items()}


async def _rows(connection: Connection, query: str) -> list[Any]:
    return await connection.fetch(query, timeout=SNAPSHOT_SECONDS)


async def find_extents(
    pool: Pool, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
) -> list[Extent]:
    """See :meth:`metadata.store.port.MetadataStore.find_extents`. A few seeks, and one step for each extent read."""
    found: list[Extent] = []
    byte_count = 0
    for count in EXTENTS_READ:
        rows = await pool.fetch(_FIND, topic_id, partition, offset, before_offset, count)
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


async def find_extent_by_timestamp(pool: Pool, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
    """See :meth:`metadata.store.port.MetadataStore.find_extent_by_timestamp`. At most 63 seeks."""
    row = await pool.fetchrow(_FIND_BY_TIMESTAMP, topic_id, partition, timestamp_ms)
    return Extent(topic_id, partition, *row) if row is not None else None


async def sum_extents(
    pool: Pool, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
) -> tuple[int, int]:
    """See :meth:`metadata.store.port.MetadataStore.sum_extents`. One step for each."""
    ((count, size, end),) = await pool.fetch(
        f"""
        WITH {_WANTED}
        SELECT count(*), coalesce(sum(byte_length), 0)::bigint, coalesce(max(last_offset) + 1, 0) FROM (
            SELECT byte_length, last_offset FROM extents
            WHERE partition_key = (SELECT key FROM wanted)
                AND base_offset >= coalesce((
                    SELECT max(base_offset) FROM extents
                    WHERE partition_key = (SELECT key FROM wanted) AND base_offset <= $3
                ), $3)
                AND base_offset < $4 AND last_offset >= $3
            ORDER BY base_offset LIMIT $5
        ) AS part
        """,
        topic_id,
        partition,
        offset,
        before_offset,
        row_max,
    )
    return size, end if count == row_max else before_offset


async def find_dead_segments(pool: Pool, until_ms: int, count_max: int) -> list[DeadSegment]:
    """See :meth:`metadata.store.port.MetadataStore.find_dead_segments`. One step for each found."""
    rows = await pool.fetch(
        "SELECT agent_epoch, sequence, segment_key, byte_length, dead_ms FROM segments"
        " WHERE dead_ms > 0 AND dead_ms <= $1 AND NOT EXISTS (SELECT FROM answers"
        " WHERE answers.agent_epoch = segments.agent_epoch AND answers.sequence = segments.sequence)"
        " ORDER BY dead_ms LIMIT $2",
        until_ms,
        count_max,
    )
    return [DeadSegment(*row) for row in rows]


async def find_segments(pool: Pool, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """See :meth:`metadata.store.port.MetadataStore.find_segments`. One seek for each."""
    rows = await pool.fetch(
        "SELECT agent_epoch, sequence, segment_key FROM unnest($1::bigint[], $2::bigint[]) AS wanted (epoch, number)"
        " JOIN segments ON agent_epoch = wanted.epoch AND sequence = wanted.number",
        [agent_epoch for agent_epoch, _ in segments],
        [sequence for _, sequence in segments],
    )
    return {(agent_epoch, sequence): key for agent_epoch, sequence, key in rows}


async def segment_totals(pool: Pool, after_id: int, row_max: int) -> SegmentTotals:
    """See :meth:`metadata.store.port.MetadataStore.segment_totals`."""
    (row,) = await pool.fetch(
        "SELECT count(*), coalesce(sum(byte_length), 0)::bigint, coalesce(sum(live_bytes), 0)::bigint,"
        " count(nullif(dead_ms, 0)), coalesce(sum(byte_length) FILTER (WHERE dead_ms > 0), 0)::bigint,"
        " coalesce(max(segment_id), 0)"
        " FROM (SELECT * FROM segments WHERE segment_id > $1 ORDER BY segment_id LIMIT $2) AS part",
        after_id,
        row_max,
    )
    return SegmentTotals(row[0], row[1], row[2], row[3], row[4], row[5] if row[0] == row_max else 0)
