"""The journal of one leader's term: what became durable goes into the bucket, and nobody waits for it.

=====================  ==========================================================================================
what happens           then
=====================  ==========================================================================================
a write is durable     encoded and held; put with what else comes within ``interval_ms``, or at ``entry_bytes``
the bucket is away     the entry under way is tried again and again; what comes meanwhile is held, up to a bound
the bound is reached   all of it is dropped, a number is left out, and a snapshot is due
a write fails          nobody knows what became of it: a number is left out, and a snapshot is due
a term begins          a snapshot is due
entries outweigh it    a snapshot is due; what is older than the one before it goes
another cluster's      nothing is written: :meth:`Journal.problem`. An empty store is not even led
=====================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import structlog

from metadata.journal.buffer import Gathered, JournalBuffer
from metadata.journal.chain import Chain, read_chain, to_prune
from metadata.journal.format import (
    META_PREFIX,
    EntryName,
    JournalCorrupt,
    SnapshotComplete,
    SnapshotName,
    decode_complete,
    decode_entry,
    encode_entry,
)
from metadata.journal.metrics import JournalMetrics
from metadata.journal.snapshot import SnapshotWriter, put
from metadata.model import MetadataUnavailable
from metadata.store.port import Change, StoreUnavailable
from metadata.store.tables import Table, TableView
from runtime.clock import Clock
from runtime.settings import JournalSettings
from runtime.tasks import Supervisor
from storage.store import ObjectExists, ObjectNotFound, ObjectStore, StorageError

_log = structlog.get_logger("tidelog.metadata.journal")

RETRY_SECONDS = (0.5, 10.0)
"""First and longest pause after a failure. The bucket's own retries lie below."""
STOP_SECONDS = 3.0
"""At the end of a term, for what is held."""
BEGIN_SECONDS = 2.0
"""For the beginning of a snapshot's transaction, while commits wait."""
DELETED_AT_ONCE = 500
OBJECTS_TRIED = 10
"""Newest objects read to learn whose journal it is: one of them may be damaged."""


class Bounded(Protocol):
    """:meth:`metadata.pipeline.CommandPipeline.between_writes`."""

    def __call__(self, work: Callable[[], Awaitable[Any]]) -> Awaitable[Any]: ...


