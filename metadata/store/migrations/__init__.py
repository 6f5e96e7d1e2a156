"""Schema revisions, for SQLite and PostgreSQL alike, applied by Alembic.

A store keeps its revision in ``alembic_version``. Reading it is a query; Alembic and SQLAlchemy are imported only when
there is something to do (``metadata.store.migrations.apply``), so that a start does not pay for them.

A revision that was released never changes: a later one alters what it made. A new one is a file in ``versions/`` and
an entry here.
"""

from __future__ import annotations

from metadata.store.port import StoreUnavailable

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision, oldest first. PostgreSQL stores begin with 0002."""
READ_REVISION = "SELECT version_num FROM alembic_version"
"""What a store without the table answers differs: look for it in the catalogue first."""


def needs_migration(revision: str | None) -> bool:
    """Whether a store at ``revision`` (None: empty) is to be migrated.

    :raises StoreUnavailable: the store was used by a newer version of Tidelog.
    """
    if revision is not None and revision not in REVISIONS:
        raise StoreUnavailable(
            f"its schema has version {revision}, this program knows {REVISIONS[-1]}: it was used by a newer Tidelog"
        )
    return revision != REVISIONS[-1]
