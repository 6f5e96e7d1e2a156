"""Extents' bytes, and the runs patched from them: from this agent's memory, the writer's, the block's owner, the store.

Objects are read in aligned blocks, each once for everybody: once in this agent, and where agents share a zone and
group, once in all of them (:mod:`agent.fetch.ring`). Old data comes in small blocks, the tail in whole segments.
Concurrency is bounded (``reads_max``, of which ``cold_reads_max`` for data outside the tail); a read has a deadline.
Whatever a peer does not give, or not in time, is read from the object store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from agent.fetch.cache import FetchCache
from agent.fetch.flights import Flight, SingleFlight
from agent.fetch.metrics import FetchMetrics
from agent.fetch.patch import Run, RunBuilder
from agent.fetch.peer_wire import PeerRange
from agent.fetch.peers import PeerReader
from agent.fetch.placed import PlacedRunBuilder, reads_exactly, run_builder
from agent.fetch.pool import PURPOSE, Entry
from agent.fetch.ring import Ring
from metadata.agent_model import AgentInfo
from metadata.model import Extent
from runtime.budget import Budget
from runtime.settings import FetchSettings
from runtime.tasks import Supervisor
from storage.store import ObjectStore, StorageUnavailable

PATCH_AT_ONCE = 4_096
"""Batches patched before other tasks get their turn: about two milliseconds."""


class BlockReader:
    """Reads blocks of the object store. Everything it returns is pinned once for the caller."""

    def __init__(
        self,
        store: ObjectStore,
        cache: FetchCache,
        settings: FetchSettings,
        budget: Budget,
        supervisor: Supervisor,
        metrics: FetchMetrics,
    ) -> None:
        self._block_bytes = settings.block_bytes
        self._tail_block_bytes = settings.tail_block_bytes
        self._store = store
        self._cache = cache
        self._budget = budget
        self._metrics = metrics
        self._deadline_ms = settings.read_deadline_ms
        self._flights: SingleFlight[bytes] = SingleFlight("read", supervisor)
        self._reads = asyncio.Semaphore(settings.reads_max)
        # Blocks being read are memory too: no more of them than the pools can hold.
        cold_reads_max = min(
            settings.cold_reads_max, settings.reads_max, cache.cold.capacity_bytes // self._block_bytes
        )
        self.cold_reads_max = max(1, cold_reads_max)
        self._cold_reads = asyncio.Semaphore(self.cold_reads_max)
        self._hot_reads = asyncio.Semaphore(
            max(1, min(settings.reads_max, cache.hot.capacity_bytes // self._tail_block_bytes))
        )
        self._ahead = 0

    def size(self, hot: bool) -> int:
        """Bytes of a block of the tail, or of old data."""
        return self._tail_block_bytes if hot else self._block_bytes

    def tail_index(self, position: int) -> int:
        """The number of the tail block the byte lies in: what one agent of the ring owns."""
        return position // self._tail_block_bytes

    def in_tail_block(self, segment_key: str, position: int) -> bool:
        """Whether the byte lies in a block that was read for the tail and is still here."""
        return self._cache.block(segment_key, self._tail_block_bytes, self.tail_index(position)) is not None

    async def read(self, segment_key: str, index: int, hot: bool) -> Entry[bytes]:
        """The ``index``-th block of :meth:`size` bytes; the object's last one is shorter.

        :raises storage.store.StorageError: StorageUnavailable also when the deadline has passed.
        """
        key = (segment_key, self.size(hot), index)
        entry = self._cache.block(*key)
        if entry is not None:
            self._metrics.block_hits += 1
            entry.pin()
            return entry
        flight = self._flights.running(key)
        if flight is None:
            flight = self._launch(segment_key, index, hot)
        else:
            self._metrics.joined_reads += 1
        return await self._flights.wait(flight)

    async def read_exactly(self, segment_key: str, start: int, length: int) -> Entry[bytes]:
        """``length`` bytes from ``start`` on by a GET of their own (or fewer, where the object ends): a large extent.

        :raises storage.store.StorageError:
        """
        key = (segment_key, -length, start)  # blocks have positive sizes
        entry = self._cache.block(*key)
        if entry is not None:
            self._metrics.block_hits += 1
            entry.pin()
            return entry
        flight = self._flights.running(key)
        if flight is None:

            async def work(flight: Flight[bytes]) -> Entry[bytes]:
                async with self._cold_reads, self._reads:
                    data = await self._get(segment_key, start, length)
                return self._cache.keep_block(*key, data, False, flight.waiters)

            flight = self._flights.launch(key, work)
        else:
            self._metrics.joined_reads += 1
        return await self._flights.wait(flight)

    def read_ahead(self, segment_key: str, index: int) -> bool:
        """Start reading a block that a catching-up consumer will want next; False when enough is under way."""
        key = (segment_key, self._block_bytes, index)
        if self._cache.block(*key) is not None or self._flights.is_running(key):
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
        size = self.size(hot)

        async def work(flight: Flight[bytes]) -> Entry[bytes]:
            async with self._hot_reads if hot else self._cold_reads, self._reads:
                data = await self._get(segment_key, index * size, size)
            return self._cache.keep_block(segment_key, size, index, data, hot, flight.waiters)

        return self._flights.launch((segment_key, size, index), work)

    async def _get(self, segment_key: str, start: int, length: int) -> bytes:
        self._metrics.block_reads += 1
        self._budget.take(PURPOSE, length)
        try:
            async with asyncio.timeout(self._deadline_ms / 1000):
                return await self._store.get(segment_key, start, length)
        except TimeoutError:
            self._metrics.block_reads_failed += 1
            raise StorageUnavailable(f"get {segment_key}: no answer in {self._deadline_ms} ms") from None
        except Exception:
            self._metrics.block_reads_failed += 1
            raise
        finally:
            self._budget.give(PURPOSE, length)


class RunReader:
    """Patched runs of extents, each patched once for everybody; their bytes come from where the module's text says."""

    def __init__(
        self,
        blocks: BlockReader,
        cache: FetchCache,
        ring: Ring,
        peers: PeerReader,
        supervisor: Supervisor,
        metrics: FetchMetrics,
    ) -> None:
        self._blocks = blocks
        self._cache = cache
        self._ring = ring
        self._peers = peers
        self._metrics = metrics
        self._flights: SingleFlight[Run] = SingleFlight("patch", supervisor)
        self._ahead = 0
        """Extents that peers were asked for ahead of a consumer."""

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
        builder = run_builder(extent, views)
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
            flight = self._flights.launch(_key(extent), self._gather(extent, hot))
        return await self._flights.wait(flight)

    def read_ahead(self, extent: Extent) -> bool:
        """Start reading what a catching-up consumer will want next; False when enough is under way."""
        if self.in_memory(extent) or self._flights.is_running(_key(extent)):
            return True
        owner = self._ring.owner(extent.segment_key, self._blocks.tail_index(extent.byte_position))
        if owner is None and not reads_exactly(extent):
            size = self._blocks.size(hot=False)
            return all(self._blocks.read_ahead(extent.segment_key, index) for index in _blocks_of(extent, size))
        if self._ahead >= self._blocks.cold_reads_max:
            return False
        self._ahead += 1
        self._flights.launch(_key(extent), self._gather(extent, hot=False)).landed.add_done_callback(self._ahead_landed)
        return True

    def _ahead_landed(self, _: asyncio.Future[None]) -> None:
        self._ahead -= 1

    def _gather(self, extent: Extent, hot: bool) -> Callable[[Flight[Run]], Coroutine[Any, Any, Entry[Run]]]:
        async def work(flight: Flight[Run]) -> Entry[Run]:
            sources: list[Entry[bytes]] = []
            try:
                views = await self._views(extent, hot, sources)
                builder = run_builder(extent, views)
                await _advance_slowly(builder)
                kept = [cast("Entry[object]", source) for source in sources]
                return self._cache.keep_run(extent, builder.finish(), hot, flight.waiters, kept)
            finally:
                for source in sources:
                    source.unpin()

        return work

    async def _views(self, extent: Extent, hot: bool, sources: list[Entry[bytes]]) -> list[memoryview]:
        """The extent's bytes; too few when the object ends early. What they lie in is pinned, in ``sources``."""
        key, position, length = extent.segment_key, extent.byte_position, extent.byte_length
        if hot and (writer := self._ring.writer(key)) is not None:
            view = await self._ask(writer, PeerRange(key, position, length, hot, memory_only=True), sources)
            if view is not None:
                return [view]
        if reads_exactly(extent):
            return [await self._exact_view(key, position, length, sources)]
        from_tail = hot or self._blocks.in_tail_block(key, position)
        size = self._blocks.size(from_tail)

        async def part(index: int) -> memoryview:
            begin, end = max(position, index * size), min(position + length, (index + 1) * size)
            owner = self._ring.owner(key, self._blocks.tail_index(begin))
            if owner is not None:
                view = await self._ask(owner, PeerRange(key, begin, end - begin, hot, memory_only=False), sources)
                if view is not None:
                    return view
            entry = await self._blocks.read(key, index, from_tail)
            sources.append(entry)
            return memoryview(entry.value)[begin - index * size : end - index * size]

        outcomes = await asyncio.gather(*map(part, _blocks_of(extent, size)), return_exceptions=True)
        views: list[memoryview] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            views.append(outcome)
        return views

    async def _exact_view(self, key: str, position: int, length: int, sources: list[Entry[bytes]]) -> memoryview:
        owner = self._ring.owner(key, self._blocks.tail_index(position))
        if owner is not None:
            wanted = PeerRange(key, position, length, hot=False, memory_only=False, exactly=True)
            view = await self._ask(owner, wanted, sources)
            if view is not None:
                return view
        entry = await self._blocks.read_exactly(key, position, length)
        sources.append(entry)
        return memoryview(entry.value)

    async def _ask(self, peer: AgentInfo, wanted: PeerRange, sources: list[Entry[bytes]]) -> memoryview | None:
        data = await self._peers.read(peer, wanted)
        if data is None:
            return None
        self._metrics.peer_hits += 1
        sources.append(self._cache.keep_range(wanted.segment_key, wanted.start, data, wanted.hot))
        return memoryview(data)


def _blocks_of(extent: Extent, size: int) -> range:
    return range(extent.byte_position // size, (extent.byte_position + extent.byte_length - 1) // size + 1)


def _key(extent: Extent) -> tuple[str, int]:
    return (extent.segment_key, extent.byte_position)


async def _advance_slowly(builder: RunBuilder | PlacedRunBuilder) -> None:
    done = builder.advance(PATCH_AT_ONCE)
    while not done:
        await asyncio.sleep(0)
        done = builder.advance(PATCH_AT_ONCE)
