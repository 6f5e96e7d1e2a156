"""The first schema, of SQLite only. Stores made before Alembic have it, with ``PRAGMA user_version`` 1."""

from __future__ import annotations

from metadata.store.migrations.statements import run

revision = "0001"
down_revision = None

_SQLITE = """
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE topics (
    topic_id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    partition_count INTEGER NOT NULL,
    configs TEXT NOT NULL, -- JSON object
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;

-- AUTOINCREMENT: a key is never used again, so rows a deleted topic left behind can be removed at leisure.
-- The high watermark is one more than the last offset of the last extent, or the log start offset when there is none.
CREATE TABLE partitions (
    partition_key INTEGER PRIMARY KEY AUTOINCREMENT,
    topic_id BLOB NOT NULL,
    partition INTEGER NOT NULL,
    log_start_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic_id, partition)
);

-- Partitions of deleted topics whose rows in other tables are still to be removed.
CREATE TABLE dropped_partitions (
    partition_key INTEGER PRIMARY KEY
);

CREATE TABLE segments (
    segment_id INTEGER PRIMARY KEY,
    agent_epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    segment_key TEXT NOT NULL,
    byte_length INTEGER NOT NULL,
    commit_ms INTEGER NOT NULL,
    UNIQUE (agent_epoch, sequence)
);

-- running_timestamp_ms: the largest max_timestamp_ms of this extent and all before it in its partition. It never
-- falls from one offset to the next, so the first extent at or after a timestamp is found by halving.
CREATE TABLE extents (
    partition_key INTEGER NOT NULL,
    base_offset INTEGER NOT NULL,
    last_offset INTEGER NOT NULL,
    segment_id INTEGER NOT NULL,
    byte_position INTEGER NOT NULL,
    byte_length INTEGER NOT NULL,
    max_timestamp_ms INTEGER NOT NULL,
    running_timestamp_ms INTEGER NOT NULL,
    commit_ms INTEGER NOT NULL,
    PRIMARY KEY (partition_key, base_offset)
) WITHOUT ROWID;

CREATE TABLE answers (
    agent_epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    answer BLOB NOT NULL, -- MessagePack SegmentCommitted
    PRIMARY KEY (agent_epoch, sequence)
) WITHOUT ROWID;

CREATE TABLE producers (
    partition_key INTEGER NOT NULL,
    producer_id INTEGER NOT NULL,
    state BLOB NOT NULL, -- MessagePack ProducerRecord
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (partition_key, producer_id)
) WITHOUT ROWID;

CREATE TABLE agents (
    agent_uid TEXT PRIMARY KEY,
    node_id INTEGER NOT NULL,
    agent_epoch INTEGER NOT NULL,
    zone TEXT NOT NULL,
    agent_group TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE consumer_groups (
    group_id TEXT PRIMARY KEY,
    record BLOB NOT NULL -- MessagePack GroupRecord
) WITHOUT ROWID;

CREATE TABLE group_offsets (
    group_id TEXT NOT NULL,
    partition_key INTEGER NOT NULL,
    committed_offset INTEGER NOT NULL,
    leader_epoch INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    commit_ms INTEGER NOT NULL,
    PRIMARY KEY (group_id, partition_key)
) WITHOUT ROWID;

CREATE INDEX group_offsets_by_partition ON group_offsets (partition_key);
"""


def upgrade() -> None:
    run(sqlite=_SQLITE)
