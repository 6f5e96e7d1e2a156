"""Extents from the object store: aligned blocks, each read once for everybody, then patched into runs.

Concurrency is bounded (``reads_max``, of which ``cold_reads_max`` for data outside the tail); a read has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from agent.fetch.cache import FetchCache
from agent.fetch.flights import Flight, SingleFlight
from agent.fetch.metrics import FetchMetrics
from agent.fetch.patch import Run, RunBuilder
from agent.fetch.pool import PURPOSE, Entry
from metadata.model import Extent
from runtime.budget import Budget
from runtime.settings import FetchSettings
from runtime.tasks import Supervisor
from storage.store import ObjectStore, StorageUnavailable

PATCH_AT_ONCE = 4_096
"""Batches patched before other tasks get their turn: about two milliseconds."""


class BlockReader:
    """Reads blocks of ``settings.block_bytes``. Everything it returns is pinned once for the caller."""

    def __init__(
        self,
        store: ObjectStore,
        cache: FetchCache,
        settings: FetchSettings,
        budget: Budget,
        supervisor: Supervisor,
        metrics: FetchMetrics,
    ) -> None:
        self.block_bytes = settings.block_bytes
        self._store = store
        self._cache = cache
        self._budget = budget
        self._metrics = metrics
        self._deadline_ms = settings.read_deadline_ms
        self._flights: SingleFlight[bytes] = SingleFlight("read", supervisor)
        self._reads = asyncio.Semaphore(settings.reads_max)
        # Blocks being read are memory too: no more of them than the cold pool can hold.
        cold_reads_max = min(settings.cold_reads_max, settings.reads_max, cache.cold.capacity_bytes // self.block_bytes)
        self.cold_reads_max = max(1, cold_reads_max)
        self._cold_reads = asyncio.Semaphore(self.cold_reads_max)
        self._ahead = 0

    async def read(self, segment_key: str, index: int, hot: bool) -> Entry[bytes]:
        """:raises storage.store.StorageError: StorageUnavailable also when the deadline has passed."""
        entry = self._cache.block(segment_key, index)
        if entry is not None:
            self._metrics.block_hits += 1
            entry.pin()
            return entry
        flight = self._flights.running((segment_key, index))
        if flight is None:
            flight = self._launch(segment_key, index, hot)
        else:
            self._metrics.joined_reads += 1
        return await self._flights.wait(flight)

    def read_ahead(self, segment_key: str, index: int) -> bool:
        """Start reading a block that a catching-up consumer will want next; False when enough is under way."""
        if self._cache.block(segment_key, index) is not None or self._flights.is_running((segment_key, index)):
            return True
        if self._ahead >= self.cold_reads_max:
            return False
        self._ahead += 1
        self._metrics.read_ahead += 1
        self._launch(segment_key, index, hot=False).landed.add_done_callback(self._ahead_landed)
        return True

    def _ahead_landed(self, _: asyncio.Future[None]) -> None:
        self._ahead -= 1

    def _launch(self, segment_key: str, index: int, hot: bool) -> Flight[bytes]:
        async def work(flight: Flight[bytes]) -> Entry[bytes]:
            data = await self._get(segment_key, index, hot)
            return self._cache.keep_block(segment_key, index, data, hot, flight.waiters)

        return self._flights.launch((segment_key, index), work)

    async def _get(self, segment_key: str, index: int, hot: bool) -> bytes:
        if hot:
            async with self._reads:
                return await self._get_now(segment_key, index)
        async with self._cold_reads, self._reads:
            return await self._get_now(segment_key, index)

    async def _get_now(self, segment_key: str, index: int) -> bytes:
        self._metrics.block_reads += 1
        self._budget.take(PURPOSE, self.block_bytes)
        try:
            async with asyncio.timeout(self._deadline_ms / 1000):
                return await self._store.get(segment_key, index * self.block_bytes, self.block_bytes)
        except TimeoutError:
            self._metrics.block_reads_failed += 1
            raise StorageUnavailable(f"get {segment_key}: no answer in {self._deadline_ms} ms") from None
        except Exception:
            self._metrics.block_reads_failed += 1
            raise
        finally:
            self._budget.give(PURPOSE, self.block_bytes)


class RunReader:
    """Patched runs of extents: from the cache, the writer's memory, or blocks. Each is patched once for everybody."""

    def __init__(self, blocks: BlockReader, cache: FetchCache, supervisor: Supervisor, metrics: FetchMetrics) -> None:
        self._blocks = blocks
        self._cache = cache
        self._metrics = metrics
        self._flights: SingleFlight[Run] = SingleFlight("patch", supervisor)

    def in_memory(self, extent: Extent) -> bool:
        """Whether reading it needs no object store and (almost) no new memory."""
        return self._cache.run(extent) is not None or self._cache.segment(extent.segment_key) is not None

    def read_now(self, extent: Extent) -> Entry[Run] | None:
        """The run, pinned, if that needs no waiting: it is cached, or is quickly made from the writer's bytes.

        :raises agent.fetch.patch.CorruptSegment:
        """
        entry = self._cache.run(extent)
        if entry is not None:
            self._metrics.run_hits += 1
            entry.pin()
            return entry
        if self._flights.is_running(_key(extent)):
            return None
        segment = self._cache.segment(extent.segment_key)
        views = segment.value.read(extent.byte_position, extent.byte_length) if segment is not None else None
        if segment is None or views is None:
            return None
        self._metrics.writer_hits += 1
        builder = RunBuilder(extent, views)
        source = cast("Entry[object]", segment)
        if builder.advance(PATCH_AT_ONCE):
            return self._cache.keep_run(extent, builder.finish(), True, 1, [source])
        source.pin()

        async def work(flight: Flight[Run]) -> Entry[Run]:
            try:
                await _advance_slowly(builder)
                return self._cache.keep_run(extent, builder.finish(), True, flight.waiters, [source])
            finally:
                source.unpin()

        self._flights.launch(_key(extent), work)
        return None

    async def read(self, extent: Extent, hot: bool) -> Entry[Run]:
        """The run, pinned once for the caller. Cancelling harms nobody else who waits for it.

        :raises agent.fetch.patch.CorruptSegment:
        :raises storage.store.StorageError: ObjectNotFound when the extent's object is gone.
        """
        entry = self.read_now(extent)
        if entry is not None:
            return entry
        flight = self._flights.running(_key(extent))
        if flight is None:
            self._metrics.run_misses += 1
            flight = self._flights.launch(_key(extent), self._from_blocks(extent, hot))
        return await self._flights.wait(flight)

    def read_ahead(self, extent: Extent) -> bool:
        """Start reading the extent's blocks; False when enough is under way."""
        return self.in_memory(extent) or all(
            self._blocks.read_ahead(extent.segment_key, index) for index in self._block_range(extent)
        )

    def _block_range(self, extent: Extent) -> range:
        size = self._blocks.block_bytes
        return range(extent.byte_position // size, (extent.byte_position + extent.byte_length - 1) // size + 1)

    def _from_blocks(self, extent: Extent, hot: bool) -> Callable[[Flight[Run]], Coroutine[Any, Any, Entry[Run]]]:
        async def work(flight: Flight[Run]) -> Entry[Run]:
            indexes = self._block_range(extent)
            blocks: dict[int, Entry[bytes]] = {}

            async def read(index: int) -> None:
                blocks[index] = await self._blocks.read(extent.segment_key, index, hot)

            try:
                outcomes = await asyncio.gather(*map(read, indexes), return_exceptions=True)
                for outcome in outcomes:
                    if outcome is not None:
                        raise outcome
                sources = [blocks[index] for index in indexes]
                builder = RunBuilder(extent, self._cut(extent, [source.value for source in sources]))
                await _advance_slowly(builder)
                kept = [cast("Entry[object]", source) for source in sources]
                return self._cache.keep_run(extent, builder.finish(), hot, flight.waiters, kept)
            finally:
                for block in blocks.values():
                    block.unpin()

        return work

    def _cut(self, extent: Extent, blocks: list[bytes]) -> list[memoryview]:
        """The extent's part of the blocks it lies in; too few bytes when the object ends early."""
        size = self._blocks.block_bytes
        begin = extent.byte_position % size
        left = extent.byte_length
        views: list[memoryview] = []
        for block in blocks:
            view = memoryview(block)[begin : begin + left]
            views.append(view)
            left -= len(view)
            begin = 0
            if len(block) < size:
                break
        return views


def _key(extent: Extent) -> tuple[str, int]:
    return (extent.segment_key, extent.byte_position)


async def _advance_slowly(builder: RunBuilder) -> None:
    done = builder.advance(PATCH_AT_ONCE)
    while not done:
        await asyncio.sleep(0)
        done = builder.advance(PATCH_AT_ONCE)
