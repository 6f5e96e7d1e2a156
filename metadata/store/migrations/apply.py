"""Runs Alembic on a connection. Imports SQLAlchemy: import this only when there is something to migrate. Blocking."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config

_alone = threading.Lock()
"""Alembic's context is one for the whole process."""


def upgrade(connection: sqlalchemy.Connection, adopted: str | None = None, to: str = "head") -> None:
    """Bring the schema to revision ``to``, all in one transaction that the caller began and commits.

    ``adopted``: the revision the schema has already, for a store from before Alembic.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    with _alone:
        if adopted is not None:
            command.stamp(config, adopted)
        command.upgrade(config, to)


def upgrade_sqlite(connection: sqlite3.Connection, adopted: str | None = None, to: str = "head") -> None:
    """As :func:`upgrade`, for a connection in autocommit mode; all or nothing.

    :raises sqlite3.Error: nothing was changed.
    """
    engine = sqlalchemy.create_engine("sqlite://", creator=lambda: connection, poolclass=sqlalchemy.StaticPool)
    # In autocommit mode the driver begins no transaction by itself.
    sqlalchemy.event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as opened:
            upgrade(opened, adopted, to)
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise error.orig from error
        raise
