"""Segments have levels, and know the extents that were put into them: what compaction asks for."""

from __future__ import annotations

from metadata.store.migrations.statements import run

revision = "0004"
down_revision = "0003"

# level: 0 as ingested, -1 when compaction would gain nothing, higher when compacted, 9 when that gains nothing more
# (metadata/compaction.py).
# contents: pairs of JSON, [partition_key,base_offset], commas between them: where extents of it are, or were.
# An index on extents.segment_id would say the same and makes a commit of many extents cost twice as much.
_STATEMENTS = """
ALTER TABLE segments ADD COLUMN level {integer} NOT NULL DEFAULT 0;
UPDATE segments SET level = -1 WHERE live_bytes >= live_extents * 4194304;
CREATE INDEX segments_live ON segments (level, commit_ms) WHERE dead_ms = 0;
ALTER TABLE segments ADD COLUMN contents {text} NOT NULL DEFAULT '';
UPDATE segments SET contents = live.contents FROM (
    SELECT segment_id, {concat}('[' || partition_key || ',' || base_offset || ']', ',') AS contents
    FROM extents GROUP BY segment_id
) AS live WHERE segments.segment_id = live.segment_id;
"""


def upgrade() -> None:
    run(
        sqlite=_STATEMENTS.format(integer="INTEGER", text="TEXT", concat="group_concat"),
        postgresql=_STATEMENTS.format(integer="bigint", text="text", concat="string_agg"),
    )
