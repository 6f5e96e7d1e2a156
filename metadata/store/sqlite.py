"""The embedded metadata store: one SQLite file, written by one thread, read by another, owned by one process.

WAL with ``synchronous=FULL``: a commit is durable when it returns. Readers work on their own connection and never
queue behind a commit. A lock file beside the database keeps a second process out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from metadata.compaction import SegmentSummary
from metadata.model import Extent, TopicId
from metadata.store import sqlite_compaction, sqlite_reader, sqlite_tables
from metadata.store.migrations import READ_REVISION, needs_migration
from metadata.store.port import Change, DeadSegment, OffsetRange, SegmentTotals, StoreSnapshot, StoreUnavailable
from metadata.store.sqlite_tables import SqliteView
from metadata.store.sqlite_writer import SqliteWriter, purge
from metadata.store.tables import Row, Table

_log = structlog.get_logger("tidelog.metadata.sqlite")

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long to wait for another program (a backup, the sqlite3 shell) that holds the database."""
LOCK_PAUSE_SECONDS = 0.25
"""Between two looks of a standby at the lock."""
_NEXT_GENERATION = (
    "INSERT INTO meta VALUES ('generation', '1')"
    " ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) RETURNING value"
)
WAL_BYTES = 64 * 1024 * 1024
"""The write-ahead log is copied into the database at this size: pages that every commit changes are copied once for
many. SQLite's own 4 MiB is one commit of a busy cluster."""
PAGE_BYTES = 2048
"""Of a new file. A commit changes a page or two of each partition in it: half of SQLite's own size is half as much to
write and sync."""
_PRAGMAS = (
    f"PRAGMA page_size = {PAGE_BYTES}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA cache_size = -32768",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA journal_size_limit = {WAL_BYTES}",
)


class DatabaseLocked(StoreUnavailable):
    """Another process has the file."""


