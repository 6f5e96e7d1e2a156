"""A small world for the fetch path: real caches and a memory store, a metadata service made of lists."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import crc32c
from prometheus_client import CollectorRegistry

from agent.fetch.answer import Fetched, FetchLimits, PartitionFetch
from agent.fetch.fetcher import Fetcher
from agent.fetch.metrics import FetchMetrics
from ingest.compression import iterate_records
from ingest.segment import SegmentName
from metadata.model import Extent, ExtentsFound, ExtentsQuery, MetadataUnavailable, PartitionOffsets, Refusal, Refused
from runtime.budget import Budget
from runtime.clock import SystemClock
from runtime.settings import FetchSettings, MemorySettings, Settings
from runtime.tasks import Supervisor
from storage.memory import MemoryStore
from storage.store import Chunk

TOPIC = bytes(range(16))
MIB = 1024 * 1024


def varint(value: int) -> bytes:
    value = value << 1 ^ value >> 63
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def make_batch(values: Sequence[bytes], timestamps: Sequence[int] | None = None, attributes: int = 0) -> bytes:
    """An uncompressed v2 batch with base offset 0; ``attributes`` may lie about its codec."""
    timestamps = timestamps or [1_000] * len(values)
    records = bytearray()
    for delta, (value, timestamp) in enumerate(zip(values, timestamps, strict=True)):
        body = b"\0" + varint(timestamp - timestamps[0]) + varint(delta) + varint(-1)
        body += varint(len(value)) + value + varint(0)
        records += varint(len(body)) + body
    tail = struct.pack(
        ">hiqqqhii", attributes, len(values) - 1, timestamps[0], max(timestamps), -1, -1, -1, len(values)
    )
    tail += records
    return struct.pack(">qiibI", 0, len(tail) + 9, -1, 2, crc32c.crc32c(tail)) + tail


def records_of(answer: Sequence[Chunk]) -> list[tuple[int, bytes]]:
    """(offset, value) of every record in a fetch answer; checks each batch's CRC and leader epoch."""
    data = b"".join(answer)
    records: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        base, length, epoch, magic, crc = struct.unpack_from(">qiibI", data, position)
        batch = data[position : position + 12 + length]
        assert len(batch) == 12 + length, "only whole batches are sent"
        assert (epoch, magic) == (0, 2)
        assert crc32c.crc32c(batch[21:]) == crc
        records += [(base + record.offset_delta, record.value or b"") for record in iterate_records(batch)]
        position += 12 + length
    return records


@dataclass
class PartitionLog:
    log_start_offset: int = 0
    high_watermark: int = 0
    extents: list[Extent] = field(default_factory=list)


class ListMetadata:
    """Answers like the metadata service, from lists; only what the fetch path asks."""

    def __init__(self) -> None:
        self.logs: dict[tuple[bytes, int], PartitionLog] = {}
        self.find_calls = 0
        self.unavailable = False

    async def find_extents(self, queries: Sequence[ExtentsQuery]) -> list[ExtentsFound]:
        self.find_calls += 1
        if self.unavailable:
            raise MetadataUnavailable("down")
        return [self._find(query) for query in queries]

    def _find(self, query: ExtentsQuery) -> ExtentsFound:
        log = self.logs.get((query.topic_id, query.partition))
        if log is None:
            return ExtentsFound(-1, -1, refusal=Refusal.UNKNOWN_TOPIC_ID)
        if not log.log_start_offset <= query.offset <= log.high_watermark:
            return ExtentsFound(log.high_watermark, log.log_start_offset, refusal=Refusal.OFFSET_OUT_OF_RANGE)
        found: list[Extent] = []
        if query.offset < log.high_watermark:
            first = bisect_right(log.extents, query.offset, key=lambda extent: extent.base_offset) - 1
            total = 0
            for extent in log.extents[first:]:
                found.append(extent)
                total += extent.byte_length
                if total >= query.byte_max:
                    break
        return ExtentsFound(log.high_watermark, log.log_start_offset, tuple(found))

    async def find_extent_by_timestamp(self, topic_id: bytes, partition: int, timestamp_ms: int) -> Extent | None:
        log = self.logs.get((topic_id, partition))
        if log is None:
            raise Refused(Refusal.UNKNOWN_TOPIC_ID, "gone")
        return next((extent for extent in log.extents if extent.max_timestamp_ms >= timestamp_ms), None)

    async def partition_offsets(self, partitions: Sequence[tuple[bytes, int]]) -> list[PartitionOffsets | None]:
        if self.unavailable:
            raise MetadataUnavailable("down")
        answers: list[PartitionOffsets | None] = []
        for key in partitions:
            log = self.logs.get(key)
            largest = max((extent.max_timestamp_ms for extent in log.extents), default=-1) if log else -1
            answers.append(log and PartitionOffsets(log.log_start_offset, log.high_watermark, largest))
        return answers


