"""Reading the SQLite schema: the hot state at start-up, and extents by offset or timestamp. Blocking."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict

import msgspec

from metadata.group_model import GroupRecord, OffsetRecord
from metadata.model import EXTENTS_FOUND_MAX, Extent, Topic, TopicId
from metadata.store.port import AgentSaved, PartitionRow, ProducerSaved, SegmentAdded, StoreSnapshot

_decode_group = msgspec.msgpack.Decoder(GroupRecord).decode

# CROSS JOIN fixes the order of the join: from the few rows asked for to the segments they name.
_EXTENT_COLUMNS = """
    SELECT base_offset, last_offset, segment_key, byte_position, extents.byte_length, max_timestamp_ms,
        extents.commit_ms
    FROM extents CROSS JOIN segments USING (segment_id)
"""
_PARTITION_KEY = "SELECT partition_key FROM partitions WHERE topic_id = ? AND partition = ?"
_EXTENT_AT = """
    SELECT base_offset, last_offset, running_timestamp_ms FROM extents
    WHERE partition_key = ? AND base_offset <= ? ORDER BY base_offset DESC LIMIT 1
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
                "SELECT topic_id, name, partition_count, configs, created_ms FROM topics ORDER BY created_ms, name"
            )
        ),
        partitions=tuple(
            PartitionRow(*row)
            for row in query(
                "SELECT topic_id, partition, log_start_offset, high_watermark, max_timestamp_ms FROM partitions"
                " ORDER BY partition_key"
            )
        ),
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
                "SELECT agent_epoch, sequence, segment_key, byte_length, commit_ms, answer"
                " FROM answers CROSS JOIN segments USING (agent_epoch, sequence)"
            )
        ),
        agents=tuple(
            AgentSaved(*row) for row in query("SELECT agent_uid, node_id, agent_epoch, zone, agent_group FROM agents")
        ),
        counters=dict(query("SELECT name, value FROM counters").fetchall()),
        groups=tuple(_decode_group(record) for (record,) in query("SELECT record FROM consumer_groups")),
        offsets={group_id: tuple(records) for group_id, records in offsets.items()},
    )


def find_extents(
    connection: sqlite3.Connection,
    topic_id: TopicId,
    partition: int,
    offset: int,
    byte_max: int,
    before_offset: int,
) -> list[Extent]:
    """See :meth:`metadata.store.port.MetadataStore.find_extents`. Two seeks and one step for each extent found."""
    key = _partition_key(connection, topic_id, partition)
    holder = None if key is None else connection.execute(_EXTENT_AT, (key, offset)).fetchone()
    start = holder[0] if holder is not None and holder[1] >= offset else offset
    rows = connection.execute(
        f"{_EXTENT_COLUMNS} WHERE partition_key = ? AND base_offset >= ? AND base_offset < ?"
        " ORDER BY base_offset LIMIT ?",
        (key, start, before_offset, EXTENTS_FOUND_MAX),
    )
    found: list[Extent] = []
    byte_count = 0
    for row in rows:
        if found and byte_count >= byte_max:
            break
        extent = Extent(topic_id, partition, *row)
        found.append(extent)
        byte_count += extent.byte_length
    rows.close()
    return found


def find_extent_by_timestamp(
    connection: sqlite3.Connection, topic_id: TopicId, partition: int, timestamp_ms: int
) -> Extent | None:
    """See :meth:`metadata.store.port.MetadataStore.find_extent_by_timestamp`.

    Halves the offsets of the partition: at most 63 seeks, whatever its length.
    """
    key = _partition_key(connection, topic_id, partition)
    newest = None if key is None else connection.execute(_EXTENT_AT, (key, 2**63 - 1)).fetchone()
    if newest is None or newest[2] < timestamp_ms:
        return None
    low, high = 0, newest[0]
    found = newest[0]
    while low <= high:
        holder = connection.execute(_EXTENT_AT, (key, (low + high) // 2)).fetchone()
        if holder is None:
            low = (low + high) // 2 + 1  # below the first extent
        elif holder[2] >= timestamp_ms:
            found = holder[0]
            high = holder[0] - 1
        else:
            low = max(holder[1], (low + high) // 2) + 1
    row = connection.execute(f"{_EXTENT_COLUMNS} WHERE partition_key = ? AND base_offset = ?", (key, found)).fetchone()
    return None if row is None else Extent(topic_id, partition, *row)


def _partition_key(connection: sqlite3.Connection, topic_id: TopicId, partition: int) -> int | None:
    row = connection.execute(_PARTITION_KEY, (topic_id, partition)).fetchone()
    return None if row is None else int(row[0])
