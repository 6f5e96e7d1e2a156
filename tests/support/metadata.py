"""Builders, a faulty store and a transport-like client for tests of the metadata service."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import typing
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from metadata.agent_model import AgentInfo, AgentRegistration
from metadata.client import MetadataClient
from metadata.compaction import SegmentSummary
from metadata.metrics import MetadataMetrics
from metadata.model import (
    BatchDraft,
    Extent,
    ExtentDraft,
    LogStart,
    SegmentCommit,
    Topic,
    TopicId,
    TopicsChanged,
)
from metadata.service import MetadataService
from metadata.store.port import (
    Change,
    DeadSegment,
    Deposed,
    ExtentsAdded,
    MetadataStore,
    OffsetRange,
    SegmentAdded,
    SegmentTotals,
    StoreSnapshot,
    StoreUnavailable,
)
from runtime.clock import Clock, SeededEntropy, SystemClock
from runtime.settings import AgentsSettings, CompactionSettings, GroupSettings, LifecycleSettings, TopicSettings
from runtime.tasks import Supervisor

EMPTY = StoreSnapshot("cluster", (), (), (), (), (), {}, (), {})


def topic_id(number: int) -> TopicId:
    return number.to_bytes(16, "big")


def topic(number: int = 1, partition_count: int = 2, name: str | None = None) -> Topic:
    return Topic(topic_id(number), name or f"topic-{number}", partition_count, {}, 1_000)


def registration(agent_uid: str = "agent-1") -> AgentRegistration:
    return AgentRegistration(agent_uid, "zone-a", "default", "127.0.0.1", 9092, "0.1.0")


def batch(
    records: int = 1,
    *,
    size: int = 100,
    timestamp: int = 1_000,
    producer: int = -1,
    epoch: int = -1,
    sequence: int = -1,
) -> BatchDraft:
    return BatchDraft(size, records, timestamp, producer, epoch, sequence)


def segment(sequence: int, *drafts: tuple[TopicId, int, Sequence[BatchDraft]], key: str | None = None) -> SegmentCommit:
    """The drafts' batches lie back to back from byte 0 on."""
    position = 0
    extents = []
    for draft_topic, partition, batches in drafts:
        extents.append(ExtentDraft(draft_topic, partition, position, tuple(batches)))
        position += sum(each.byte_length for each in batches)
    return SegmentCommit(sequence, key or f"segments/{sequence}", position, tuple(extents))


def extent(
    base: int,
    last: int,
    *,
    partition: int = 0,
    key: str = "segments/1",
    size: int = 100,
    timestamp: int = 1_000,
    of: TopicId | None = None,
    position: int = 0,
) -> Extent:
    return Extent(of or topic_id(1), partition, base, last, key, position, size, timestamp, 5_000)


def added(sequence: int, *extents: Extent, epoch: int = 1) -> list[Change]:
    """A committed segment and its extents (whose key must be ``segments/<sequence>``)."""
    changes: list[Change] = [SegmentAdded(epoch, sequence, f"segments/{sequence}", 1_000, 5_000, b"answer")]
    if extents:
        changes.append(ExtentsAdded(extents))
    return changes