class SqliteMetadataStore:
    """Implements :class:`metadata.store.port.MetadataStore`. Calls come from one event loop.

    A cancelled call goes on in its thread; a cancelled write has an unknown outcome.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="metadata-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="metadata-read")
        # Of the write thread:
        self._connection: sqlite3.Connection | None = None
        self._writer: SqliteWriter | None = None
        self._lock: int | None = None
        self._generation = 0
        self._closing = False
        # Of the read thread:
        self._reader: sqlite3.Connection | None = None

    async def lead(self) -> int:
        """Lock the file, wherever another process has it as soon as that has ended, and migrate it.

        A frozen process keeps the lock: one machine, one file, no failover from that.
        """
        while True:
            try:
                return await self._on(self._write_thread, "opened", self._lead)
            except DatabaseLocked:
                await asyncio.sleep(LOCK_PAUSE_SECONDS)

    async def renew(self) -> None:
        """The lock needs no renewal."""

    def sure(self) -> bool:
        """The lock is this process's until it ends."""
        return True

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        """Lock, create or migrate, and read. :raises StoreUnavailable: with the file's name and the reason."""
        return await self._on(self._write_thread, "opened", lambda: self._open(new_cluster_id))

    async def write(self, changes: Sequence[Change]) -> None:
        await self._on(self._write_thread, "written", lambda: self._write(changes))

    async def reload(self) -> StoreSnapshot:
        return await self._on(self._write_thread, "read", self._reload)

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        return await self._read(
            lambda reader: sqlite_reader.find_extents(reader, topic_id, partition, offset, byte_max, before_offset)
        )

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        return await self._read(
            lambda reader: sqlite_reader.find_extent_by_timestamp(reader, topic_id, partition, timestamp_ms)
        )

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        return await self._read(
            lambda reader: sqlite_reader.sum_extents(reader, topic_id, partition, offset, before_offset, row_max)
        )

    async def purge(self, row_max: int, now_ms: int) -> bool:
        return await self._on(self._write_thread, "purged", lambda: self._purge(row_max, now_ms))

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        return await self._read(lambda reader: sqlite_reader.find_dead_segments(reader, until_ms, count_max))

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        return await self._read(lambda reader: sqlite_reader.find_segments(reader, segments))

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        return await self._read(lambda reader: sqlite_reader.segment_totals(reader, after_id, row_max))

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        return await self._read(lambda reader: sqlite_compaction.find_compactable(reader, level, count_max))

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        return await self._read(lambda reader: sqlite_compaction.find_segment_extents(reader, segments))

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        return await self._read(lambda reader: sqlite_compaction.find_ranges(reader, ranges))

    def generation(self) -> int:
        return self._generation

    async def view(self) -> SqliteView:
        view = SqliteView(self._path)
        await view.connect()
        return view

    async def begin_restore(self, name: str) -> bool:
        await self.lead()
        return await self._on(
            self._write_thread, "restored", lambda: sqlite_tables.begin_restore(self._to_restore(), name)
        )

    async def load_rows(self, table: Table, rows: Sequence[Row]) -> None:
        try:
            await self._on(
                self._write_thread, "restored", lambda: sqlite_tables.load_rows(self._to_restore(), table, rows)
            )
        except ValueError as error:
            raise StoreUnavailable(f"{self._path} cannot be restored: {error}") from error

    async def end_restore(self, generation: int) -> None:
        await self._on(
            self._write_thread, "restored", lambda: sqlite_tables.end_restore(self._to_restore(), generation)
        )

    async def close(self) -> None:
        """Finish what was submitted, close the file and give up the lock. Idempotent."""
        if self._closing:
            return
        self._closing = True
        await self._on(self._read_thread, "closed", self._close_reader)
        await self._on(self._write_thread, "closed", self._close)
        self._read_thread.shutdown(wait=False)
        self._write_thread.shutdown(wait=False)

    async def _on(self, thread: ThreadPoolExecutor, verb: str, work: Callable[[], T]) -> T:
        """Run ``work`` in ``thread``; the database's errors become StoreUnavailable."""
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self._path} cannot be {verb}: {error}") from error
        except RuntimeError as error:
            if self._closing:
                raise StoreUnavailable(f"{self._path} is closed") from error
            raise

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def attempt() -> T:
            if self._reader is None:
                self._reader = self._connect()
            try:
                return work(self._reader)
            except sqlite3.Error:
                self._close_reader()
                raise

        return await self._on(self._read_thread, "read", attempt)

    # --- on the write thread ----------------------------------------------------------------------------

    def _lead(self) -> int:
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(self._path)
        try:
            self._connection = self._connection or self._connect()
            try:
                _migrate(self._connection)
            except StoreUnavailable as error:
                raise StoreUnavailable(f"{self._path} cannot be opened: {error}") from error
            self._generation = int(self._connection.execute(_NEXT_GENERATION).fetchone()[0])
            return self._generation
        except BaseException:
            self._close()
            raise

    def _open(self, new_cluster_id: str) -> StoreSnapshot:
        if self._connection is None:
            self._lead()
        assert self._connection is not None
        try:
            sqlite_tables.check_not_restoring(self._connection)
            self._connection.execute("INSERT OR IGNORE INTO meta VALUES ('cluster_id', ?)", (new_cluster_id,))
            snapshot = self._load(self._connection)
        except BaseException:
            self._close()
            raise
        return snapshot

    def _to_restore(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path} is not open")
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()  # an earlier file keeps its own
            connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_BYTES // page_bytes}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _load(self, connection: sqlite3.Connection) -> StoreSnapshot:
        snapshot = sqlite_reader.read_snapshot(connection)
        self._writer = SqliteWriter(connection)
        return snapshot

    def _reload(self) -> StoreSnapshot:
        """Roll back what may be left of a failed write, on a new connection if the old one cannot even do that."""
        self._writer = None
        if self._lock is None:
            raise StoreUnavailable(f"{self._path} is not open")
        if self._connection is not None:
            try:
                _roll_back(self._connection)
                return self._load(self._connection)
            except sqlite3.Error:
                self._connection.close()
                self._connection = None
        self._connection = self._connect()
        return self._load(self._connection)

    def _write(self, changes: Sequence[Change]) -> None:
        connection, writer = self._connection, self._writer
        if connection is None or writer is None:
            raise StoreUnavailable(f"{self._path} must be reloaded after a failed write")
        try:
            connection.execute("BEGIN IMMEDIATE")
            writer.apply(changes)
            connection.execute("COMMIT")
        except BaseException:
            # What the writer remembers of the partitions may be ahead of the file: only a reload makes a new one.
            self._writer = None
            with contextlib.suppress(sqlite3.Error):
                _roll_back(connection)
            raise

    def _purge(self, row_max: int, now_ms: int) -> bool:
        connection = self._connection
        if connection is None or self._writer is None:
            raise StoreUnavailable(f"{self._path} is not open, or must be reloaded after a failed write")
        try:
            connection.execute("BEGIN IMMEDIATE")
            more = purge(connection, row_max, now_ms)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                _roll_back(connection)
            raise
        return more

    def _close(self) -> None:
        self._writer = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, all or nothing. :raises StoreUnavailable: it is newer than this program."""
    query = connection.execute
    adopted = None
    if query("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        revision = query(READ_REVISION).fetchone()[0]
    else:  # from before Alembic, when user_version counted the revisions; 0: a new file
        version = query("PRAGMA user_version").fetchone()[0]
        revision = adopted = f"{version:04}" if version else None
    if needs_migration(revision):
        from metadata.store.migrations.apply import upgrade_sqlite

        _log.info("metadata_migrating", revision=revision or "new")
        upgrade_sqlite(connection, adopted)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _take_lock(path: Path) -> int:
    """Lock ``path`` for this process; the lock goes with the process, however it ends.

    The lock is on a file of its own: SQLite's locks are lost when anybody in the process closes the database file.

    :raises DatabaseLocked: another process has it.
    """
    lock_path = path.with_name(path.name + ".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise DatabaseLocked(
            f"{path} is in use by process {owner} (lock file {lock_path}): one process owns a metadata database"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