class FollowsAll:
    """A subscription that announces every partition, as the in-process one does."""

    topics = ()
    agents = ()

    def __init__(self) -> None:
        self.followed: list[tuple[bytes, int]] = []
        self.unfollowed: list[tuple[bytes, int]] = []
        self.unavailable = False

    async def follow(self, partitions: Sequence[tuple[bytes, int]]) -> None:
        if self.unavailable:
            raise MetadataUnavailable("down")
        self.followed += partitions

    def unfollow(self, partitions: Sequence[tuple[bytes, int]]) -> None:
        self.unfollowed += partitions

    def close(self) -> None: ...


class CountingStore(MemoryStore):
    """A memory store that counts GETs, and can be told to hold or fail them."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.gets: list[tuple[str, int]] = []
        self.before_get = None  # an async callable(key)

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self.gets.append((key, start))
        if self.before_get is not None:
            await self.before_get(key)
        return await super().get(key, start, length)


def evict(fetcher: Fetcher) -> None:
    for pool in (fetcher.cache.hot, fetcher.cache.cold):
        for key in list(pool._entries):
            pool.drop(key)


class World:
    """A fetcher, and a hand that writes segments and commits them."""

    def __init__(self, budget_bytes: int = 64 * MIB, block_bytes: int = 64 * 1024, **fetch: int) -> None:
        self.settings = Settings(
            memory=MemorySettings(budget_bytes=budget_bytes),
            fetch=FetchSettings(block_bytes=block_bytes, **{"tail_block_bytes": block_bytes, **fetch}),
        )
        self.store = CountingStore()
        self.metadata = ListMetadata()
        self.budget = Budget(budget_bytes)
        self.failures: list[BaseException] = []
        self.supervisor = Supervisor(lambda _, error: self.failures.append(error))
        self.metrics = FetchMetrics(CollectorRegistry())
        self.subscription = FollowsAll()
        self.fetcher = self.new_fetcher()
        self._sequence = 0

    def new_fetcher(self) -> Fetcher:
        fetcher = Fetcher(
            self.store,
            self.metadata,  # type: ignore[arg-type]
            self.settings,
            self.budget,
            SystemClock(),
            self.supervisor,
            FetchMetrics(CollectorRegistry()) if hasattr(self, "fetcher") else self.metrics,
        )
        fetcher.follower.start(self.subscription)
        return fetcher

    def create(self, partition: int = 0, topic_id: bytes = TOPIC) -> None:
        self.metadata.logs[topic_id, partition] = PartitionLog()

    async def write(
        self,
        parts: Sequence[tuple[int, Sequence[bytes]]],
        *,
        topic_id: bytes = TOPIC,
        tail: bool = True,
        announce: bool = True,
        max_timestamp_ms: int = 1_000,
        agent_epoch: int = 1,
    ) -> list[Extent]:
        """One segment with an extent per (partition, batches); the writer shares its memory when ``tail``."""
        self._sequence += 1
        key = SegmentName(agent_epoch, self._sequence, 0, 0).key
        chunks: list[tuple[int, Chunk]] = []
        extents: list[Extent] = []
        position = 0
        for partition, batches in parts:
            log = self.metadata.logs[topic_id, partition]
            begin = position
            for batch in batches:
                chunks.append((position, memoryview(batch)))
                position += len(batch)
            count = sum(struct.unpack_from(">i", batch, 57)[0] for batch in batches)
            extents.append(
                Extent(
                    topic_id,
                    partition,
                    log.high_watermark,
                    log.high_watermark + count - 1,
                    key,
                    begin,
                    position - begin,
                    max_timestamp_ms,
                    0,
                )
            )
            log.extents.append(extents[-1])
            log.high_watermark += count
        await self.store.put(key, [chunk for _, chunk in chunks] + [b"footer" * 10], 0)
        if tail:
            self.fetcher.segment_uploaded(key, chunks)
        if announce:
            self.fetcher.extents_committed(extents)
        return extents

    async def fetch(
        self,
        offset: int | Sequence[tuple[int, int]] = 0,
        *,
        partition_bytes: int = MIB,
        byte_max: int = 50 * MIB,
        byte_min: int = 1,
        max_wait_ms: int = 0,
        topic_id: bytes = TOPIC,
    ) -> Fetched:
        """``offset`` of partition 0, or (partition, offset) of several."""
        asked = [(0, offset)] if isinstance(offset, int) else offset
        return await self.fetcher.fetch(
            [PartitionFetch(topic_id, partition, start, partition_bytes) for partition, start in asked],
            FetchLimits(byte_max, byte_min, max_wait_ms),
        )

    def evict(self) -> None:
        """Drop every cached entry; those in use stay counted."""
        evict(self.fetcher)

    async def settle(self) -> None:
        """Evict everything: what is still counted afterwards is held by somebody."""
        await self.supervisor.stop()
        self.evict()
        assert not self.failures
