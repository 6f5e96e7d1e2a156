"""The metadata store in PostgreSQL: several processes share a database, one of them leads and writes.

Three kinds of connections: the *writer*, whose session has the leader's lock; the *keeper*, which renews beside it
however long a write takes; and a few *readers*, which never queue behind either. Commits are synchronous. Whether they
also wait for a replica (``synchronous_standby_names``) is for the operator to configure.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg
import structlog

from metadata.compaction import SegmentSummary
from metadata.model import Extent, TopicId
from metadata.store import postgres_compaction, postgres_reader, postgres_tables
from metadata.store import postgres_leadership as leadership
from metadata.store.migrations import READ_REVISION, needs_migration
from metadata.store.port import (
    Change,
    DeadSegment,
    Deposed,
    OffsetRange,
    SegmentTotals,
    StoreSnapshot,
    StoreUnavailable,
)
from metadata.store.postgres_connections import Connection, Pool, PostgresServer
from metadata.store.postgres_tables import PostgresView
from metadata.store.postgres_writer import PostgresWriter, purge
from metadata.store.tables import Row, Table
from runtime.clock import Clock
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata.postgres")

WRITE_SECONDS = 20.0
"""For one statement of a write."""
ROLL_BACK_SECONDS = 1.0
RENEW_SECONDS = 2.0
LEASE_SURE = 3 / 4
"""Of the lease: so long after a renewal a leader may still be sure of itself."""
READ_SECONDS = 5.0
READERS = 4
CLOSE_SECONDS = 3.0
"""For a write that is under way when the store is closed."""
EMBEDDED_RENEW_SECONDS = 1.0


class PostgresMetadataStore:
    """Implements :class:`metadata.store.port.MetadataStore`. Calls come from one event loop.

    A cancelled or failed write has an unknown outcome; its connection is closed if the server did not answer.
    """

    def __init__(self, url: str, lease_ms: int, clock: Clock) -> None:
        """Nothing is opened yet. :raises ValueError: the URL is wrong."""
        self._server = PostgresServer(url)
        self._lease_ms = lease_ms
        self._clock = clock
        self._turn = asyncio.Lock()
        """Of the writer's connection: in order of arrival, so a purge lets commits go first that came before it."""
        self._connection: Connection | None = None
        self._session: tuple[int, object] | None = None
        self._writer: PostgresWriter | None = None
        self._generation: int | None = None
        self._deposed = False
        self._renewed_at = 0.0
        self._keeper: Connection | None = None
        self._readers: Pool | None = None
        self._closed = False
        self._tasks = Supervisor()

    async def lead(self) -> int:
        """See :meth:`metadata.store.port.MetadataStore.lead`. All processes must log in as the same user."""
        return await self._lead(None)

    async def _lead(self, wait_seconds: float | None) -> int:
        """:raises StoreUnavailable: also when another process has led for all of ``wait_seconds``."""
        self._check_open()
        self._forget_leading()
        with self._server.explained("led"):
            connection = await self._server.connect("writer", WRITE_SECONDS)
            try:
                async with asyncio.timeout(wait_seconds) as waiting:
                    await leadership.wait_for_lock(connection, self._clock, self._lease_ms)
                await self._migrate(connection)
                session = await leadership.session(connection)
                generation = await leadership.take_over(connection)
                await _warn_of_settings(connection)
                self._check_open()
            except BaseException as error:
                connection.terminate()
                if isinstance(error, TimeoutError) and waiting.expired():
                    raise StoreUnavailable(
                        f"{self._server.name} is in use: another process leads and renews. Stop it, or start this one"
                        " as its standby (tidelog metadata)"
                    ) from None
                raise
        self._connection, self._session, self._generation = connection, session, generation
        self._renewed_at = self._clock.monotonic()
        return generation

    async def renew(self) -> None:
        """See the port. When the lease is as good as over, a write that still waits for an answer is given up too."""
        generation, began = self._leading(), self._clock.monotonic()
        with self._server.explained("renewed"):
            try:
                if self._keeper is None or self._keeper.is_closed():
                    self._keeper = await self._server.connect("keeper", RENEW_SECONDS, synchronous_commit="off")
                await leadership.renew(self._keeper, generation)
                self._renewed_at = began
                if not self.sure() and not self._turn.locked():
                    async with self._turn:
                        await self._regained()
            except Deposed:
                self._deposed = True
                raise
            except BaseException:
                if self._keeper is not None:
                    self._keeper.terminate()
                if self._lease_over() and self._connection is not None:
                    self._connection.terminate()
                raise

    def sure(self) -> bool:
        """See the port: the session that has the lock is there, or was when its end would have been noticed."""
        return self._connection is not None and not self._connection.is_closed() and not self._deposed

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        """See the port. One process for itself, which did not lead first, waits for a holder's lease, not for ever."""
        if self._generation is None:
            await self._lead(2 * self._lease_ms / 1000)
            self._tasks.start("metadata-renew", self._keep_renewing())
        async with self._writing("opened") as connection:
            await postgres_tables.check_not_restoring(connection)
            await connection.execute(
                "INSERT INTO meta SELECT 'cluster_id', $1 FROM"
                " (SELECT FROM leader WHERE generation = $2 FOR SHARE) AS leads ON CONFLICT DO NOTHING",
                new_cluster_id,
                self._leading(),
            )
            return await self._load(connection)

    async def write(self, changes: Sequence[Change]) -> None:
        async with self._writing("written", within_lease=True) as connection:
            if self._writer is None:
                raise StoreUnavailable(f"{self._server.name} must be reloaded after a failed write")
            writer, self._writer = self._writer, None
            await writer.write(connection, changes)
            self._writer = writer  # after an error it may remember more than what is durable: only a reload makes one

    async def reload(self) -> StoreSnapshot:
        self._writer = None
        async with self._writing("read") as connection:
            return await self._load(connection)

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        async with self._reading() as pool:
            return await postgres_reader.find_extents(pool, topic_id, partition, offset, byte_max, before_offset)

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        async with self._reading() as pool:
            return await postgres_reader.find_extent_by_timestamp(pool, topic_id, partition, timestamp_ms)

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        async with self._reading() as pool:
            return await postgres_reader.sum_extents(pool, topic_id, partition, offset, before_offset, row_max)

    async def purge(self, row_max: int, now_ms: int) -> bool:
        async with self._writing("purged", within_lease=True) as connection:
            if self._writer is None:
                raise StoreUnavailable(f"{self._server.name} must be reloaded after a failed write")
            return await purge(connection, self._leading(), row_max, now_ms)

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        async with self._reading() as pool:
            return await postgres_reader.find_dead_segments(pool, until_ms, count_max)

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        async with self._reading() as pool:
            return await postgres_reader.find_segments(pool, segments)

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        async with self._reading() as pool:
            return await postgres_reader.segment_totals(pool, after_id, row_max)

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        async with self._reading() as pool:
            return await postgres_compaction.find_compactable(pool, level, count_max)

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        async with self._reading() as pool:
            return await postgres_compaction.find_segment_extents(pool, segments)

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        async with self._reading() as pool:
            return await postgres_compaction.find_ranges(pool, ranges)

    def generation(self) -> int:
        return self._generation or 0

    async def view(self) -> PostgresView:
        view = PostgresView(self._server)
        await view.connect()
        return view

    async def begin_restore(self, name: str) -> bool:
        await self._lead(2 * self._lease_ms / 1000)
        self._tasks.start("metadata-renew", self._keep_renewing())
        async with self._writing("restored") as connection:
            return await postgres_tables.begin_restore(connection, self._leading(), name)

    async def load_rows(self, table: Table, rows: Sequence[Row]) -> None:
        try:
            async with self._writing("restored") as connection:
                await postgres_tables.load_rows(connection, self._leading(), table, rows)
        except ValueError as error:
            raise StoreUnavailable(f"{self._server.name} cannot be restored: {error}") from error

    async def end_restore(self, generation: int) -> None:
        async with self._writing("restored") as connection:
            await postgres_tables.end_restore(connection, self._leading(), generation)

    async def close(self) -> None:
        """Finish a write that is under way, within some seconds, and give up the lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._tasks.stop()
        try:
            with suppress(TimeoutError, StoreUnavailable):
                async with asyncio.timeout(CLOSE_SECONDS), self._turn:
                    with self._server.explained("closed"):
                        if self._connection is not None and not self._connection.is_closed():
                            await leadership.give_up_lock(self._connection)
        finally:
            self._forget_leading()
            if self._readers is not None:
                self._readers.terminate()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"{self._server.name} is closed")

    def _leading(self) -> int:
        """The generation this process leads under. :raises Deposed: it does so no more. :raises StoreUnavailable:"""
        self._check_open()
        if self._generation is None:
            raise StoreUnavailable(f"{self._server.name} is not open")
        if self._deposed:
            raise leadership.deposed(self._generation)
        return self._generation

    def _lease_over(self) -> bool:
        return self._clock.monotonic() - self._renewed_at >= self._lease_ms / 1000 * LEASE_SURE

    def _forget_leading(self) -> None:
        for connection in (self._connection, self._keeper):
            if connection is not None:
                connection.terminate()
        self._connection = self._keeper = self._session = self._writer = self._generation = None
        self._deposed = False

    @asynccontextmanager
    async def _writing(self, verb: str, within_lease: bool = False) -> AsyncIterator[Connection]:
        """The writer's connection, with the lock, for one caller at a time.

        ``within_lease``: where it was lost, and the lease is over, another is not waited for.
        """
        async with self._turn:
            with self._server.explained(verb):
                try:
                    self._leading()
                    if within_lease and not self.sure() and self._lease_over():
                        raise StoreUnavailable(f"{self._server.name} was lost, and the lease is over")
                    yield await self._regained()
                except BaseException as error:
                    self._deposed = self._deposed or isinstance(error, Deposed)
                    await self._roll_back(error)
                    raise

    async def _regained(self) -> Connection:
        """The writer's connection; a new one, if it was lost and this process leads nevertheless."""
        generation = self._leading()
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection = await self._server.connect("writer", WRITE_SECONDS)
        try:
            await leadership.regain_lock(connection, self._clock, generation, self._session)
            self._session = await leadership.session(connection)
        except BaseException:
            connection.terminate()
            raise
        _log.info("metadata_connection_regained", generation=generation)
        self._connection = connection
        return connection

    async def _roll_back(self, error: BaseException) -> None:
        """Leave the connection fit for another transaction, or closed."""
        connection = self._connection
        if connection is None or connection.is_closed():
            return
        if isinstance(error, asyncpg.PostgresError | StoreUnavailable | ValueError):
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                if connection.is_in_transaction():
                    await connection.execute("ROLLBACK", timeout=ROLL_BACK_SECONDS)
                return
        connection.terminate()  # there was no answer: whatever may still come of it, it is not waited for here

    async def _load(self, connection: Connection) -> StoreSnapshot:
        snapshot, self._writer = await postgres_reader.load(connection, self._leading())
        return snapshot

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Pool]:
        self._check_open()
        with self._server.explained("read"):
            async with asyncio.timeout(READ_SECONDS):
                if self._readers is None:
                    self._readers = self._server.pool("reader", READ_SECONDS, READERS)
                yield await self._readers

    async def _migrate(self, connection: Connection) -> None:
        """Bring the schema up to date, all or nothing, beside the ``connection`` that has the lock."""
        revision = None
        if await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
            revision = await connection.fetchval(READ_REVISION)
        if needs_migration(revision):
            from metadata.store.migrations.apply import upgrade_postgresql

            _log.info("metadata_migrating", revision=revision or "new")
            await upgrade_postgresql(lambda: self._server.connect("migration", None), leadership.MIGRATING)

    async def _keep_renewing(self) -> None:
        """For a process that leads without being asked to renew."""
        while True:
            await self._clock.sleep(EMBEDDED_RENEW_SECONDS)
            try:
                await self.renew()
            except Deposed as error:
                _log.error("metadata_deposed", error=str(error))
                return
            except StoreUnavailable as error:
                _log.warning("metadata_not_renewed", error=str(error))


async def _warn_of_settings(connection: Connection) -> None:
    """Say when this server may forget what it has acknowledged."""
    unsafe = await connection.fetch(
        "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
    )
    if unsafe:
        _log.warning("metadata_not_durable", off=[name for (name,) in unsafe], hint="a power cut may lose records")
