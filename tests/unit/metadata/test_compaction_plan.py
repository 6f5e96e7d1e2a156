"""Which segments are compacted together."""

from __future__ import annotations

import itertools
import random

import pytest

from metadata import compaction
from metadata.compaction import (
    FINISHED_LEVEL,
    LEVELS,
    WHOLE_LEVEL,
    CompactionJob,
    PlanLimits,
    SegmentSummary,
    initial_level,
    next_level,
    plan,
)

MIB = 1 << 20
LIMITS = PlanLimits(job_bytes=64 * MIB, fan_in=4, min_age_ms=60_000, wait_ms=600_000)
NOW = 2_000_000


def summary(
    number: int, level: int = 0, *, commit_ms: int | None = None, live_bytes: int = 8 * MIB, extents: int = 300
) -> SegmentSummary:
    at = commit_ms if commit_ms is not None else 1_000 + number
    return SegmentSummary(1, number, f"segments/{number}", live_bytes, level, at, extents, live_bytes)


def numbers(jobs: list[CompactionJob]) -> list[list[int]]:
    return [[segment.sequence for segment in job.segments] for job in jobs]


def test_a_job_of_level_0_takes_the_oldest_up_to_its_size() -> None:
    segments = {0: [summary(n) for n in range(20)]}
    jobs = plan(segments, (), 1_000 + 60_000 + 100, LIMITS, 9)
    assert numbers(jobs) == [list(range(8)), list(range(8, 16))]
    assert numbers(plan(segments, (), 1_000 + 60_000 + 100, LIMITS, 1)) == [list(range(8))]


def test_what_is_young_rests() -> None:
    segments = {0: [summary(n) for n in range(8)]}
    assert plan(segments, (), 1_000 + 6 + 60_000, LIMITS, 9) == []
    assert len(plan(segments, (), 1_000 + 7 + 60_000, LIMITS, 9)) == 1


def test_a_few_small_ones_wait_for_company_but_not_for_ever() -> None:
    segments = {0: [summary(n, live_bytes=1_000) for n in range(3)]}
    assert plan(segments, (), 1_000 + 599_999, LIMITS, 9) == []
    assert numbers(plan(segments, (), 1_000 + 600_000, LIMITS, 9)) == [[0, 1, 2]]
    assert plan({0: [summary(0)]}, (), NOW, LIMITS, 9) == [], "one alone gains nothing"


def test_runs_that_wait_for_more_do_so_for_longer_on_each_level() -> None:
    runs = [summary(n, 1, commit_ms=1_000 + n) for n in range(3)]
    assert plan({1: runs}, (), 1_000 + 4 * 600_000 - 1, LIMITS, 9) == []
    assert numbers(plan({1: runs}, (), 1_000 + 4 * 600_000, LIMITS, 9)) == [[0, 1, 2]]
    assert plan({1: runs[:1]}, (), 10**12, LIMITS, 9) == [], "one alone gains nothing"


def test_one_that_waited_alone_is_taken_along_by_the_level_above() -> None:
    old, lone = summary(1, 2, commit_ms=10), [summary(n, 1, commit_ms=20) for n in (2, 3)]
    waited = 20 + 4 * 600_000
    assert plan({1: lone, 2: [old]}, (), waited + 10 * 600_000, LIMITS, 9) == []
    (job,) = plan({1: lone, 2: [old]}, (), 20 + 16 * 600_000, LIMITS, 9)
    assert (job.level, [segment.sequence for segment in job.segments]) == (2, [1, 2, 3])
    more = [summary(n, 2, commit_ms=n) for n in (10, 11, 12)]
    (job,) = plan({1: lone, 2: more}, (), waited, LIMITS, 9)
    assert [segment.sequence for segment in job.segments] == [10, 11, 12, 2, 3], "it makes them enough"
    assert plan({1: lone, 2: more}, (), waited - 1, LIMITS, 9) == []
    assert plan({1: lone, 2: [old]}, {(1, 3)}, 10**12, LIMITS, 9) == [], "not what is being compacted"


def test_what_lies_on_both_sides_of_a_busy_segment_is_not_joined() -> None:
    segments = {0: [summary(n) for n in range(17)]}
    assert numbers(plan(segments, {(1, 5)}, 200_000, LIMITS, 9)) == [list(range(6, 14))]


