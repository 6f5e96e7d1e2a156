"""Programmable neighbours of the ingest path: object store, metadata service, sink; and a writer between them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import crc32c
from prometheus_client import CollectorRegistry

from ingest.batch_header import BatchHeader
from ingest.metrics import IngestMetrics
from ingest.segment import check_segment, parse_segment_key
from ingest.ticket import IngestFailed, PendingBatch, ProduceTicket
from ingest.writer import SegmentWriter
from metadata.model import BatchCommitted, Fenced, MetadataUnavailable, Refusal, SegmentCommit, SegmentCommitted
from runtime.budget import Budget
from runtime.clock import SeededEntropy
from runtime.settings import IngestSettings
from runtime.tasks import Supervisor
from storage.store import Chunk, ObjectExists, ObjectInfo, ObjectNotFound, StorageError
from tests.support.virtual_time import VirtualClock

TOPIC = bytes(range(16))


class Put:
    """What happens to one put: takes ``seconds``, then raises ``error`` (before or after taking effect)."""

    def __init__(
        self, seconds: float = 0.0, error: StorageError | None = None, effect: bool = True, hang: bool = False
    ) -> None:
        self.seconds = seconds
        self.error = error
        self.effect = effect and (error is None)
        self.effect_despite_error = effect and error is not None
        self.hang = hang


class FakeStore:
    """Objects in a dict. ``puts`` scripts the next puts in order; afterwards each takes ``put_seconds``."""

    name = "fake"

    def __init__(self, hedged: bool = True, put_seconds: float = 0.06) -> None:
        self.hedged = hedged
        self.put_seconds = put_seconds
        self.puts: deque[Put] = deque()
        self.objects: dict[str, bytes] = {}
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self.delete_error: StorageError | None = None
        self.running = 0
        self.running_max = 0

    async def put(self, key: str, chunks: Sequence[Chunk], checksum: int) -> None:
        self.started.append(key)
        script = self.puts.popleft() if self.puts else Put(self.put_seconds)
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            await asyncio.sleep(script.seconds)
            if script.hang:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.running -= 1
        if script.effect or script.effect_despite_error:
            data = b"".join(chunks)
            assert crc32c.crc32c(data) == checksum
            if self.objects.setdefault(key, data) != data:
                raise ObjectExists(key)
        if script.error is not None:
            raise script.error

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectNotFound(key)
        return self.objects[key][start : None if length is None else start + length]

    async def head(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(await self.get(key)), 0)

    async def delete(self, keys: Sequence[str]) -> None:
        await asyncio.sleep(0.01)
        if self.delete_error is not None:
            raise self.delete_error
        for key in keys:
            self.deleted.append(key)
            self.objects.pop(key, None)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(self.objects[key]), 0)

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class FakeMetadata:
    """Commits like the metadata service: offsets dense per partition, an answer per sequence kept, order enforced.

    ``script`` holds what goes wrong with the next calls: ``"before"`` (unavailable, nothing happened), ``"after"``
    (unavailable, but it happened), ``"hang"``, ``"fenced"``, ``"ok"``.
    """

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.script: deque[str] = deque()
        self.always: str | None = None
        self.calls: list[tuple[int, int, tuple[int, ...]]] = []
        self.applied: list[SegmentCommit] = []
        self.high_watermarks: dict[tuple[bytes, int], int] = {}
        self.answers: dict[tuple[int, int], SegmentCommitted] = {}
        self.refuse: Callable[[Any], Refusal | None] = lambda _batch: None
        self._producers: dict[tuple[bytes, int, int, int], dict[int, int]] = {}
        """Base sequence to offset, in the order of commits: a producer begins at 0 and goes on gapless."""
        self._next_sequences: dict[tuple[bytes, int, int, int], int] = {}
        self._last_sequence: dict[int, int] = {}

    async def commit_segments(
        self, agent_epoch: int, settled_sequence: int, commits: Sequence[SegmentCommit]
    ) -> list[SegmentCommitted]:
        self.calls.append((agent_epoch, settled_sequence, tuple(commit.sequence for commit in commits)))
        await asyncio.sleep(self.seconds)
        step = self.script.popleft() if self.script else self.always or "ok"
        match step:
            case "hang":
                await asyncio.Event().wait()
            case "before":
                raise MetadataUnavailable("lost on the way there")
            case "fenced":
                raise Fenced("a newer epoch exists")
        answers = [self._apply(agent_epoch, commit) for commit in commits]
        if step == "after":
            raise MetadataUnavailable("lost on the way back")
        return answers

    def _apply(self, agent_epoch: int, commit: SegmentCommit) -> SegmentCommitted:
        known = self.answers.get((agent_epoch, commit.sequence))
        if known is not None:
            return known
        assert commit.sequence > self._last_sequence.get(agent_epoch, -1), "committed out of order"
        assert parse_segment_key(commit.segment_key).sequence == commit.sequence
        self._last_sequence[agent_epoch] = commit.sequence
        self.applied.append(commit)
        rows = []
        for extent in commit.extents:
            row = []
            for batch in extent.batches:
                refusal = self.refuse(batch)
                if refusal is not None:
                    row.append(BatchCommitted(-1, -1, refusal=refusal))
                    continue
                partition = (extent.topic_id, extent.partition)
                producer = (*partition, batch.producer_id, batch.producer_epoch)
                seen = self._producers.setdefault(producer, {})
                if batch.producer_id >= 0:
                    if batch.base_sequence in seen:
                        row.append(BatchCommitted(seen[batch.base_sequence], 0, duplicate=True))
                        continue
                    if batch.base_sequence != self._next_sequences.get(producer, 0):
                        row.append(BatchCommitted(-1, -1, refusal=Refusal.OUT_OF_ORDER_SEQUENCE))
                        continue
                    self._next_sequences[producer] = batch.base_sequence + batch.record_count
                base_offset = self.high_watermarks.get(partition, 0)
                self.high_watermarks[partition] = base_offset + batch.record_count
                seen[batch.base_sequence] = base_offset
                row.append(BatchCommitted(base_offset, 0))
            rows.append(tuple(row))
        answer = SegmentCommitted(commit.sequence, tuple(rows))
        self.answers[agent_epoch, commit.sequence] = answer
        return answer


class RecordingSink:
    """Keeps what it is shown; ``events`` has the order."""

    def __init__(self) -> None:
        self.segments: dict[str, list[tuple[int, Chunk]]] = {}
        self.events: list[tuple[str, str]] = []

    def segment_uploaded(self, segment_key: str, chunks: Sequence[tuple[int, Chunk]]) -> None:
        assert segment_key not in self.segments
        self.segments[segment_key] = list(chunks)
        self.events.append(("uploaded", segment_key))

    def segment_dropped(self, segment_key: str) -> None:
        del self.segments[segment_key]
        self.events.append(("dropped", segment_key))


class IngestBench:
    """A started writer between fakes. Its ``close`` demands that nothing was left behind."""

    def __init__(
        self,
        *,
        store: Any = None,
        metadata: Any = None,
        budget_bytes: int = 64 << 20,
        on_fenced: Callable[[], None] | None = None,
        clock: Any = None,
        agent_epoch: int = 1,
        **settings: Any,
    ) -> None:
        self.store = store if store is not None else FakeStore()
        self.metadata = metadata if metadata is not None else FakeMetadata()
        self.sink = RecordingSink()
        self.budget = Budget(budget_bytes)
        self.registry = CollectorRegistry()
        self.metrics = IngestMetrics(self.registry)
        self.task_failures: list[tuple[str, BaseException]] = []
        self.supervisor = Supervisor(lambda name, error: self.task_failures.append((name, error)))
        self.writer = SegmentWriter(
            self.store,
            self.metadata,
            IngestSettings(**settings),
            self.budget,
            clock if clock is not None else VirtualClock(),
            SeededEntropy(7),
            self.supervisor,
            self.metrics,
            self.sink,
            on_fenced,
        )
        self.writer.start(agent_epoch)

    def produce(self, *batches: bytes, partition: int = 0, topic_id: bytes = TOPIC) -> asyncio.Future[list[Any]]:
        """Append ``batches`` as one request; resolves to the ticket's outcomes."""
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        ticket = ProduceTicket(len(batches), lambda ticket: future.set_result(ticket.outcomes))
        self.writer.append(ticket, [pending(batch, partition, topic_id) for batch in batches])
        return future

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value

    async def close(self) -> None:
        await self.writer.stop()
        await asyncio.sleep(0.1)
        assert self.task_failures == []
        assert len(self.supervisor) == 0
        assert self.budget.by_purpose["segment"] == 0
        assert self.metric("tidelog_ingest_segments_pending") == 0
        assert self.metric("tidelog_ingest_pending_bytes") == 0
        if isinstance(self.store, FakeStore):
            for data in self.store.objects.values():
                check_segment(data)


def pending(batch: bytes, partition: int = 0, topic_id: bytes = TOPIC) -> PendingBatch:
    """``batch`` as the produce handler hands it over."""
    return PendingBatch(topic_id, partition, batch, BatchHeader.parse(batch).draft())


def offsets(outcomes: Sequence[Any]) -> list[int]:
    """The base offsets of batches that must all have been acknowledged."""
    assert all(isinstance(outcome, BatchCommitted) and outcome.refusal is None for outcome in outcomes), outcomes
    return [outcome.base_offset for outcome in outcomes]


def all_failed(outcomes: Sequence[Any]) -> bool:
    return all(isinstance(outcome, IngestFailed) for outcome in outcomes)
