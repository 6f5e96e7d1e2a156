"""Which idempotent producers were told of a failure, and from which sequence on they have to come back.

A producer that a partition does not know may begin at any sequence (its state may have expired). So if its sequence 0
fails and its pipelined sequence 1 commits, sequence 0 can never be stored any more, and librdkafka takes the
acknowledgement of 1 for one of 0 too: a silent loss. Hence the rule: **once a batch has failed, no later batch of the
same (topic, partition, producer id, epoch) is committed before one that begins at or before the failed sequence is.**

It is kept where commits are made, because segments commit in the order in which their batches were appended: whoever
is about to send a segment asks, batch by batch, whether it would overtake a failure in an *earlier* segment. What has
come back in the right place ends the rule for its producer: from then on the partition knows it, and the metadata
service sees gaps by itself. Batches that would overtake are left out and fail, retriably; nobody else's do.

What is remembered is bounded by time (what clients had pipelined when they heard of the failure arrives within
seconds) and by number. When it is full, it is not known whose batches overtake: until what clients may have had under
way has ended, only batches at sequence 0 and of remembered producers that come back pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from ingest.ticket import PendingBatch
from metadata.model import BatchDraft, ExtentDraft, TopicId
from runtime.clock import Clock

FAILED_MAX = 50_000
"""Producers on partitions remembered: about 20 MB."""
HOLD_SECONDS = 300.0
"""How long a failure is remembered, on top of a segment's deadline: librdkafka's ``message.timeout.ms``."""
UNDER_WAY_SECONDS = 30.0
"""What a client sent before it heard of a failure is here by then: ``request.timeout.ms`` of Java and librdkafka."""

BEFORE_ALL = -1
"""The place of a batch that failed before any segment of this epoch."""

_SEQUENCE_MASK = 0x7FFF_FFFF
_HALF = 0x4000_0000

_Key = tuple[TopicId, int, int, int]


class FailedSequences:
    """One writer's. ``deadline_seconds``: no batch waits longer for its commit. True while there is anything to ask."""

    def __init__(self, clock: Clock, deadline_seconds: float) -> None:
        self._clock = clock
        self._hold_seconds = HOLD_SECONDS + deadline_seconds
        self._full_seconds = UNDER_WAY_SECONDS + deadline_seconds
        self._failed: dict[_Key, tuple[int, int, float]] = {}
        """(segment, first sequence, until when), soonest forgotten first."""
        self._full_until = 0.0

    def __bool__(self) -> bool:
        return bool(self._failed) or self._full_until > 0

    def add(
        self, segment: int, topic_id: TopicId, partition: int, batches: Sequence[BatchDraft] | Sequence[PendingBatch]
    ) -> None:
        """``batches`` of ``segment`` (its sequence number) have failed or will; whatever became of them in truth."""
        now = self._clock.monotonic()
        self._forget(now)
        for batch in batches:
            if batch.producer_id < 0:
                continue
            key = (topic_id, partition, batch.producer_id, batch.producer_epoch)
            earliest, first = segment, batch.base_sequence
            known = self._failed.pop(key, None)
            if known is not None:
                earliest = min(earliest, known[0])
                first = first if _at_or_before(first, known[1]) else known[1]
            elif len(self._failed) >= FAILED_MAX:
                self._full_until = now + self._full_seconds
                continue
            self._failed[key] = (earliest, first, now + self._hold_seconds)

    def overtaking(self, segment: int, extents: Sequence[ExtentDraft]) -> set[tuple[int, int]]:
        """The (extent, batch) indexes that must be left out of ``segment``. The others are taken to be committed now:
        ask once for a segment, in the order of commits, just before it is sent."""
        self._forget(self._clock.monotonic())
        found: set[tuple[int, int]] = set()
        for row, extent in enumerate(extents):
            for column, batch in enumerate(extent.batches):
                if batch.producer_id < 0:
                    continue
                key = (extent.topic_id, extent.partition, batch.producer_id, batch.producer_epoch)
                failed = self._failed.get(key)
                if failed is None:
                    if self._full_until and batch.base_sequence != 0:
                        found.add((row, column))
                elif segment > failed[0]:
                    if _at_or_before(batch.base_sequence, failed[1]):
                        del self._failed[key]
                    else:
                        found.add((row, column))
        return found

    def restart(self) -> None:
        """Segments are counted from 0 again (a new epoch): every failure so far is before all of them."""
        self._failed = {key: (BEFORE_ALL, first, until) for key, (_, first, until) in self._failed.items()}

    def _forget(self, now: float) -> None:
        if self._full_until <= now:
            self._full_until = 0.0
        while self._failed:
            key = next(iter(self._failed))
            if self._failed[key][2] > now:
                break
            del self._failed[key]


def _at_or_before(sequence: int, other: int) -> bool:
    """In the order of sequences, where 2147483647 is followed by 0."""
    return (other - sequence) & _SEQUENCE_MASK < _HALF
