"""Which segments are compacted together: levels and runs, as in a log-structured merge tree. Pure.

Ingested segments are level 0, in the order of their commits. A job takes neighbours of one level and makes segments of
the next; those of one job are a *run*, and carry the time of the oldest commit in it, which keeps the order. Neighbours
in commit order are neighbours in the offsets of every partition, so extents of a partition in a job touch and are
joined. Source: docs/rfcs/0007-compaction.md; tiered compaction as in RocksDB's universal style.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec

from metadata.model import Extent, TopicId

EXTENT_BYTES_MAX = 8 << 20
"""An extent that compaction makes is no larger, unless it was when it was ingested."""
FINISHED_EXTENT_BYTES = EXTENT_BYTES_MAX * 3 // 4
"""Segments whose extents are as large on average gain nothing from compaction."""
WHOLE_LEVEL = -1
"""Ingested segments as large as compaction would make them. Their batches carry no offsets, as those of level 0: only
what is above 0 is placed."""
FINISHED_LEVEL = 9
CLEANED_LEVEL = 10
"""Of extents whose records were compacted by key, up to their end."""
LEVELS = 5
"""Levels that are compacted: 0 to 4."""
SEGMENTS_PER_JOB_MAX = 1_024
EXTENTS_PER_JOB_MAX = 100_000
SWAPPED_EXTENTS_MAX = 4_096
"""Extents replaced in one swap (more only where one range has more): what a commit may have to wait for."""


class SegmentSummary(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A segment that extents still reference: ``live_extents`` of them, ``live_bytes`` of its ``byte_length``."""

    agent_epoch: int
    sequence: int
    segment_key: str
    byte_length: int
    level: int
    commit_ms: int
    live_extents: int
    live_bytes: int

    @property
    def name(self) -> tuple[int, int]:
        """(agent epoch, sequence): what the metadata knows it by."""
        return self.agent_epoch, self.sequence


class CompactionJob(msgspec.Struct, frozen=True):
    """Rewrite what is referenced of ``segments``, neighbours of ``level``, into segments of the level above."""

    level: int
    segments: tuple[SegmentSummary, ...]


class CleanJob(msgspec.Struct, frozen=True):
    """Compact a partition by key, as the configs of its topic say. Milliseconds."""

    topic_id: TopicId
    partition: int
    dirty_ratio_min: float
    """Share of bytes that were not cleaned yet, below which it is left alone."""
    lag_ms_min: int
    """Younger records are left alone."""
    lag_ms_max: int
    """Older records are not left alone, whatever their share."""
    delete_retention_ms: int
    """How long tombstones stay once they were cleaned."""
    age_ms_min: int
    """Extents committed later than so long ago are left alone: what Kafka's active segment is."""


class ExtentSwap(msgspec.Struct, frozen=True):
    """Make a compacted segment's extents take the place of those that tile exactly the same offsets and lie in
    ``inputs``. Keyed by (agent epoch, ``sequence``) and by the ranges: repeating it changes nothing more.

    A segment's extents may be swapped in by several calls; each adds to the segment.
    """

    sequence: int
    segment_key: str
    byte_length: int
    level: int
    commit_ms: int
    """Of the oldest input."""
    inputs: frozenset[str]
    """Segment keys."""
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """``job_bytes`` of level 0 make a job, ``fan_in`` runs of those above; what is younger than ``min_age_ms`` rests;
    what is older than ``wait_ms``, on each level above ``fan_in`` times that, waits no longer for company: a log that
    rests ends in few runs."""

    job_bytes: int
    fan_in: int
    min_age_ms: int
    wait_ms: int

    def waited_ms(self, level: int) -> int:
        """How long a run waits on ``level`` for company."""
        return self.wait_ms * int(self.fan_in**level)


def initial_level(live_bytes: int, live_extents: int) -> int:
    """Of a segment as it is committed."""
    return WHOLE_LEVEL if live_extents and live_bytes >= live_extents * FINISHED_EXTENT_BYTES else 0