class SettableClock(SystemClock):
    """The wall clock stands still where a test puts it; durations and sleeps are real, until a test lets time pass."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.wall_ms = now_ms
        self._ahead = 0.0
        self._passed = asyncio.Event()

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._passed.wait()

    def jump(self, seconds: float) -> None:
        """All at once, as for a process that was stopped and goes on."""
        self._ahead += seconds
        self._passed.set()
        self._passed = asyncio.Event()

    async def pass_seconds(self, seconds: float) -> None:
        """In steps short enough for everybody who sleeps to see each of them."""
        until = self.monotonic() + seconds
        while (left := until - self.monotonic()) > 0:
            self._ahead += min(left, 0.2)
            self._passed.set()
            self._passed = asyncio.Event()
            await asyncio.sleep(0.002)


class FaultyMetadataStore:
    """Passes everything on to ``inner`` until told to fail or to hold writes back."""

    def __init__(self, inner: MetadataStore) -> None:
        self._inner = inner
        self.writes: list[list[Change]] = []
        """The changes of each write that was begun."""
        self.fail_before = 0
        """So many writes fail without effect."""
        self.fail_after = 0
        """So many writes take effect and fail."""
        self.unreadable = 0
        """So many reloads fail."""
        self.deposed = False
        """Another process leads: nothing is written or reloaded any more."""
        self.reloads = 0
        self.gate: asyncio.Event | None = None
        """Writes wait for it before they have any effect."""

    async def lead(self) -> int:
        return await self._inner.lead()

    async def renew(self) -> None:
        await self._inner.renew()

    def sure(self) -> bool:
        return self._inner.sure()

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        return await self._inner.open(new_cluster_id)

    async def write(self, changes: Sequence[Change]) -> None:
        self.writes.append(list(changes))
        if self.gate is not None:
            await self.gate.wait()
        if self.deposed:
            raise Deposed("planted: generation 2 leads")
        if self.fail_before:
            self.fail_before -= 1
            raise StoreUnavailable("planted: before effect")
        await self._inner.write(changes)
        if self.fail_after:
            self.fail_after -= 1
            raise StoreUnavailable("planted: after effect")

    async def reload(self) -> StoreSnapshot:
        self.reloads += 1
        if self.deposed:
            raise Deposed("planted: generation 2 leads")
        if self.unreadable:
            self.unreadable -= 1
            raise StoreUnavailable("planted: unreadable")
        return await self._inner.reload()

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        return await self._inner.find_extents(topic_id, partition, offset, byte_max, before_offset)

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        return await self._inner.find_extent_by_timestamp(topic_id, partition, timestamp_ms)

    async def sum_extents(
        self, topic_id: TopicId, partition: int, offset: int, before_offset: int, row_max: int
    ) -> tuple[int, int]:
        return await self._inner.sum_extents(topic_id, partition, offset, before_offset, row_max)

    async def purge(self, row_max: int, now_ms: int) -> bool:
        if self.deposed:
            raise Deposed("planted: generation 2 leads")
        return await self._inner.purge(row_max, now_ms)

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        return await self._inner.find_dead_segments(until_ms, count_max)

    async def find_segments(self, segments: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
        return await self._inner.find_segments(segments)

    async def find_compactable(self, level: int, count_max: int) -> list[SegmentSummary]:
        return await self._inner.find_compactable(level, count_max)

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        return await self._inner.find_segment_extents(segments)

    async def find_ranges(self, ranges: Sequence[OffsetRange]) -> list[list[Extent]]:
        return await self._inner.find_ranges(ranges)

    async def segment_totals(self, after_id: int, row_max: int) -> SegmentTotals:
        return await self._inner.segment_totals(after_id, row_max)

    async def close(self) -> None:
        await self._inner.close()


class RoundTripClient:
    """Calls the service with arguments, and answers with results, that travelled through MessagePack."""

    def __init__(self, service: MetadataService) -> None:
        self.service = service

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.service, name)
        if name == "subscribe":
            return method
        declared = getattr(MetadataClient, name)
        hints = typing.get_type_hints(declared)
        parameters = [parameter for parameter in inspect.signature(declared).parameters if parameter != "self"]

        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(method).bind(*args, **kwargs).arguments
            sent = {key: travel(value, hints[key]) for key, value in bound.items()}
            return travel(await method(*[sent[key] for key in parameters if key in sent]), hints["return"])

        return call


def travel(value: Any, kind: Any) -> Any:
    """``value`` as the other end of a transport gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)


class Recorder:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.rosters: list[tuple[AgentInfo, ...]] = []

    def topics_changed(self, change: TopicsChanged) -> None:
        self.heard.append(change)

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        self.heard.extend(extents)

    def log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        self.heard.extend(moved)

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        self.rosters.append(tuple(agents))

    def resynchronize(self) -> None:
        self.heard.append("resynchronize")


@asynccontextmanager
async def running_service(
    store: MetadataStore,
    clock: Clock | None = None,
    entropy_seed: int = 1,
    topics: TopicSettings | None = None,
    agents: AgentsSettings | None = None,
    groups: GroupSettings | None = None,
    failures: list[BaseException] | None = None,
    lifecycle: LifecycleSettings | None = None,
    compaction: CompactionSettings | None = None,
) -> AsyncIterator[MetadataService]:
    """A started service; stopped at the end, the store closed with it. No task of it may fail, unless the caller
    wants to see ``failures``."""
    expected, failures = failures is not None, [] if failures is None else failures
    supervisor = Supervisor(lambda _name, error: failures.append(error))
    service = MetadataService(
        store,
        clock or SettableClock(),
        SeededEntropy(entropy_seed),
        supervisor,
        MetadataMetrics(CollectorRegistry()),
        groups or GroupSettings(),
        topics or TopicSettings(),
        agents or AgentsSettings(),
        lifecycle,
        compaction,
    )
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        await supervisor.stop()
    assert expected or not failures, failures
