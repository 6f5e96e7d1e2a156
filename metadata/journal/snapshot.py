"""Writing a snapshot of a metadata store into the bucket, part by part, beside the store's work."""

from __future__ import annotations

import asyncio

import crc32c
import msgspec

from metadata.journal.format import (
    FORMAT_VERSION,
    SnapshotComplete,
    SnapshotName,
    SnapshotPart,
    encode_complete,
    encode_part,
)
from metadata.store.tables import Row, Table, TableView
from runtime.clock import Clock
from storage.store import ObjectStore

ROWS_READ = 2_000
"""Rows read at once."""
PART_BYTES = 4 << 20
"""Of rows, before compression; about."""
REST = 1.0
"""So long asleep for each second of reading: commits come first."""


class SnapshotWriter:
    """One snapshot of ``view``, which has begun and is not closed here."""

    def __init__(self, bucket: ObjectStore, clock: Clock, cluster_id: str, name: SnapshotName) -> None:
        self._bucket = bucket
        self._clock = clock
        self._cluster_id = cluster_id
        self._name = name
        self._parts = 0
        self._byte_length = 0

    async def write(self, view: TableView, tables: tuple[Table, ...], after: int, taken_ms: int) -> SnapshotComplete:
        """All of ``tables``, and at last the object that says so.

        :raises storage.store.StorageError: parts may be in the bucket; without the last object they mean nothing.
        :raises metadata.store.port.StoreUnavailable:
        """
        rows = {table.name: await self._table(view, table) for table in tables}
        complete = SnapshotComplete(
            FORMAT_VERSION,
            self._cluster_id,
            self._name.generation,
            self._name.number,
            after,
            taken_ms,
            self._parts,
            self._byte_length,
            rows,
        )
        await put(self._bucket, self._name.complete_key, encode_complete(complete))
        return complete

    async def _table(self, view: TableView, table: Table) -> int:
        gathered: list[Row] = []
        byte_length = count = 0
        key: Row | None = None
        while True:
            began = self._clock.monotonic()
            rows = await view.rows(table, key, ROWS_READ)
            if rows:
                count += len(rows)
                key = table.key_of(rows[-1])
                gathered += rows
                byte_length += len(rows) * (_byte_length_of(rows[-1]))
            if gathered and (not rows or byte_length >= PART_BYTES):
                await self._put_part(table, gathered)
                gathered, byte_length = [], 0
            if len(rows) < ROWS_READ:
                if gathered:
                    await self._put_part(table, gathered)
                return count
            await self._clock.sleep((self._clock.monotonic() - began) * REST)

    async def _put_part(self, table: Table, rows: list[Row]) -> None:
        name = self._name
        part = SnapshotPart(FORMAT_VERSION, self._cluster_id, name.generation, name.number, self._parts, table, rows)
        data = await asyncio.to_thread(encode_part, part)
        await put(self._bucket, name.part_key(self._parts), data)
        self._parts += 1
        self._byte_length += len(data)


def _byte_length_of(row: Row) -> int:
    return len(msgspec.msgpack.encode(row))


async def put(bucket: ObjectStore, key: str, data: bytes) -> None:
    """Create ``key``. :raises storage.store.StorageError:"""
    await bucket.put(key, [data], crc32c.crc32c(data))
