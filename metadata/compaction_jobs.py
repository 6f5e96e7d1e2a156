"""The source of compaction jobs: looks at the live segments of each level, and plans."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from metadata.compaction import LEVELS, SEGMENTS_PER_JOB_MAX, CompactionJob, PlanLimits, SegmentSummary, plan
from metadata.job_model import COMPACT_SEGMENTS
from metadata.jobs import Job
from metadata.store.port import MetadataStore
from runtime.clock import Clock
from runtime.settings import CompactionSettings

JOBS_OPEN_MAX = 16
"""Planned at a time, leased ones among them. More agents than these compact no faster."""
SEGMENTS_LOOKED_AT = 4 * SEGMENTS_PER_JOB_MAX
"""Of each level, the oldest."""
LOOK_SECONDS = 2.0
"""Between two looks, when there was room for more jobs than were found."""

_encode = msgspec.msgpack.Encoder().encode


class CompactionJobs:
    """A :class:`metadata.job_service.JobSource`."""

    kind = COMPACT_SEGMENTS

    def __init__(self, store: MetadataStore, clock: Clock, settings: CompactionSettings) -> None:
        self._store = store
        self._clock = clock
        self._enabled = settings.enabled
        self._limits = PlanLimits(settings.job_bytes, settings.fan_in, settings.min_age_ms, settings.wait_ms)
        self._planned: dict[str, frozenset[tuple[int, int]]] = {}
        """The segments of each job that is not finished, by its target."""
        self._look_at = 0.0

    async def find(self, open_jobs: Sequence[Job]) -> Sequence[Job]:
        still = {job.target for job in open_jobs}
        self._planned = {target: names for target, names in self._planned.items() if target in still}
        room = JOBS_OPEN_MAX - len(open_jobs)
        if not self._enabled or room <= 0 or self._clock.monotonic() < self._look_at:
            return []
        segments: dict[int, Sequence[SegmentSummary]] = {}
        for level in range(LEVELS):
            segments[level] = await self._store.find_compactable(level, SEGMENTS_LOOKED_AT)
        busy = frozenset().union(*self._planned.values())
        jobs = plan(segments, busy, self._clock.now_ms(), self._limits, room)
        if len(jobs) < room:
            self._look_at = self._clock.monotonic() + LOOK_SECONDS
        return [self._offer(job) for job in jobs]

    async def finished(self, job: Job, result: bytes) -> None:
        """Nothing follows from it: what was swapped is durable."""

    def _offer(self, job: CompactionJob) -> Job:
        target = f"{job.level}/{job.segments[0].segment_key}"
        self._planned[target] = frozenset(segment.name for segment in job.segments)
        return Job(self.kind, target, _encode(job))