def test_runs_of_a_level_are_taken_whole_and_oldest_first() -> None:
    segments = {1: [summary(10 * run + n, 1, commit_ms=run + 1) for run in range(9) for n in range(3)]}
    jobs = plan(segments, (), NOW, LIMITS, 9)
    assert numbers(jobs) == [
        [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32],
        [40, 41, 42, 50, 51, 52, 60, 61, 62, 70, 71, 72],
    ]
    assert {job.level for job in jobs} == {1}


def test_a_level_is_not_compacted_across_what_is_still_to_come_from_below() -> None:
    runs = [summary(n, 1, commit_ms=100 * n) for n in range(4)]
    late = summary(9, 0, commit_ms=250)
    assert numbers(plan({0: [late], 1: runs}, {late.name}, NOW, LIMITS, 9)) == []
    assert numbers(plan({0: [], 1: runs}, (), NOW, LIMITS, 9)) == [[0, 1, 2, 3]]


def test_higher_levels_come_first() -> None:
    segments = {0: [summary(n, commit_ms=9_000 + n) for n in range(8)], 2: [summary(50 + n, 2) for n in range(4)]}
    assert [job.level for job in plan(segments, (), NOW, LIMITS, 9)] == [2, 0]


def test_jobs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "EXTENTS_PER_JOB_MAX", 1_000)
    segments = {0: [summary(n, live_bytes=1) for n in range(10)]}
    assert numbers(plan(segments, (), NOW, LIMITS, 9)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    monkeypatch.setattr(compaction, "SEGMENTS_PER_JOB_MAX", 2)
    assert numbers(plan(segments, (), NOW, LIMITS, 9)) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_segments_of_large_extents_are_finished_wherever_they_come_from() -> None:
    assert initial_level(8 * MIB, 1) == WHOLE_LEVEL < 0, "what is above 0 is read as placed"
    assert initial_level(8 * MIB, 3) == 0
    assert initial_level(0, 0) == 0
    assert next_level(0, 64 * MIB, 11) == 1
    assert next_level(0, 64 * MIB, 10) == FINISHED_LEVEL
    assert next_level(LEVELS - 1, 1, 1) == FINISHED_LEVEL


@pytest.mark.parametrize("seed", range(30))
def test_a_log_ends_in_few_runs_and_each_job_takes_neighbours(seed: int) -> None:
    """Commit order is kept through all levels: no job jumps over a segment that lies between those it takes."""
    rng = random.Random(seed)
    limits = PlanLimits(job_bytes=64 * MIB, fan_in=4, min_age_ms=0, wait_ms=600_000)
    # Of each segment: the commits it holds, by the run it is in.
    live: dict[tuple[int, int], tuple[SegmentSummary, range]] = {}
    for n in range(400):
        made = summary(n, commit_ms=1_000 + n, live_bytes=rng.choice((MIB, 8 * MIB)))
        live[made.name] = (made, range(n, n + 1))
    sequence = 1_000
    running: list[CompactionJob] = []
    for _ in range(10_000):
        levels: dict[int, list[SegmentSummary]] = {}
        for each, _ in sorted(live.values(), key=lambda pair: pair[0].commit_ms):
            levels.setdefault(each.level, []).append(each)
        busy = {segment.name for job in running for segment in job.segments}
        new = plan(levels, busy, 1_000 + 400, limits, rng.randint(0, 3))
        for job in new:
            assert not busy & {segment.name for segment in job.segments}
            busy |= {segment.name for segment in job.segments}
        running += new
        if not running:
            if not plan(levels, (), 1_000 + 400, limits, 1):
                break
            continue
        job = running.pop(rng.randrange(len(running)))
        held = [live.pop(segment.name)[1] for segment in job.segments]
        for before, after in itertools.pairwise(held):
            assert before.stop == after.start, "neighbours"
        size = sum(segment.live_bytes for segment in job.segments)
        made = summary(sequence, job.level + 1, commit_ms=job.segments[0].commit_ms, live_bytes=size)
        live[made.name] = (made, range(held[0].start, held[-1].stop))
        sequence += 1
    else:
        raise AssertionError("it does not end")
    left = [segment for segment, _ in live.values()]
    assert sum(segment.live_bytes for segment in left if segment.level == 0) < limits.job_bytes
    for level in range(1, LEVELS):
        assert sum(segment.level == level for segment in left) < limits.fan_in