def next_level(level: int, byte_length: int, extent_count: int) -> int:
    """Of a segment with ``extent_count`` extents that a job on ``level`` makes."""
    if level + 1 >= LEVELS or byte_length >= extent_count * FINISHED_EXTENT_BYTES:
        return FINISHED_LEVEL
    return level + 1


def plan(
    segments: Mapping[int, Sequence[SegmentSummary]],
    busy: Container[tuple[int, int]],
    now_ms: int,
    limits: PlanLimits,
    count: int,
) -> list[CompactionJob]:
    """Up to ``count`` jobs that can be done at the same time, the highest levels first: those come seldom.

    ``segments``: the oldest live ones of each level, oldest first, whole runs but perhaps the last. ``busy``: being
    compacted now. No two jobs have a segment in common.
    """
    jobs: list[CompactionJob] = []
    segments = _promoted(segments, now_ms, limits)
    for level in range(LEVELS - 1, -1, -1):
        # What is still to come from below belongs between the runs that are here: nothing younger is touched.
        below = [found[0].commit_ms for lower in range(level) if (found := segments.get(lower, ()))]
        until_ms = min(below, default=now_ms + 1) if level else now_ms - limits.min_age_ms + 1
        for job in _jobs(level, segments.get(level, ()), busy, until_ms, now_ms, limits):
            if len(jobs) == count:
                return jobs
            jobs.append(job)
    return jobs


def _promoted(
    segments: Mapping[int, Sequence[SegmentSummary]], now_ms: int, limits: PlanLimits
) -> dict[int, list[SegmentSummary]]:
    """A run that is alone on its level, and has waited there for long, counts to the next: it need not be rewritten
    to get there, and a log that rests ends in one run."""
    levels = {level: list(segments.get(level, ())) for level in range(LEVELS)}
    for level in range(LEVELS - 1):
        alone = len({segment.commit_ms for segment in levels[level]}) == 1
        if alone and levels[level][0].commit_ms <= now_ms - limits.waited_ms(level):
            levels[level + 1] = sorted(levels[level] + levels[level + 1], key=lambda segment: segment.commit_ms)
            levels[level] = []
    return levels


def _jobs(
    level: int,
    segments: Sequence[SegmentSummary],
    busy: Container[tuple[int, int]],
    until_ms: int,
    now_ms: int,
    limits: PlanLimits,
) -> Iterator[CompactionJob]:
    window = _Window()
    for commit_ms, members in groupby(segments, key=lambda segment: segment.commit_ms):
        run = list(members)
        if commit_ms >= until_ms:
            break
        if any(segment.name in busy for segment in run):
            window = _Window()  # what lies on both sides of it does not touch
            continue
        if not window.has_room(run):
            yield CompactionJob(level, tuple(window.segments))
            window = _Window()
        window.add(run)
        if window.runs >= limits.fan_in if level else window.live_bytes >= limits.job_bytes:
            yield CompactionJob(level, tuple(window.segments))
            window = _Window()
    if window.runs > 1 and window.segments[0].commit_ms <= now_ms - limits.waited_ms(level):
        yield CompactionJob(level, tuple(window.segments))


class _Window:
    """Neighbours that may become a job."""

    def __init__(self) -> None:
        self.segments: list[SegmentSummary] = []
        self.runs = 0
        self.live_bytes = 0
        self._live_extents = 0

    def has_room(self, run: Sequence[SegmentSummary]) -> bool:
        extents = self._live_extents + sum(segment.live_extents for segment in run)
        fits = len(self.segments) + len(run) <= SEGMENTS_PER_JOB_MAX and extents <= EXTENTS_PER_JOB_MAX
        return fits or not self.segments

    def add(self, run: Sequence[SegmentSummary]) -> None:
        self.segments += run
        self.runs += 1
        self.live_bytes += sum(segment.live_bytes for segment in run)
        self._live_extents += sum(segment.live_extents for segment in run)
