"""What compaction asks of the SQLite schema, and the swap of extents. Blocking.

As few statements as for one extent, however many: each is a wait for the interpreter lock.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain

from metadata.compaction import SegmentSummary
from metadata.model import Extent, TopicId
from metadata.store.port import ExtentsSwapped, OffsetRange

_RANGES_AT_ONCE = 100
"""Five values each: below SQLite's oldest limit of 999."""
_EXTENT = """base_offset, last_offset, segment_key, byte_position, extents.byte_length, max_timestamp_ms,
    extents.commit_ms, level"""
_SWAP_TABLE = """
    CREATE TEMP TABLE IF NOT EXISTS swapped (
        partition_key INTEGER, base_offset INTEGER, last_offset INTEGER, byte_position INTEGER, byte_length INTEGER,
        max_timestamp_ms INTEGER, commit_ms INTEGER, PRIMARY KEY (partition_key, base_offset)
    ) WITHOUT ROWID
"""
# CROSS JOIN fixes the order: from the ranges to the extents in them.
_IN_RANGES = """
    swapped CROSS JOIN extents ON extents.partition_key = swapped.partition_key
        AND extents.base_offset BETWEEN swapped.base_offset AND swapped.last_offset
"""
_RELEASE = f"""
    UPDATE segments SET
        live_extents = live_extents - went.extents,
        live_bytes = live_bytes - went.bytes,
        dead_ms = iif(live_extents = went.extents, :now, 0)
    FROM (
        SELECT segment_id, count(*) AS extents, sum(extents.byte_length) AS bytes FROM {_IN_RANGES} GROUP BY segment_id
    ) AS went
    WHERE segments.segment_id = went.segment_id
"""
_ADD_SEGMENT = """
    INSERT INTO segments (segment_id, agent_epoch, sequence, segment_key, byte_length, commit_ms, level, live_extents,
        live_bytes, dead_ms, contents)
    SELECT :segment_id, :agent_epoch, :sequence, :segment_key, :byte_length, :commit_ms, :level, count(*),
        sum(byte_length), 0, group_concat('[' || partition_key || ',' || base_offset || ']') FROM swapped WHERE true
    ON CONFLICT (agent_epoch, sequence) DO UPDATE SET
        live_extents = live_extents + excluded.live_extents, live_bytes = live_bytes + excluded.live_bytes, dead_ms = 0,
        contents = contents || ',' || excluded.contents
"""
# The first row of each range becomes the new extent; running_timestamp_ms is that of the last.
_REPLACE_FIRST = """
    UPDATE extents SET
        last_offset = swapped.last_offset,
        segment_id = (SELECT segment_id FROM segments WHERE agent_epoch = :agent_epoch AND sequence = :sequence),
        byte_position = swapped.byte_position,
        byte_length = swapped.byte_length,
        max_timestamp_ms = swapped.max_timestamp_ms,
        running_timestamp_ms = (
            SELECT running_timestamp_ms FROM extents AS last
            WHERE last.partition_key = swapped.partition_key AND last.base_offset <= swapped.last_offset
            ORDER BY last.base_offset DESC LIMIT 1
        ),
        commit_ms = swapped.commit_ms
    FROM swapped
    WHERE extents.partition_key = swapped.partition_key AND extents.base_offset = swapped.base_offset
"""
_DELETE_REST = f"""
    DELETE FROM extents WHERE (partition_key, base_offset) IN (
        SELECT extents.partition_key, extents.base_offset FROM {_IN_RANGES}
        WHERE extents.base_offset > swapped.base_offset
    )
"""


