"""Runs Alembic on a connection. Imports SQLAlchemy: import this only when there is something to migrate. Blocking."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

_alone = threading.Lock()
"""Alembic's context is one for the whole process."""


def upgrade(connection: sqlalchemy.Connection, adopted: str | None = None, to: str = "head") -> None:
    """Bring the schema to revision ``to``, all in one transaction that the caller began and commits.

    ``adopted``: the revision the schema has already, for a store from before Alembic.
    """
    with _alone:
        _upgrade(connection, adopted, to)


def _upgrade(connection: sqlalchemy.Connection, adopted: str | None, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
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


async def upgrade_postgresql(connect: Callable[[], Awaitable[Any]], lock: int, to: str = "head") -> None:
    """As :func:`upgrade`, on an asyncpg connection of its own that ``connect`` makes, and that is closed at the end.

    ``lock`` is the key of an advisory lock that is held meanwhile: whoever migrates waits for whoever does so already.

    :raises asyncpg.PostgresError: nothing was changed.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=sqlalchemy.NullPool)
    await asyncio.to_thread(_alone.acquire)
    try:
        async with engine.begin() as opened:
            await opened.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
            await opened.run_sync(_upgrade, None, to)
    except sqlalchemy.exc.DBAPIError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        raise cause or error from error
    finally:
        _alone.release()
        await engine.dispose()
