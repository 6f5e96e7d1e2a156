"""Segments know how much of them is still referenced; logs begin later than at 0; deleted topics can come back."""

from __future__ import annotations

from metadata.store.migrations.statements import run

revision = "0003"
down_revision = "0002"

# live_extents, live_bytes: of the extents that reference the segment. dead_ms: when the last of them went; 0: it is
# alive. trimmed_partitions: partitions that may have extents below their log start offset, which are to be removed.
# deleted_ms: when the topic was deleted; it can be brought back until its partitions are dropped. 0: it is there.
_SQLITE = """
ALTER TABLE segments ADD COLUMN live_extents INTEGER NOT NULL DEFAULT 0;
ALTER TABLE segments ADD COLUMN live_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE segments ADD COLUMN dead_ms INTEGER NOT NULL DEFAULT 0;
UPDATE segments SET live_extents = live.extents, live_bytes = live.bytes FROM (
    SELECT segment_id, count(*) AS extents, sum(byte_length) AS bytes FROM extents GROUP BY segment_id
) AS live WHERE segments.segment_id = live.segment_id;
UPDATE segments SET dead_ms = CAST(strftime('%s', 'now') AS INTEGER) * 1000 WHERE live_extents = 0;
CREATE INDEX segments_dead ON segments (dead_ms) WHERE dead_ms > 0;

CREATE TABLE trimmed_partitions (
    partition_key INTEGER PRIMARY KEY
);

ALTER TABLE topics ADD COLUMN deleted_ms INTEGER NOT NULL DEFAULT 0;
"""

_POSTGRESQL = """
ALTER TABLE segments ADD COLUMN live_extents bigint NOT NULL DEFAULT 0;
ALTER TABLE segments ADD COLUMN live_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE segments ADD COLUMN dead_ms bigint NOT NULL DEFAULT 0;
UPDATE segments SET live_extents = live.extents, live_bytes = live.bytes FROM (
    SELECT segment_id, count(*) AS extents, sum(byte_length) AS bytes FROM extents GROUP BY segment_id
) AS live WHERE segments.segment_id = live.segment_id;
UPDATE segments SET dead_ms = (extract(epoch FROM now()) * 1000)::bigint WHERE live_extents = 0;
CREATE INDEX segments_dead ON segments (dead_ms) WHERE dead_ms > 0;

CREATE TABLE trimmed_partitions (
    partition_key bigint PRIMARY KEY
);

ALTER TABLE topics ADD COLUMN deleted_ms bigint NOT NULL DEFAULT 0;
"""


def upgrade() -> None:
    run(sqlite=_SQLITE, postgresql=_POSTGRESQL)
