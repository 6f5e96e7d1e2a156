"""The other side of a durable store: all its tables as rows, to be read beside its writes and to be filled again.

For snapshots, ``tidelog restore`` and ``tidelog fsck``. Tables and columns go by their names, which SQLite and
PostgreSQL share, so that what a migration adds comes along, and rows of one kind of store fit the other. What says who
leads a store is not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

Row = list[Any]
"""One value for each column: int, str, bytes, bool or None."""

LEADING_TABLES = frozenset({"alembic_version", "leader", "renewals"})
LEADING_META = ("generation", "restoring")
"""Rows of ``meta`` that belong to one store and its processes."""
RESTORING = "restoring"
"""This row of ``meta`` is there from the beginning of a restore to its end."""

KEYS_SKIPPED = 1_000_000
"""After a restore keys of partitions go on so far above those there were: none that was ever used is used again."""


class NotEmpty(Exception):
    """The store has a cluster's metadata in it: nothing is restored into that."""


class Column(msgspec.Struct, frozen=True, array_like=True):
    name: str
    kind: Literal["integer", "text", "bytes", "boolean"]


class Table(msgspec.Struct, frozen=True, array_like=True):
    """``key``: the names of the columns of its primary key, in order."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    def key_of(self, row: Row) -> Row:
        names = [column.name for column in self.columns]
        return [row[names.index(name)] for name in self.key]


class TableView(Protocol):
    """All tables as they are at one moment. Reading keeps nobody from writing, but keeps the store from tidying up."""

    async def begin(self) -> tuple[Table, ...]:
        """The moment is now. The tables, by name.

        :raises metadata.store.port.StoreUnavailable:
        """

    async def rows(self, table: Table, after: Row | None, count: int) -> list[Row]:
        """Up to ``count`` rows in the order of the key, behind the row whose key is ``after``; none: that was all.

        :raises metadata.store.port.StoreUnavailable:
        """

    async def close(self) -> None:
        """Idempotent."""


@runtime_checkable
class TableStore(Protocol):
    """What the SQL stores are besides being a :class:`metadata.store.port.MetadataStore`."""

    def generation(self) -> int:
        """The one this process leads under; 0: it does not."""

    async def view(self) -> TableView:
        """Connects; nothing is read before :meth:`TableView.begin`. The caller closes it. It need not lead.

        :raises metadata.store.port.StoreUnavailable:
        """

    async def begin_restore(self, name: str) -> bool:
        """Lead, and make the store one that only a restore may go on with. True: another one was interrupted here, and
        what it had written was removed.

        ``load_rows`` for all tables, ``reload``, ``write`` and ``end_restore`` follow.

        :raises NotEmpty: nothing was changed.
        :raises metadata.store.port.StoreUnavailable:
        """

    async def load_rows(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows of a view, in one transaction.

        :raises metadata.store.port.StoreUnavailable: also when this store knows no such table or column.
        """

    async def end_restore(self, generation: int) -> None:
        """The store may be led again, under generations above ``generation``. Close it now."""


def convert(row: Row, columns: Sequence[Column], kinds: Sequence[str]) -> Row:
    """``row`` of ``columns`` for a store that has ``kinds`` in their places: text may be bytes there, and so on."""
    return [
        value if value is None or column.kind == kind else _convert(value, kind)
        for value, column, kind in zip(row, columns, kinds, strict=True)
    ]


def _convert(value: Any, kind: str) -> Any:
    if kind == "bytes" and isinstance(value, str):
        return value.encode()
    if kind == "text" and isinstance(value, bytes):
        return value.decode()
    if kind == "integer" and isinstance(value, bool):
        return int(value)
    if kind == "boolean" and isinstance(value, int):
        return bool(value)
    raise ValueError(f"{value!r} cannot be {kind}")
