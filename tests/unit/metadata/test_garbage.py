"""Which dead objects are given out for deletion; tests/contract/test_metadata_jobs.py has the rest."""

from __future__ import annotations

from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from metadata.garbage import DELETIONS_OPEN_MAX, OBJECTS_PER_JOB, DeadSegments
from metadata.job_model import COMPACTED_SEQUENCE_MIN, ObjectsToDelete
from metadata.jobs import Job
from metadata.lifecycle import SteadyTime
from metadata.metrics import MetadataMetrics
from metadata.store.port import DeadSegment
from runtime.settings import LifecycleSettings
from tests.support.metadata import SettableClock


class Dead:
    """The store's end."""

    def __init__(self, *segments: tuple[int, int]) -> None:
        self.segments = [DeadSegment(*each, f"segments/{each[0]}-{each[1]}", 9, 5) for each in segments]

    async def find_dead_segments(self, until_ms: int, count_max: int) -> list[DeadSegment]:
        return [each for each in self.segments if each.dead_ms <= until_ms][:count_max]


def source(dead: Dead, compacting: set[int]) -> DeadSegments:
    clock = SettableClock()
    store: Any = dead
    unused: Any = None
    settings = LifecycleSettings(deletion_grace_ms=0)
    metrics = MetadataMetrics(CollectorRegistry())
    return DeadSegments(store, unused, SteadyTime(clock), settings, metrics, lambda: compacting)


def keys(jobs: Any) -> list[list[str]]:
    return [[key for _, _, key in msgspec.msgpack.decode(job.payload, type=ObjectsToDelete).segments] for job in jobs]


async def test_a_segment_that_may_still_be_being_written_is_left_alone() -> None:
    """Extents of it that were swapped in first may be gone before the last ones are."""
    compacted = COMPACTED_SEQUENCE_MIN
    compacting: set[int] = {4}
    found = source(Dead((4, 7), (4, compacted), (5, compacted)), compacting)
    assert keys(await found.find([])) == [["segments/4-7", f"segments/5-{compacted}"]]
    compacting.clear()
    assert len(keys(await found.find([]))[0]) == 3


async def test_what_is_being_deleted_is_not_given_out_again_and_jobs_are_bounded() -> None:
    found = source(Dead(*[(1, number) for number in range(OBJECTS_PER_JOB * 20)]), set())
    jobs: list[Job] = list(await found.find([]))
    assert [len(each) for each in keys(jobs)] == [OBJECTS_PER_JOB] * DELETIONS_OPEN_MAX
    assert list(await found.find(jobs)) == []
    (next_one,) = await found.find(jobs[1:])
    assert keys([next_one]) == keys(jobs[:1])
