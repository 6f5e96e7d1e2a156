"""PostgreSQL's side of :mod:`metadata.store.tables`, on connections that are passed in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from metadata.store.port import StoreUnavailable
from metadata.store.postgres_connections import Connection, PostgresServer
from metadata.store.postgres_writer import begin, commit
from metadata.store.sqlite_tables import from_hexadecimal
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

VIEW_SECONDS = 60.0
"""For one statement."""
_KINDS = {"bigint": "integer", "integer": "integer", "text": "text", "bytea": "bytes", "boolean": "boolean"}
_COLUMNS = """
    SELECT relname, attname, format_type(atttypid, NULL),
        coalesce((
            SELECT array_position(indkey::smallint[], attnum) FROM pg_index
            WHERE indrelid = pg_class.oid AND indisprimary
        ), -1)
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND attnum > 0 AND NOT attisdropped
    ORDER BY relname, attnum
"""
_MARKED = "SELECT value FROM meta WHERE name = 'restoring'"
_decode_rows = msgspec.json.Decoder(list[Row]).decode


class PostgresView:
    """Implements :class:`metadata.store.tables.TableView` with one read-only transaction."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """:raises StoreUnavailable:"""
        with self._server.explained("read"):
            self._connection = await self._server.connect("view", VIEW_SECONDS)

    async def begin(self) -> tuple[Table, ...]:
        with self._server.explained("read"):
            connection = self._connected()
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
                raise StoreUnavailable(f"{self._server.name} is not a metadata store")
            return await read_tables(connection)

    async def rows(self, table: Table, after: Row | None, count: int) -> list[Row]:
        """As text of JSON: one value for the driver to take, whatever the number of rows. Bytes are hexadecimal."""
        values = ", ".join(
            f"encode({column.name}, 'hex')" if column.kind == "bytes" else column.name for column in table.columns
        )
        keys = ", ".join(table.key)
        where = []
        if after is not None:
            where.append(f"({keys}) > ({', '.join(f'${place}' for place in range(2, len(table.key) + 2))})")
        if table.name == "meta":
            where.append(f"name NOT IN {LEADING_META}")
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        query = (
            f"SELECT coalesce(json_agg(fields), '[]')::text FROM (SELECT json_build_array({values}) AS fields"
            f" FROM {table.name} {condition} ORDER BY {keys} LIMIT $1) AS page"
        )
        with self._server.explained("read"):
            text = await self._connected().fetchval(query, count, *(after or ()))
        return await asyncio.to_thread(lambda: from_hexadecimal(_decode_rows(text), table))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _connected(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self._server.name} is closed")
        return self._connection


async def read_tables(connection: Connection) -> tuple[Table, ...]:
    """All of them, by name."""
    columns: dict[str, list[Column]] = {}
    keys: dict[str, list[tuple[int, str]]] = {}
    for table, column, kind, place in await connection.fetch(_COLUMNS):
        if table not in LEADING_TABLES:
            columns.setdefault(table, []).append(Column(column, _KINDS[kind]))  # type: ignore[arg-type]
            if place >= 0:
                keys.setdefault(table, []).append((place, column))
    return tuple(
        Table(name, tuple(found), tuple(column for _, column in sorted(keys[name]))) for name, found in columns.items()
    )


async def begin_restore(connection: Connection, generation: int, name: str) -> bool:
    """See :meth:`metadata.store.tables.TableStore.begin_restore`; in one transaction."""
    await begin(connection, generation)
    interrupted = await connection.fetchval(_MARKED) is not None
    for table in await read_tables(connection):
        if interrupted and table.name != "meta":
            await connection.execute(f"TRUNCATE {table.name}")
        elif table.name != "meta" and await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table.name})"):
            raise NotEmpty(f"there are rows in its table {table.name}")
    await connection.execute("DELETE FROM meta")
    await connection.execute("INSERT INTO meta VALUES ($1, $2)", RESTORING, name)
    await commit(connection)
    return interrupted


async def load_rows(connection: Connection, generation: int, table: Table, rows: Sequence[Row]) -> None:
    """See :meth:`metadata.store.tables.TableStore.load_rows`. :raises ValueError: no such table or column."""
    known = {known.name: known for known in await read_tables(connection)}.get(table.name)
    kinds = {column.name: column.kind for column in known.columns} if known is not None else {}
    names = [column.name for column in table.columns]
    unknown = [name for name in names if name not in kinds]
    if known is None or unknown:
        raise ValueError(f"there is no table {table.name} with the columns {unknown}: it comes from a newer Tidelog")
    wanted = [kinds[name] for name in names]
    converted = [tuple(convert(row, table.columns, wanted)) for row in rows]
    await begin(connection, generation)
    await connection.copy_records_to_table(table.name, columns=names, records=converted)
    if table.name in ("partitions", "dropped_partitions"):
        await connection.execute(
            f"SELECT setval('partition_keys', greatest((SELECT max(partition_key) FROM {table.name}) + {KEYS_SKIPPED},"
            " (SELECT last_value FROM partition_keys)))"
        )
    await commit(connection)


async def end_restore(connection: Connection, generation: int, raised: int) -> None:
    """See :meth:`metadata.store.tables.TableStore.end_restore`: ``raised`` becomes the generation."""
    await begin(connection, generation)
    await connection.execute("DELETE FROM meta WHERE name = 'restoring'")
    await connection.execute("UPDATE leader SET generation = greatest(generation, $1)", raised)
    await commit(connection)


async def check_not_restoring(connection: Connection) -> None:
    """:raises StoreUnavailable: only a restore may go on with this store."""
    marked = await connection.fetchval(_MARKED)
    if marked is not None:
        raise StoreUnavailable(f"a restore into it ({marked}) was not finished: run tidelog restore again")
