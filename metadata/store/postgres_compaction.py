"""What compaction asks of the PostgreSQL schema, and the statements of a swap of extents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metadata.compaction import SegmentSummary
from metadata.model import Extent, TopicId
from metadata.store.port import ExtentsSwapped, OffsetRange
from metadata.store.postgres_connections import Pool

_EXTENT = """base_offset, last_offset, segment_key, byte_position, extents.byte_length, max_timestamp_ms,
    extents.commit_ms, level"""
_RANGES = "unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS range (key, base, last)"
_IN_RANGES = f"{_RANGES} JOIN extents ON partition_key = range.key AND base_offset BETWEEN range.base AND range.last"
# Fails the transaction (division by zero) when the extents are not those that were looked at.
_CHECK = f"""
    SELECT 1 / (count(*) = $4::bigint AND count(*) FILTER (WHERE base_offset = range.base) = $5::bigint)::integer
    FROM {_IN_RANGES}
"""
_RELEASE = f"""
    UPDATE segments SET
        live_extents = live_extents - went.extents,
        live_bytes = live_bytes - went.bytes,
        dead_ms = CASE WHEN live_extents = went.extents THEN $4::bigint ELSE 0 END
    FROM (SELECT segment_id, count(*) AS extents, sum(byte_length) AS bytes FROM {_IN_RANGES} GROUP BY segment_id)
        AS went
    WHERE segments.segment_id = went.segment_id
"""
_ADD_SEGMENT = """
    INSERT INTO segments (segment_id, agent_epoch, sequence, segment_key, byte_length, commit_ms, level, live_extents,
        live_bytes, dead_ms, contents)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10)
    ON CONFLICT (agent_epoch, sequence) DO UPDATE SET
        live_extents = segments.live_extents + excluded.live_extents,
        live_bytes = segments.live_bytes + excluded.live_bytes, dead_ms = 0,
        contents = segments.contents || ',' || excluded.contents
"""
# The first row of each range becomes the new extent; running_timestamp_ms is that of the last.
_REPLACE_FIRST = """
    UPDATE extents SET
        last_offset = range.last, byte_position = range.position, byte_length = range.length,
        max_timestamp_ms = range.latest, commit_ms = range.committed,
        segment_id = (SELECT segment_id FROM segments WHERE agent_epoch = $8 AND sequence = $9),
        running_timestamp_ms = (
            SELECT running_timestamp_ms FROM extents AS final
            WHERE final.partition_key = range.key AND final.base_offset <= range.last
            ORDER BY final.base_offset DESC LIMIT 1
        )
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
        AS range (key, base, last, position, length, latest, committed)
    WHERE partition_key = range.key AND base_offset = range.base
"""
_DELETE_REST = f"""
    DELETE FROM extents USING {_RANGES}
    WHERE partition_key = range.key AND base_offset > range.base AND base_offset <= range.last
"""


def swap_statements(
    change: ExtentsSwapped, partition_key: Callable[[TopicId, int], int], segment_id: int
) -> list[tuple[str, tuple[object, ...]]]:
    """What applies ``change`` within a transaction; its segment gets ``segment_id`` if it is new."""
    extents, segment = change.extents, change.segment
    keys = [partition_key(extent.topic_id, extent.partition) for extent in extents]
    bases, lasts = [extent.base_offset for extent in extents], [extent.last_offset for extent in extents]
    return [
        (_CHECK, (keys, bases, lasts, change.replaced_count, len(extents))),
        (_RELEASE, (keys, bases, lasts, change.swapped_ms)),
        (
            _ADD_SEGMENT,
            (
                segment_id,
                segment.agent_epoch,
                segment.sequence,
                segment.segment_key,
                segment.byte_length,
                segment.commit_ms,
                segment.level,
                len(extents),
                sum(extent.byte_length for extent in extents),
                ",".join([f"[{key},{base}]" for key, base in zip(keys, bases, strict=True)]),
            ),
        ),
        (
            _REPLACE_FIRST,
            (
                keys,
                bases,
                lasts,
                [extent.byte_position for extent in extents],
                [extent.byte_length for extent in extents],
                [extent.max_timestamp_ms for extent in extents],
                [extent.commit_ms for extent in extents],
                segment.agent_epoch,
                segment.sequence,
            ),
        ),
        (_DELETE_REST, (keys, bases, lasts)),
    ]


async def find_compactable(pool: Pool, level: int, count_max: int) -> list[SegmentSummary]:
    """See :meth:`metadata.store.port.MetadataStore.find_compactable`. One step for each found."""
    rows = await pool.fetch(
        "SELECT agent_epoch, sequence, segment_key, byte_length, level, commit_ms, live_extents, live_bytes"
        " FROM segments WHERE level = $1 AND dead_ms = 0 ORDER BY commit_ms LIMIT $2",
        level,
        count_max,
    )
    return [SegmentSummary(*row) for row in rows]


async def find_segment_extents(pool: Pool, segments: Sequence[tuple[int, int]]) -> list[Extent]:
    """See :meth:`metadata.store.port.MetadataStore.find_segment_extents`."""
    rows = await pool.fetch(
        f"SELECT topic_id, partition, {_EXTENT} FROM unnest($1::bigint[], $2::bigint[]) AS wanted (epoch, number)"
        " JOIN segments ON agent_epoch = wanted.epoch AND sequence = wanted.number"
        " CROSS JOIN LATERAL json_array_elements(('[' || contents || ']')::json) AS part (pair)"
        " JOIN extents ON extents.partition_key = (pair ->> 0)::bigint AND base_offset = (pair ->> 1)::bigint"
        " AND extents.segment_id = segments.segment_id"
        " JOIN partitions ON partitions.partition_key = extents.partition_key"
        " WHERE last_offset >= log_start_offset",
        [agent_epoch for agent_epoch, _ in segments],
        [sequence for _, sequence in segments],
    )
    return [Extent(*row) for row in rows]


async def find_ranges(pool: Pool, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
    """See :meth:`metadata.store.port.MetadataStore.find_ranges`."""
    rows = await pool.fetch(
        f"SELECT wanted.number, wanted.topic_id, wanted.partition, {_EXTENT}"
        " FROM unnest($1::integer[], $2::bytea[], $3::integer[], $4::bigint[], $5::bigint[])"
        " AS wanted (number, topic_id, partition, base, last)"
        " JOIN partitions ON partitions.topic_id = wanted.topic_id AND partitions.partition = wanted.partition"
        " JOIN extents ON extents.partition_key = partitions.partition_key"
        " AND base_offset BETWEEN wanted.base AND wanted.last"
        " JOIN segments USING (segment_id) ORDER BY wanted.number, base_offset",
        list(range(len(ranges))),
        [topic_id for topic_id, _, _, _ in ranges],
        [partition for _, partition, _, _ in ranges],
        [base for _, _, base, _ in ranges],
        [last for _, _, _, last in ranges],
    )
    found: list[list[Extent]] = [[] for _ in ranges]
    for number, *row in rows:
        found[number].append(Extent(*row))
    return found
