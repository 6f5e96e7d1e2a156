"""Agents keep all they said of themselves, and rare calls their answers. PostgreSQL stores begin here."""

from __future__ import annotations

from metadata.store.migrations.statements import run

revision = "0002"
down_revision = "0001"

# Until now agent and metadata service were one process, so no agent's epoch is in use: all are fenced.
# A release from before Alembic looks at user_version and refuses what it does not know.
_SQLITE = """
ALTER TABLE agents ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN port INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agents ADD COLUMN http_address TEXT NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN version TEXT NOT NULL DEFAULT '';
-- Separated by commas.
ALTER TABLE agents ADD COLUMN roles TEXT NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN registered_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agents ADD COLUMN fenced_ms INTEGER NOT NULL DEFAULT 0;
UPDATE agents SET agent_epoch = -1;
DELETE FROM answers;

-- What expired, and which topics were deleted, was not written down: any producer so far may have been forgotten.
ALTER TABLE partitions ADD COLUMN producer_id_floor INTEGER NOT NULL DEFAULT 0;
UPDATE partitions SET producer_id_floor = coalesce((SELECT value FROM counters WHERE name = 'producer_id'), 0);
INSERT INTO counters SELECT 'deleted_topics', value FROM counters WHERE name = 'producer_id';

CREATE TABLE calls (
    call_id TEXT PRIMARY KEY,
    answer BLOB NOT NULL,
    answered_ms INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA user_version = 2;
"""

# As in SQLite but for three things. What clients choose is kept as bytes: PostgreSQL's text cannot hold a zero byte.
# What is replaced all the time leaves room in its pages, so that the indexes need not be touched. And who leads is a
# row of its own, apart from the one that is renewed every second: a write holds the first until it is done.
_POSTGRESQL = """
CREATE TABLE meta (
    name text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE leader (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL
);
INSERT INTO leader (generation) VALUES (0);

CREATE TABLE renewals (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint NOT NULL,
    renewed bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO renewals (generation, renewed) VALUES (0, 0);

CREATE TABLE topics (
    topic_id bytea PRIMARY KEY,
    name text NOT NULL,
    partition_count integer NOT NULL,
    -- A JSON object.
    configs text NOT NULL,
    created_ms bigint NOT NULL
);

-- Keys come from a sequence and are never used again.
CREATE TABLE partitions (
    partition_key bigint PRIMARY KEY,
    topic_id bytea NOT NULL,
    partition integer NOT NULL,
    log_start_offset bigint NOT NULL DEFAULT 0,
    producer_id_floor bigint NOT NULL DEFAULT 0,
    UNIQUE (topic_id, partition)
) WITH (fillfactor = 80);
CREATE SEQUENCE partition_keys;

CREATE TABLE dropped_partitions (
    partition_key bigint PRIMARY KEY
);

CREATE TABLE segments (
    segment_id bigint PRIMARY KEY,
    agent_epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    segment_key text NOT NULL,
    byte_length bigint NOT NULL,
    commit_ms bigint NOT NULL,
    UNIQUE (agent_epoch, sequence)
);

CREATE TABLE extents (
    partition_key bigint NOT NULL,
    base_offset bigint NOT NULL,
    last_offset bigint NOT NULL,
    segment_id bigint NOT NULL,
    byte_position bigint NOT NULL,
    byte_length bigint NOT NULL,
    max_timestamp_ms bigint NOT NULL,
    running_timestamp_ms bigint NOT NULL,
    commit_ms bigint NOT NULL,
    PRIMARY KEY (partition_key, base_offset)
);

CREATE TABLE answers (
    agent_epoch bigint NOT NULL,
    sequence bigint NOT NULL,
    answer bytea NOT NULL,
    PRIMARY KEY (agent_epoch, sequence)
);

CREATE TABLE producers (
    partition_key bigint NOT NULL,
    producer_id bigint NOT NULL,
    state bytea NOT NULL,
    updated_ms bigint NOT NULL,
    PRIMARY KEY (partition_key, producer_id)
) WITH (fillfactor = 50);

CREATE TABLE agents (
    agent_uid text PRIMARY KEY,
    node_id bigint NOT NULL,
    agent_epoch bigint NOT NULL,
    zone text NOT NULL,
    agent_group text NOT NULL,
    host text NOT NULL,
    port integer NOT NULL,
    http_address text NOT NULL,
    version text NOT NULL,
    roles text NOT NULL,
    registered_ms bigint NOT NULL,
    fenced_ms bigint NOT NULL
);

CREATE TABLE calls (
    call_id text PRIMARY KEY,
    answer bytea NOT NULL,
    answered_ms bigint NOT NULL
);

CREATE TABLE counters (
    name text PRIMARY KEY,
    value bigint NOT NULL
) WITH (fillfactor = 50);

-- A MessagePack GroupRecord, and the group's id in UTF-8.
CREATE TABLE consumer_groups (
    group_id bytea PRIMARY KEY,
    record bytea NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE group_offsets (
    group_id bytea NOT NULL,
    partition_key bigint NOT NULL,
    committed_offset bigint NOT NULL,
    leader_epoch bigint NOT NULL,
    metadata bytea NOT NULL,
    commit_ms bigint NOT NULL,
    PRIMARY KEY (group_id, partition_key)
) WITH (fillfactor = 50);
CREATE INDEX group_offsets_by_partition ON group_offsets (partition_key);
"""


def upgrade() -> None:
    run(sqlite=_SQLITE, postgresql=_POSTGRESQL)