def swap_extents(
    connection: sqlite3.Connection,
    change: ExtentsSwapped,
    partition_key: Callable[[TopicId, int], int],
    segment_id: int,
) -> None:
    """Apply ``change``; its segment gets ``segment_id`` if it is new.

    :raises ValueError: the extents are not those that were looked at; the transaction must be rolled back.
    """
    execute = connection.execute
    execute(_SWAP_TABLE)
    execute("DELETE FROM swapped")
    rows = [
        (
            partition_key(extent.topic_id, extent.partition),
            extent.base_offset,
            extent.last_offset,
            extent.byte_position,
            extent.byte_length,
            extent.max_timestamp_ms,
            extent.commit_ms,
        )
        for extent in change.extents
    ]
    execute(
        "INSERT INTO swapped SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,"
        " value ->> 6 FROM json_each(?)",
        (json.dumps(rows),),
    )
    segment = change.segment
    named = {name: getattr(segment, name) for name in segment.__struct_fields__} | {"segment_id": segment_id}
    execute(_RELEASE, {"now": change.swapped_ms})
    execute(_ADD_SEGMENT, named)
    first = execute(_REPLACE_FIRST, named).rowcount
    rest = execute(_DELETE_REST).rowcount
    if first != len(rows) or first + rest != change.replaced_count:
        raise ValueError(f"{first + rest} extents would be replaced, not {change.replaced_count}: {segment}")


def find_compactable(connection: sqlite3.Connection, level: int, count_max: int) -> list[SegmentSummary]:
    """See :meth:`metadata.store.port.MetadataStore.find_compactable`. One step for each found."""
    (found,) = connection.execute(
        "SELECT json_group_array(json_array(agent_epoch, sequence, segment_key, byte_length, level, commit_ms,"
        " live_extents, live_bytes)) FROM (SELECT * FROM segments WHERE level = ? AND dead_ms = 0"
        " ORDER BY level, commit_ms, segment_id LIMIT ?)",
        (level, count_max),
    ).fetchone()
    return sorted((SegmentSummary(*row) for row in json.loads(found)), key=lambda each: each.commit_ms)


def find_segment_extents(connection: sqlite3.Connection, segments: Sequence[tuple[int, int]]) -> list[Extent]:
    """See :meth:`metadata.store.port.MetadataStore.find_segment_extents`."""
    (found,) = connection.execute(
        f"SELECT json_group_array(json_array(hex(topic_id), partition, {_EXTENT})) FROM json_each(?) AS wanted"
        " CROSS JOIN segments ON agent_epoch = wanted.value ->> 0 AND sequence = wanted.value ->> 1"
        " CROSS JOIN json_each('[' || contents || ']') AS part"
        " CROSS JOIN extents ON extents.partition_key = part.value ->> 0 AND base_offset = part.value ->> 1"
        " AND extents.segment_id = segments.segment_id"
        " CROSS JOIN partitions ON partitions.partition_key = extents.partition_key"
        " WHERE last_offset >= log_start_offset",
        (json.dumps(segments),),
    ).fetchone()
    return [Extent(bytes.fromhex(topic_id), *row) for topic_id, *row in json.loads(found)]


def find_ranges(connection: sqlite3.Connection, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
    """See :meth:`metadata.store.port.MetadataStore.find_ranges`."""
    found: list[list[Extent]] = [[] for _ in ranges]
    for start in range(0, len(ranges), _RANGES_AT_ONCE):
        part = ranges[start : start + _RANGES_AT_ONCE]
        values = ", ".join(["(?, ?, ?, ?, ?)"] * len(part))
        (rows,) = connection.execute(
            f"WITH wanted (number, topic_id, partition, base, last) AS (VALUES {values})"
            f" SELECT json_group_array(json_array(number, {_EXTENT})) FROM wanted"
            " CROSS JOIN partitions USING (topic_id, partition)"
            " CROSS JOIN extents ON extents.partition_key = partitions.partition_key"
            " AND base_offset BETWEEN wanted.base AND wanted.last CROSS JOIN segments USING (segment_id)",
            list(chain.from_iterable((number, *each) for number, each in enumerate(part, start))),
        ).fetchone()
        for number, *row in json.loads(rows):
            topic_id, partition, _, _ = ranges[number]
            found[number].append(Extent(topic_id, partition, *row))
    for extents in found:
        extents.sort(key=lambda extent: extent.base_offset)
    return found
