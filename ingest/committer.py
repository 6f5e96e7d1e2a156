"""Commits uploaded segments in seal order and settles their tickets.

The queue holds every sealed segment until its end is known. Its head decides what happens:

=====================  =================================================================================
head of the queue      then
=====================  =================================================================================
uploading              wait (its upload, and everything behind it, has a deadline)
settled, never sent    drop it: its upload failed or its deadline passed before anything was asked. The
                       gap in the sequences is allowed, and its object can be deleted
uploaded               send it, together with the uploaded ones right behind it, in one call
sent, outcome unknown  send *the same* again until the answer is known: nothing behind it goes first
=====================  =================================================================================

At its deadline a segment's tickets fail (retriable, outcome unknown) wherever it is. One that was *sent* stays at the
head even so, because a commit may have happened, or may happen yet when a delayed call arrives. If a later segment
overtook it, a producer's retry could be ordered, or checked for duplicates, before its first attempt. Held in order, a
late commit is what any retry sees in Kafka: an idempotent producer's retried batch is a duplicate of it and is
acknowledged with its offsets, a plain producer's is stored twice. What queues up behind it meanwhile is not sent,
fails at its own deadline, and leaves nothing behind; so at most one group is ever unresolved.

When a segment fails, the ones behind it go on. What an idempotent producer pipelined behind its failed batch is then
refused by the metadata service, until that has come back (RFC 5). A plain producer's pipelined batches may change their
order, as in Kafka.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence

import structlog

from ingest.metrics import IngestMetrics
from ingest.sealed import SealedSegment
from ingest.sink import SegmentSink
from ingest.ticket import IngestFailed
from metadata.client import MetadataClient
from metadata.model import Fenced, MetadataError, MetadataUnavailable, SegmentCommit, SegmentCommitted
from runtime.budget import Budget
from runtime.clock import Clock, Entropy

GROUP_SEGMENTS_MAX = 64
"""Segments in one commit call."""
GROUP_BATCHES_MAX = 20_000
"""Batches in one commit call of more than one segment: its transaction and its answer stay small."""
CALL_SECONDS_MAX = 10.0
"""A commit call that takes longer is given up, its outcome unknown, and asked again."""
RETRY_SECONDS_MIN = 0.01
RETRY_SECONDS_MAX = 1.0

_log = structlog.get_logger("tidelog.ingest")


class Committer:
    """One writer's queue. ``discard`` deletes objects that will never be committed. One event loop."""

    def __init__(
        self,
        metadata: MetadataClient,
        budget: Budget,
        clock: Clock,
        entropy: Entropy,
        metrics: IngestMetrics,
        sink: SegmentSink,
        discard: Callable[[Sequence[str]], None],
    ) -> None:
        self._metadata = metadata
        self._budget = budget
        self._clock = clock
        self._entropy = entropy
        self._metrics = metrics
        self._sink = sink
        self._discard = discard
        self._queue: deque[SealedSegment] = deque()
        self._wake = asyncio.Event()
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._expiry: asyncio.TimerHandle | None = None
        self.unsettled = 0
        """Segments whose tickets still wait."""
        self.settled_records: Counter[str] = Counter()
        """Of segments whose tickets have settled, by what became of them; the words of the metric."""
        self.failure: str | None = None
        """Why the latest commit call did not work; None when it did."""

    def add(self, segment: SealedSegment) -> None:
        """Queue a segment in seal order; its upload is under way."""
        assert not self._queue or segment.sequence > self._queue[-1].sequence
        assert segment.encoded is not None
        self._queue.append(segment)
        self.unsettled += 1
        self._all_settled.clear()
        self._metrics.segments_pending.inc()
        self._metrics.bytes_pending.inc(segment.encoded.byte_length)
        if self._expiry is None:
            self._arm_expiry(segment.deadline)

    def uploaded(self, segment: SealedSegment, segment_key: str) -> None:
        """The segment is durable under ``segment_key``."""
        if segment.settled:
            self._discard([segment_key])
            return
        segment.segment_key = segment_key
        segment.uploaded_at = self._clock.monotonic()
        self._metrics.upload_seconds.observe(segment.uploaded_at - segment.sealed_at)
        self._wake_at(segment)

    def upload_failed(self, segment: SealedSegment, reason: str) -> None:
        """The segment will not become durable: its producers are told, the ones behind it go on."""
        if not segment.settled:
            self._fail(segment, IngestFailed(f"segment could not be stored: {reason}"), "failed")
            self._wake_at(segment)

    def fail_all(self, error: IngestFailed, outcome: str) -> None:
        """Settle everything with ``error`` and forget it (fenced, or stopping). Objects are left to the orphan
        sweep, which alone can know which of them were committed."""
        for segment in self._queue:
            if not segment.settled:
                self._fail(segment, error, outcome)
        self._queue.clear()

    def unsettled_records(self) -> int:
        """Records of the segments whose tickets still wait."""
        return sum(segment.record_count for segment in self._queue if not segment.settled)

    async def wait_settled(self) -> None:
        """Return when no ticket of a sealed segment waits any more."""
        await self._all_settled.wait()

    async def run(self, agent_epoch: int) -> None:
        """Commit under ``agent_epoch`` until cancelled (a call under way then has an unknown outcome).

        :raises metadata.model.Fenced: the epoch was replaced; the queue is as it was.
        """
        while True:
            group = self._next_group()
            if group:
                await self._commit(agent_epoch, group)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _wake_at(self, segment: SealedSegment) -> None:
        if self._queue and self._queue[0] is segment:
            self._wake.set()

    def _next_group(self) -> list[SealedSegment]:
        """The uploaded segments at the head, after dropping what ended there unsent."""
        while self._queue and self._queue[0].settled:
            self._queue.popleft()
        group: list[SealedSegment] = []
        batch_count = 0
        for segment in self._queue:
            if segment.settled:
                continue
            batch_count += segment.batch_count
            if segment.segment_key is None or len(group) == GROUP_SEGMENTS_MAX:
                break
            if group and batch_count > GROUP_BATCHES_MAX:
                break
            group.append(segment)
        return group

    async def _commit(self, agent_epoch: int, group: list[SealedSegment]) -> None:
        commits = [segment.commit() for segment in group]
        for segment, commit in zip(group, commits, strict=True):
            assert segment.encoded is not None
            segment.sent = True
            self._sink.segment_uploaded(commit.segment_key, segment.encoded.data)
        try:
            answers = await self._ask(agent_epoch, commits)
        except Fenced:
            raise
        except MetadataError as error:
            _log.error("commit_refused", sequence=commits[0].sequence, count=len(commits), error=str(error))
            for segment in group:
                if not segment.settled:
                    self._fail(segment, IngestFailed(f"commit refused: {error}"), "failed")
        else:
            if len(answers) != len(group):
                raise RuntimeError(f"{len(answers)} answers to {len(group)} commits")
            for segment, commit, answer in zip(group, commits, answers, strict=True):
                self._answered(segment, commit, answer)
        while self._queue and self._queue[0].sequence <= commits[-1].sequence:
            self._queue.popleft()

    async def _ask(self, agent_epoch: int, commits: list[SegmentCommit]) -> list[SegmentCommitted]:
        """The answers to ``commits``, however often it takes: an unknown outcome is asked for, never assumed."""
        settled_sequence = commits[0].sequence - 1
        backoff = RETRY_SECONDS_MIN
        while True:
            try:
                async with asyncio.timeout(CALL_SECONDS_MAX):
                    answers = await self._metadata.commit_segments(agent_epoch, settled_sequence, commits)
            except (MetadataUnavailable, TimeoutError) as error:
                if self.failure is None:
                    _log.warning("commit_unknown", sequence=commits[0].sequence, count=len(commits), error=str(error))
                self.failure = str(error) or "no answer in time"
                self._metrics.commit_retries.inc()
            else:
                if self.failure is not None:
                    _log.info("commit_known", sequence=commits[0].sequence, count=len(commits))
                self.failure = None
                return answers
            await self._clock.sleep(self._entropy.uniform(backoff / 2, backoff))
            backoff = min(backoff * 2, RETRY_SECONDS_MAX)

    def _answered(self, segment: SealedSegment, commit: SegmentCommit, answer: SegmentCommitted) -> None:
        if segment.settled:
            _log.info("commit_resolved_late", sequence=segment.sequence)
            return
        segment.check_answer(answer)
        self._metrics.commit_seconds.observe(self._clock.monotonic() - segment.uploaded_at)
        self._count_settled(segment, "committed")
        refused, duplicate = segment.settle(answer)
        stored = segment.batch_count - refused - duplicate
        if stored == segment.batch_count:
            self._metrics.batches.inc(stored)
            self._metrics.records.inc(segment.record_count)
            self._metrics.bytes.inc(segment.data_byte_length)
            return
        self._metrics.batches_refused.inc(refused)
        self._metrics.batches_duplicate.inc(duplicate)
        for extent, outcomes in zip(commit.extents, answer.extents, strict=True):
            for batch, outcome in zip(extent.batches, outcomes, strict=True):
                if outcome.refusal is None and not outcome.duplicate:
                    self._metrics.batches.inc()
                    self._metrics.records.inc(batch.record_count)
                    self._metrics.bytes.inc(batch.byte_length)
        if stored == 0:
            # No extent references any of it: the answer said so for every batch.
            self._sink.segment_dropped(commit.segment_key)
            self._discard([commit.segment_key])

    def _fail(self, segment: SealedSegment, error: IngestFailed, outcome: str) -> None:
        self._count_settled(segment, outcome)
        segment.fail(error)
        if segment.upload is not None:
            segment.upload.cancel()
        if segment.sent:
            assert segment.segment_key is not None
            self._sink.segment_dropped(segment.segment_key)

    def _count_settled(self, segment: SealedSegment, outcome: str) -> None:
        """``segment`` is about to settle: its memory goes back before its producers hear of it."""
        assert segment.encoded is not None
        self.settled_records[outcome] += segment.record_count
        self._metrics.segments[outcome].inc()
        self._metrics.segments_pending.dec()
        self._metrics.bytes_pending.dec(segment.encoded.byte_length)
        self.unsettled -= 1
        if self.unsettled == 0:
            self._all_settled.set()
            self._disarm_expiry()
        # Last, because it may let connections read, and so append and seal, at once.
        self._budget.give("segment", segment.held_bytes)

    def _arm_expiry(self, deadline: float) -> None:
        delay = max(0.0, deadline - self._clock.monotonic())
        self._expiry = asyncio.get_running_loop().call_later(delay, self._expire)

    def _disarm_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        """Fail the tickets of every segment whose deadline has passed, and wait for the next deadline."""
        self._expiry = None
        now = self._clock.monotonic()
        # A copy: a producer that hears of the failure may send, and so seal and queue, at once.
        for segment in list(self._queue):
            if not segment.settled and segment.deadline <= now:
                self._expire_segment(segment)
        if self.unsettled:
            self._disarm_expiry()
            self._arm_expiry(min(segment.deadline for segment in self._queue if not segment.settled))

    def _expire_segment(self, segment: SealedSegment) -> None:
        _log.error("segment_expired", sequence=segment.sequence, sent=segment.sent, key=segment.segment_key)
        error = IngestFailed("segment was not stored and committed in time")
        self._fail(segment, error, "unresolved" if segment.sent else "failed")
        if segment.segment_key is not None and not segment.sent:
            self._discard([segment.segment_key])
        self._wake_at(segment)
