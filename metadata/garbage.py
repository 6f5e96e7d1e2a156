"""Jobs that delete objects (RFC 6): dead segments after their grace, and sweeps for orphans.

What may be deleted is decided here; agents list and delete. Grace is counted by this process's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import structlog

from metadata.job_model import (
    COMPACTED_SEQUENCE_MIN,
    DELETE_OBJECTS,
    SWEEP_ORPHANS,
    SWEEP_PARTS,
    ObjectsToDelete,
    Sweep,
    Swept,
    SweptObject,
)
from metadata.jobs import Job
from metadata.lifecycle import SteadyTime
from metadata.metrics import MetadataMetrics
from metadata.pipeline import CommandPipeline, Transaction
from metadata.state import State
from metadata.store.port import MetadataStore, SegmentsDropped
from runtime.settings import LifecycleSettings

OBJECTS_PER_JOB = 500
DELETIONS_OPEN_MAX = 16
EPOCHS_REMEMBERED_MAX = 10_000
"""Fenced epochs waiting for their sweep; those beyond it are left to the sweep of everything."""
_SWEPT = "swept_ms/"
"""Counters: when each part of the bucket was swept last, by the wall clock."""

_log = structlog.get_logger("tidelog.metadata.garbage")
_encode = msgspec.msgpack.Encoder().encode
_decode_deletion = msgspec.msgpack.Decoder(ObjectsToDelete).decode
_decode_swept = msgspec.msgpack.Decoder(Swept).decode
_decode_sweep = msgspec.msgpack.Decoder(Sweep).decode


class DeadSegments:
    """Objects that nothing has referenced for the grace. A :class:`metadata.job_service.JobSource`."""

    kind = DELETE_OBJECTS

    def __init__(
        self,
        store: MetadataStore,
        pipeline: CommandPipeline,
        time: SteadyTime,
        settings: LifecycleSettings,
        metrics: MetadataMetrics,
        compacting: Callable[[], set[int]],
    ) -> None:
        """``compacting()``: agent epochs that are compacting now. A segment they are writing may be referenced piece by
        piece, and so again after all that was referenced of it so far is gone: it is left alone while they do."""
        self._store = store
        self._pipeline = pipeline
        self._time = time
        self._compacting = compacting
        self._grace_ms = settings.deletion_grace_ms
        self._metrics = metrics

    async def find(self, open_jobs: Sequence[Job]) -> Sequence[Job]:
        room = DELETIONS_OPEN_MAX - len(open_jobs)
        if room <= 0 or self._time.passed_ms() < self._grace_ms:
            return []
        taken = {key for job in open_jobs for _, _, key in _decode_deletion(job.payload).segments}
        dead = await self._store.find_dead_segments(
            self._time.now_ms() - self._grace_ms, len(taken) + room * OBJECTS_PER_JOB
        )
        compacting = self._compacting()
        wanted = [
            (each.agent_epoch, each.sequence, each.segment_key)
            for each in dead
            if each.segment_key not in taken
            and not (each.sequence >= COMPACTED_SEQUENCE_MIN and each.agent_epoch in compacting)
        ]
        return [
            Job(self.kind, segments[0][2], _encode(ObjectsToDelete(tuple(segments))))
            for start in range(0, len(wanted), OBJECTS_PER_JOB)
            if (segments := wanted[start : start + OBJECTS_PER_JOB])
        ]

    async def finished(self, job: Job, result: bytes) -> None:
        """The objects are gone: their rows go too."""
        gone = tuple((epoch, sequence) for epoch, sequence, _ in _decode_deletion(job.payload).segments)
        await self._pipeline.run(lambda transaction: transaction.change(SegmentsDropped(gone)))
        self._metrics.segments_deleted.inc(len(gone))


class Orphans:
    """Sweeps of fenced epochs, once each, and of everything now and then. A JobSource too."""

    kind = SWEEP_ORPHANS

    def __init__(
        self,
        pipeline: CommandPipeline,
        time: SteadyTime,
        settings: LifecycleSettings,
        state: Callable[[], State],
        wall_ms: Callable[[], int],
        metrics: MetadataMetrics,
    ) -> None:
        self._pipeline = pipeline
        self._time = time
        self._settings = settings
        self._state = state
        self._wall_ms = wall_ms
        self._metrics = metrics
        self._living: frozenset[int] = frozenset()
        self._fenced: dict[int, int] = {}
        """Epochs that were fenced in this term, and when (steady)."""

    def agents_changed(self, agent_epochs: frozenset[int]) -> None:
        """What is not among them any more was fenced."""
        for agent_epoch in self._living - agent_epochs:
            if len(self._fenced) < EPOCHS_REMEMBERED_MAX:
                self._fenced[agent_epoch] = self._time.now_ms()
        self._living = agent_epochs

    async def find(self, open_jobs: Sequence[Job]) -> Sequence[Job]:
        age_ms = self._settings.orphan_age_ms
        # An object that was put in the last moment before the fence must have its age when it is looked at.
        due_ms = self._time.now_ms() - age_ms - 1_000
        jobs = [
            Job(self.kind, f"epoch {agent_epoch}", _encode(Sweep(age_ms, agent_epoch=agent_epoch)))
            for agent_epoch, fenced_ms in self._fenced.items()
            if fenced_ms <= due_ms
        ]
        counters, now_ms = self._state().counters, self._wall_ms()
        for part in range(SWEEP_PARTS):
            if counters.get(f"{_SWEPT}{part}") + self._settings.sweep_interval_ms <= now_ms:
                jobs.append(Job(self.kind, f"part {part}", _encode(Sweep(age_ms, part=part))))
        return jobs

    async def finished(self, job: Job, result: bytes) -> None:
        swept, sweep = _decode_swept(result), _decode_sweep(job.payload)
        if sweep.part >= 0:
            counter, now_ms = f"{_SWEPT}{sweep.part}", self._wall_ms()
            await self._pipeline.run(
                lambda transaction: self._state().counters.raise_to(counter, now_ms, transaction.changes)
            )
        self._fenced.pop(sweep.agent_epoch, None)
        self._metrics.orphans_deleted.inc(swept.objects_deleted)
        if swept.objects_deleted:
            _log.info("orphans_swept", target=job.target, **msgspec.structs.asdict(swept))


async def find_orphans(
    store: MetadataStore,
    pipeline: CommandPipeline,
    state: Callable[[], State],
    objects: Sequence[SweptObject],
) -> list[str]:
    """Keys among ``objects`` that are of no committed segment and never can be.

    Which of them could still be committed is looked at in the pipeline, behind all that was decided before; no later
    commit changes it. The rows are looked up afterwards: whatever was committed has one by then.
    """

    def uncommittable(_: Transaction) -> list[SweptObject]:
        return [each for each in objects if state().is_uncommittable(each)]

    candidates = await pipeline.run(uncommittable)
    if not candidates:
        return []
    rows = await store.find_segments([(each.agent_epoch, each.sequence) for each in candidates])
    return [each.segment_key for each in candidates if rows.get((each.agent_epoch, each.sequence)) != each.segment_key]