class Journal:
    """:meth:`prepare`, :meth:`start`, :meth:`written` and :meth:`gap` as they happen, :meth:`stop`. One event loop.

    ``bucket`` is borrowed. ``open_view`` connects a view of the store; ``between_writes`` runs something while
    nothing is written.
    """

    def __init__(
        self,
        bucket: ObjectStore,
        settings: JournalSettings,
        clock: Clock,
        metrics: JournalMetrics,
        open_view: Callable[[], Awaitable[TableView]],
        generation: Callable[[], int],
    ) -> None:
        self._bucket = bucket
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._open_view = open_view
        self._generation_of_store = generation
        self._buffer = JournalBuffer(settings.entry_bytes, settings.buffer_bytes_max)
        self._wake = asyncio.Event()
        self._cluster_id = ""
        self._generation = 0
        self._putting: Gathered | None = None
        self._snapshot_due = True
        self._losses = 1
        self._losses_covered = 0
        """Of these gaps, the term's beginning among them, a snapshot that is whole came after so many."""
        self._allowed = asyncio.Event()
        self._snapshots = 0
        self._after_of: dict[SnapshotName, int] = {}
        self._complete: SnapshotComplete | None = None
        self._entry_bytes_since = 0
        self._trouble: str | None = None
        self._refused: str | None = None
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self, cluster_id: str, store_is_empty: bool) -> None:
        """Know the cluster and the generation; look first, if the store is an empty one.

        :raises StoreUnavailable: the store is empty, and the bucket has a cluster's metadata, or cannot be looked at.
        """
        self._cluster_id = cluster_id
        self._generation = self._generation_of_store()
        if not store_is_empty:
            return
        try:
            problem = await self._foreign(await self._look())
        except StorageError as error:
            raise StoreUnavailable(
                f"it is empty, and whether the bucket holds a cluster's metadata cannot be seen: {error}"
            ) from error
        if problem is not None:
            raise StoreUnavailable(
                f"it is empty, but {problem}. If its database was lost: tidelog restore. For a new cluster, take"
                f" another bucket or prefix, or remove {META_PREFIX} from this one"
            )

    def start(self, supervisor: Supervisor, between_writes: Bounded) -> None:
        """After :meth:`prepare`; from now on tasks of ``supervisor`` put what :meth:`written` is told."""
        metrics = self._metrics
        metrics.lag.set_function(self.lag_seconds)
        metrics.buffered.set_function(lambda: self._buffer.byte_length)
        metrics.restorable.set_function(lambda: int(self._losses == self._losses_covered))
        metrics.snapshot_bytes.set_function(lambda: 0 if self._complete is None else self._complete.byte_length)
        self._tasks = [
            supervisor.start("metadata-journal", self._run()),
            supervisor.start("metadata-snapshots", self._run_snapshots(between_writes)),
        ]

    def written(self, changes: Sequence[Change]) -> None:
        """These changes have become durable together."""
        if self._refused is not None:
            return
        was_empty = self._buffer.oldest_ms is None
        if not self._buffer.add(changes, self._clock.now_ms()):
            self._lost("the bucket was away for too long")
        if was_empty or self._buffer.full_entry:
            self._wake.set()

    def gap(self) -> None:
        """A write failed, and its outcome is unknown."""
        self._buffer.skip()
        self._lost("a write of unknown outcome")

    def lag_seconds(self) -> float:
        """How old the oldest change is that is durable and not in the bucket. 0: there is none."""
        oldest = self._putting.first_ms if self._putting is not None else self._buffer.oldest_ms
        return 0.0 if oldest is None else max(0.0, (self._clock.now_ms() - oldest) / 1000)

    def state(self) -> str:
        """For people: whether the bucket alone would be enough, and if not, why."""
        if self._refused is not None:
            return self._refused
        if self._trouble is not None:
            return f"behind by {self.lag_seconds():.0f} s: {self._trouble}"
        if self._losses != self._losses_covered:
            return "a snapshot is being written"
        return "ok"

    async def stop(self) -> None:
        """Put what is held, but do not wait long for it. Idempotent."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            putting, snapshots = self._tasks
            snapshots.cancel()
            await asyncio.wait([putting], timeout=STOP_SECONDS)
            putting.cancel()
            await asyncio.wait(self._tasks)
        self._metrics.forget()

    def _lost(self, why: str) -> None:
        _log.warning("journal_gap", reason=why)
        self._metrics.gaps.inc()
        self._losses += 1
        self._snapshot_due = True
        self._wake.set()

    # --- entries ------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        if not await self._may_write():
            return
        self._allowed.set()
        while True:
            if self._buffer.oldest_ms is None:
                if self._stopping:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            if not self._buffer.full_entry and not self._stopping:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.interval_ms / 1000):
                        while not self._buffer.full_entry and not self._stopping:
                            await self._wake.wait()
                            self._wake.clear()
            self._putting = self._buffer.take()
            if self._putting is not None and not await self._put_entry(self._putting):
                return
            self._putting = None

    async def _put_entry(self, gathered: Gathered) -> bool:
        """Until it is there. False: it never will be."""
        name = EntryName(self._generation, gathered.number)
        data = await asyncio.to_thread(
            encode_entry, self._cluster_id, name, gathered.first_ms, gathered.last_ms, gathered.writes
        )
        pause, pause_max = RETRY_SECONDS
        while True:
            try:
                await put(self._bucket, name.key, data)
            except ObjectExists as error:
                self._refuse(f"another process writes the journal of generation {self._generation}: {error}")
                return False
            except StorageError as error:
                self._failed(error)
            else:
                break
            await self._clock.sleep(pause)
            pause = min(pause * 2, pause_max)
        self._trouble = None
        self._entry_bytes_since += len(data)
        self._metrics.entries.inc()
        self._metrics.entry_bytes.inc(len(data))
        weight = max(self._settings.snapshot_bytes_min, 0 if self._complete is None else self._complete.byte_length)
        if self._entry_bytes_since > weight:
            self._snapshot_due = True
        return True

    async def _may_write(self) -> bool:
        """Look whose journal the bucket has, until that is known."""
        pause, pause_max = RETRY_SECONDS
        while True:
            try:
                problem = await self._foreign(await self._look())
            except StorageError as error:
                self._failed(error)
            else:
                self._trouble = None
                if problem is not None:
                    self._refuse(f"{problem}: nothing is written to it")
                return problem is None
            await self._clock.sleep(pause)
            pause = min(pause * 2, pause_max)

    async def _look(self) -> Chain:
        return read_chain([info.key async for info in self._bucket.list(META_PREFIX)])

    async def _foreign(self, chain: Chain) -> str | None:
        """Why this cluster, in this generation, may not write there. :raises StorageError:"""
        if chain.empty:
            return None
        cluster_id = await self._cluster_of(chain)
        if cluster_id is None:
            return f"{self._bucket.name} holds a journal that cannot be read"
        if cluster_id != self._cluster_id:
            return f"{self._bucket.name} holds the metadata of cluster {cluster_id}"
        if chain.generation_max >= self._generation:
            return (
                f"{self._bucket.name} holds a journal of generation {chain.generation_max}, and this process leads"
                f" under {self._generation}"
            )
        return None

    async def _cluster_of(self, chain: Chain) -> str | None:
        """As the newest object says that can be read. :raises StorageError:"""
        for entry in reversed(chain.entries[-OBJECTS_TRIED:]):
            with contextlib.suppress(JournalCorrupt, ObjectNotFound):
                return decode_entry(await self._bucket.get(entry.key), entry).cluster_id
        for snapshot in reversed(chain.complete[-OBJECTS_TRIED:]):
            with contextlib.suppress(JournalCorrupt, ObjectNotFound):
                return decode_complete(await self._bucket.get(snapshot.complete_key), snapshot).cluster_id
        return None

    def _refuse(self, why: str) -> None:
        _log.error("journal_not_written", reason=why)
        self._refused = why
        self._buffer.cut()
        while self._buffer.take() is not None:
            pass

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            _log.warning("journal_behind", error=str(error))
        self._trouble = str(error)
        self._metrics.failures.inc()

    # --- snapshots ----------------------------------------------------------------------------------------

    async def _run_snapshots(self, between_writes: Bounded) -> None:
        await self._allowed.wait()
        pause, pause_max = RETRY_SECONDS
        while self._refused is None:
            if not self._snapshot_due or self._trouble is not None:
                await self._clock.sleep(RETRY_SECONDS[0])
                continue
            try:
                await self._snapshot(between_writes)
                pause = RETRY_SECONDS[0]
                continue
            except (StorageError, StoreUnavailable, MetadataUnavailable, TimeoutError) as error:
                _log.warning("snapshot_failed", error=str(error) or "no answer in time")
                self._metrics.failures.inc()
                self._snapshot_due = True
            await self._clock.sleep(pause)
            pause = min(pause * 2, pause_max)

    async def _snapshot(self, between_writes: Bounded) -> None:
        began = self._clock.monotonic()
        view = await self._open_view()
        try:
            tables, after, losses = await between_writes(lambda: self._begin(view))
            taken_ms = self._clock.now_ms()
            self._snapshots += 1
            name = SnapshotName(self._generation, self._snapshots)
            writer = SnapshotWriter(self._bucket, self._clock, self._cluster_id, name)
            complete = await writer.write(view, tables, after, taken_ms)
        finally:
            await view.close()
        self._complete = complete
        self._losses_covered = losses
        self._after_of[name] = after
        self._metrics.snapshots.inc()
        _log.info(
            "snapshot_written",
            snapshot=str(name),
            rows=sum(complete.rows.values()),
            bytes=complete.byte_length,
            seconds=round(self._clock.monotonic() - began, 3),
        )
        await self._prune()

    async def _begin(self, view: TableView) -> tuple[tuple[Table, ...], int, int]:
        """While nothing is written: what the view sees, and what the journal has been told, end at the same write."""
        async with asyncio.timeout(BEGIN_SECONDS):
            tables = await view.begin()
        self._snapshot_due = False
        self._entry_bytes_since = 0
        return tables, self._buffer.cut(), self._losses

    async def _prune(self) -> None:
        """What only older snapshots need goes. A failure is made good after the next snapshot."""
        try:
            chain = await self._look()
            for name in chain.complete[-2:]:
                if name not in self._after_of and name.generation <= self._generation:
                    found = decode_complete(await self._bucket.get(name.complete_key), name)
                    self._after_of[name] = found.after
            keys = to_prune(chain, self._generation, self._after_of)
            for first in range(0, len(keys), DELETED_AT_ONCE):
                await self._bucket.delete(keys[first : first + DELETED_AT_ONCE])
        except (StorageError, JournalCorrupt) as error:
            _log.warning("journal_not_pruned", error=str(error))
