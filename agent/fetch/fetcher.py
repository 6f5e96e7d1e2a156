"""The fetch path of one agent: locate, wait, load, answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.failure_log import FailureLog
from agent.fetch.answer import Fetched, FetchLimits, PartitionFetch
from agent.fetch.cache import FetchCache
from agent.fetch.extents import ExtentIndex
from agent.fetch.follow import Follower
from agent.fetch.loading import Loader
from agent.fetch.locate import Locator, PartitionRead
from agent.fetch.metrics import FetchMetrics
from agent.fetch.patch import Piece
from agent.fetch.peer_server import PeerServer
from agent.fetch.peers import PeerReader
from agent.fetch.plan import AnswerLimit, Want, extents_to_load, serving_order
from agent.fetch.pool import Entry
from agent.fetch.reader import BlockReader, RunReader
from agent.fetch.ring import Ring
from agent.fetch.timestamps import TimestampSearch
from agent.fetch.waits import Waits
from metadata.agent_model import AgentInfo
from metadata.client import MetadataClient
from metadata.model import Extent, LogStart, TopicId
from runtime.budget import Budget
from runtime.clock import Clock
from runtime.settings import Settings
from runtime.tasks import Supervisor
from storage.store import Chunk, ObjectStore


class Fetcher:
    """Answers fetches of all connections; hears of commits and of the writer's segments. One event loop."""

    def __init__(
        self,
        store: ObjectStore,
        metadata: MetadataClient,
        settings: Settings,
        budget: Budget,
        clock: Clock,
        supervisor: Supervisor,
        metrics: FetchMetrics,
    ) -> None:
        self.cache = FetchCache(settings.memory, budget)
        self._index = ExtentIndex(self.cache.hot.capacity_bytes)
        self.follower = Follower(clock, supervisor, self._index.forget_partition)
        self._locator = Locator(metadata, self._index, self.follower, metrics)
        blocks = BlockReader(store, self.cache, settings.fetch, budget, supervisor, metrics)
        self._ring = Ring()
        secret = None if settings.secret is None else settings.secret.get_secret_value()
        self._peers = PeerReader(clock, supervisor, budget, metrics, secret)
        self.peer_server = PeerServer(self.cache, blocks, budget, metrics, secret)
        self._runs = RunReader(blocks, self.cache, self._ring, self._peers, supervisor, metrics)
        self.failures = FailureLog(clock)
        self._loader = Loader(self._runs, self._locator, budget, metrics, blocks.cold_reads_max, self.failures)
        self.timestamps = TimestampSearch(metadata, self._runs, budget)
        self._waits = Waits()
        self._budget = budget
        self._clock = clock
        self._metrics = metrics
        self._answer_bytes_max = settings.fetch.fetch_bytes_max
        self._load_bytes_max = max(self.cache.cold.capacity_bytes // 2, settings.fetch.block_bytes)
        self._turn = 0

    async def close(self) -> None:
        """Drop the connections to peers."""
        await self._peers.close()

    # --- events -----------------------------------------------------------------------------------------

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        """Metadata says: these are durable and visible, in commit order."""
        self._index.announce(extents)
        self._waits.committed(extents)

    def log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        """Metadata says: below these offsets there is nothing any more."""
        for each in moved:
            self._index.move_log_start(each)

    def agents_changed(self, agents: Sequence[AgentInfo], node_id: int) -> None:
        """The roster changed; ``node_id`` is this agent's."""
        self._ring.update(agents, node_id)

    def resynchronize(self) -> None:
        """Events may have been missed: forget what was derived from them, and let everybody who waits look again."""
        self._index.clear()
        self._waits.wake_all()

    def topic_deleted(self, topic_ids: Sequence[TopicId]) -> None:
        self._index.forget_topics(topic_ids)
        self._waits.wake_topics(topic_ids)

    def segment_uploaded(self, segment_key: str, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """See :class:`ingest.writer.SegmentSink`."""
        self.cache.segment_uploaded(segment_key, chunks)

    def segment_dropped(self, segment_key: str) -> None:
        """See :class:`ingest.writer.SegmentSink`."""
        self.cache.segment_dropped(segment_key)

    # --- fetching ---------------------------------------------------------------------------------------

    async def fetch(self, partitions: Sequence[PartitionFetch], limits: FetchLimits) -> Fetched:
        """Records of ``partitions`` within ``limits``, waiting up to ``max_wait_ms`` for ``byte_min`` bytes.

        Problems are per partition and never raised; any of them ends the wait. The caller releases the answer.
        Cancelling is safe at any time.
        """
        deadline = self._clock.monotonic() + limits.max_wait_ms / 1000
        byte_max = max(1, min(limits.byte_max, self._answer_bytes_max))
        while True:
            located = await self._locator.locate(partitions, byte_max)
            seconds = deadline - self._clock.monotonic()
            if located.available >= limits.byte_min or seconds <= 0:
                break
            if not await self._wait(partitions, limits.byte_min - located.available, seconds):
                deadline = self._clock.monotonic()  # time is up, though timers may be early
        pins: list[Entry[Any]] = []
        fetched = Fetched(located.answers, pins, self._budget)
        if located.reads:
            try:
                await self._answer(located.reads, byte_max, pins, fetched)
            except BaseException:
                fetched.release()
                raise
        return fetched

    async def _wait(self, partitions: Sequence[PartitionFetch], bytes_missing: int, seconds: float) -> bool:
        waiter = self._waits.enter([(fetch.topic_id, fetch.partition) for fetch in partitions], bytes_missing)
        self._metrics.waiting += 1
        try:
            return await waiter.wait(seconds)
        finally:
            self._metrics.waiting -= 1
            self._waits.leave(waiter)

    async def _answer(
        self, reads: list[PartitionRead], byte_max: int, pins: list[Entry[Any]], fetched: Fetched
    ) -> None:
        self._turn += 1
        order = serving_order(len(reads), self._turn)
        wants = [self._want(read) for read in reads]
        room = self._budget.limit_bytes - self._budget.held_bytes
        room += self.cache.hot.evictable_bytes + self.cache.cold.evictable_bytes
        counts = extents_to_load(wants, order, byte_max, min(self._load_bytes_max, room))
        loaded_more = await self._loader.load([(reads[index], counts[index]) for index in order], pins)
        # Over the budget, what had to be loaded gives one batch, copied, so that no whole run is held for it.
        tight = loaded_more and self._budget.exhausted
        limit = AnswerLimit(1 if tight else byte_max)
        used: list[Entry[Any]] = []
        for index in order:
            read = reads[index]
            if read.problem is not None:
                read.answer.problem = read.problem
                read.answer.high_watermark = read.answer.log_start_offset = -1
            else:
                self._slice(read, limit, used)
        for entry in used:
            entry.pin()
        for entry in pins:
            entry.unpin()
        pins[:] = used
        if tight:
            for read in reads:
                copied = b"".join(read.answer.chunks)
                read.answer.chunks = [copied] if copied else ()
                fetched.hold(len(copied))
            for entry in pins:
                entry.unpin()
            pins.clear()
        for index in order:
            if counts[index]:
                self._loader.read_ahead(reads[index])

    def _slice(self, read: PartitionRead, limit: AnswerLimit, used: list[Entry[Any]]) -> None:
        answer = read.answer
        offset = read.fetch.fetch_offset
        allowance = limit.allowance(read.fetch.byte_max)
        chunks: list[Piece] = []
        for index, entry in enumerate(read.runs):
            run = entry.value
            part = run.slice(offset, allowance, limit.at_least_one)
            if not part.chunks:
                break
            chunks += part.chunks
            used.append(entry)
            answer.byte_length += part.byte_length
            answer.zstd |= run.zstd
            offset = part.next_offset
            allowance -= part.byte_length
            limit.sent(part.byte_length)
            self._metrics.bytes_out += part.byte_length
            self._metrics.records_out += part.record_count
            if offset <= run.last_offset:
                break
            if not run.borrowed:
                self.cache.consumed(read.extents[index])
        answer.chunks = chunks
        read.next_offset = offset

    def _want(self, read: PartitionRead) -> Want:
        in_memory = self._runs.in_memory
        sizes = [(extent.byte_length, 0 if in_memory(extent) else extent.byte_length) for extent in read.extents]
        sizes[0] = (read.first_extent_bytes(), sizes[0][1])
        return Want(read.fetch.byte_max, sizes)
