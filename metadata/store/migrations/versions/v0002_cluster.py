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


def upgrade() -> None:
    run(sqlite=_SQLITE)
