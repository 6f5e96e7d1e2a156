"""SQLite's side of :mod:`metadata.store.tables`. Blocking but for :class:`SqliteView`, which has its own thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from metadata.store.port import StoreUnavailable
from metadata.store.tables import (
    KEYS_SKIPPED,
    LEADING_META,
    LEADING_TABLES,
    RESTORING,
    Column,
    NotEmpty,
    Row,
    Table,
    convert,
)

T = TypeVar("T")

BUSY_SECONDS = 5.0
_KINDS = {"INTEGER": "integer", "TEXT": "text", "BLOB": "bytes"}
_MARKED = "SELECT value FROM meta WHERE name = 'restoring'"
_decode_rows = msgspec.json.Decoder(list[Row]).decode


class SqliteView:
    """Implements :class:`metadata.store.tables.TableView`; also for a file that another process writes to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metadata-view")
        self._connection: sqlite3.Connection | None = None

    async def connect(self) -> None:
        """:raises StoreUnavailable: there is no such file, or it cannot be read."""
        self._connection = await self._on(lambda: _connect_to_read(self._path))

    async def begin(self) -> tuple[Table, ...]:
        return await self._on(self._begin)

    async def rows(self, table: Table, after: Row | None, count: int) -> list[Row]:
        return await self._on(lambda: read_rows(self._connected(), table, after, count))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._on(connection.close)
        self._thread.shutdown(wait=False)

    def _begin(self) -> tuple[Table, ...]:
        connection = self._connected()
        connection.execute("BEGIN")  # the moment is that of the first read, which comes now
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            raise StoreUnavailable(f"{self._path} is not a metadata store, or one of an old release: start it once")
        return read_tables(connection)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path} is closed")
        return self._connection

    async def _on(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError, RuntimeError) as error:
            raise StoreUnavailable(f"{self._path} cannot be read: {error}") from error


def _connect_to_read(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA query_only = ON")
    return connection


def read_tables(connection: sqlite3.Connection) -> tuple[Table, ...]:
    """All of them, by name."""
    names = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        if name not in LEADING_TABLES
    ]
    tables = []
    for name in names:
        columns = connection.execute("SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid", (name,)).fetchall()
        key = tuple(column for column, _, _ in sorted(columns, key=lambda each: each[2]) if _in_key(columns, column))
        tables.append(Table(name, tuple(Column(column, _KINDS[kind]) for column, kind, _ in columns), key))  # type: ignore[arg-type]
    return tuple(tables)


def _in_key(columns: list[tuple[str, str, int]], name: str) -> bool:
    return any(column == name and place > 0 for column, _, place in columns)


def read_rows(connection: sqlite3.Connection, table: Table, after: Row | None, count: int) -> list[Row]:
    """See :meth:`metadata.store.tables.TableView.rows`.

    One row of JSON, for Python gives up the interpreter lock around every row it takes and has to win it back from a
    busy event loop. JSON has no bytes: they come as hexadecimal.
    """
    values = ", ".join(f"hex({column.name})" if column.kind == "bytes" else column.name for column in table.columns)
    keys = ", ".join(table.key)
    where = [f"({keys}) > ({', '.join('?' * len(table.key))})"] if after is not None else []
    if table.name == "meta":
        where.append(f"name NOT IN {LEADING_META}")
    condition = f"WHERE {' AND '.join(where)}" if where else ""
    query = (
        f"SELECT json_group_array(json(fields)) FROM (SELECT json_array({values}) AS fields FROM {table.name}"
        f" {condition} ORDER BY {keys} LIMIT ?)"
    )
    rows = _decode_rows(connection.execute(query, (*(after or ()), count)).fetchone()[0])
    return from_hexadecimal(rows, table)


def from_hexadecimal(rows: list[Row], table: Table) -> list[Row]:
    """With bytes where they came as hexadecimal; in place."""
    for place, column in enumerate(table.columns):
        if column.kind == "bytes":
            for row in rows:
                row[place] = bytes.fromhex(row[place])
    return rows


def begin_restore(connection: sqlite3.Connection, name: str) -> bool:
    """See :meth:`metadata.store.tables.TableStore.begin_restore`; in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        interrupted = connection.execute(_MARKED).fetchone() is not None
        for table in read_tables(connection):
            if interrupted and table.name != "meta":
                connection.execute(f"DELETE FROM {table.name}")
            elif table.name != "meta" and connection.execute(f"SELECT 1 FROM {table.name} LIMIT 1").fetchone():
                raise NotEmpty(f"there are rows in its table {table.name}")
        connection.execute("DELETE FROM meta WHERE name <> 'generation'")
        connection.execute("INSERT INTO meta VALUES (?, ?)", (RESTORING, name))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return interrupted


def load_rows(connection: sqlite3.Connection, table: Table, rows: Sequence[Row]) -> None:
    """See :meth:`metadata.store.tables.TableStore.load_rows`. :raises ValueError: no such table or column."""
    known = {known.name: known for known in read_tables(connection)}.get(table.name)
    kinds = {column.name: column.kind for column in known.columns} if known is not None else {}
    unknown = [column.name for column in table.columns if column.name not in kinds]
    if known is None or unknown:
        raise ValueError(f"there is no table {table.name} with the columns {unknown}: it comes from a newer Tidelog")
    names = ", ".join(column.name for column in table.columns)
    places = ", ".join("?" * len(table.columns))
    wanted = [kinds[column.name] for column in table.columns]
    converted: list[list[Any]] = [convert(row, table.columns, wanted) for row in rows]
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({places})", converted)
        if table.name in ("partitions", "dropped_partitions"):
            highest = connection.execute(f"SELECT max(partition_key) FROM {table.name}").fetchone()[0] + KEYS_SKIPPED
            connection.execute(
                "INSERT INTO sqlite_sequence SELECT 'partitions', 0 WHERE NOT EXISTS"
                " (SELECT 1 FROM sqlite_sequence WHERE name = 'partitions')"
            )
            connection.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'partitions'", (highest,))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def end_restore(connection: sqlite3.Connection, generation: int) -> None:
    """See :meth:`metadata.store.tables.TableStore.end_restore`."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(
        "UPDATE meta SET value = CAST(max(CAST(value AS INTEGER), ?) AS TEXT) WHERE name = 'generation'", (generation,)
    )
    connection.execute("DELETE FROM meta WHERE name = 'restoring'")
    connection.execute("COMMIT")


def check_not_restoring(connection: sqlite3.Connection) -> None:
    """:raises StoreUnavailable: only a restore may go on with this store."""
    marked = connection.execute(_MARKED).fetchone()
    if marked is not None:
        raise StoreUnavailable(f"a restore into it ({marked[0]}) was not finished: run tidelog restore again")
