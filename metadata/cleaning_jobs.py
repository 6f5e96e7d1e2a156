"""The source of jobs that compact topics by key (``cleanup.policy=compact``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from metadata.compaction import CleanJob
from metadata.job_model import CLEAN_PARTITION
from metadata.jobs import Job
from metadata.model import Topic, TopicId
from metadata.topic_configs import effective, topic_policy
from runtime.clock import Clock
from runtime.settings import CompactionSettings

JOBS_OPEN_MAX = 32

_encode = msgspec.msgpack.Encoder().encode


class CleaningJobs:
    """A :class:`metadata.job_service.JobSource`. Looks at each partition of compacted topics once in a while; whether
    there is enough to be cleaned is seen by the agent, which looks at its extents.

    ``topics`` and ``high_watermark`` are what readers see.
    """

    kind = CLEAN_PARTITION

    def __init__(
        self,
        topics: Callable[[], Mapping[TopicId, Topic]],
        high_watermark: Callable[[TopicId, int], int | None],
        clock: Clock,
        settings: CompactionSettings,
    ) -> None:
        self._topics = topics
        self._high_watermark = high_watermark
        self._clock = clock
        self._settings = settings
        self._looked: dict[tuple[TopicId, int], tuple[float, int]] = {}
        """Of each partition: when it was looked at last, and its high watermark then."""
        self._look_at = 0.0

    async def find(self, open_jobs: Sequence[Job]) -> Sequence[Job]:
        now = self._clock.monotonic()
        room = JOBS_OPEN_MAX - len(open_jobs)
        if not self._settings.enabled or room <= 0 or now < self._look_at:
            return []
        self._look_at = now + self._settings.clean_interval_ms / 10_000
        topics = [topic for topic in self._topics().values() if topic_policy(topic.configs).compacted]
        partitions = {(topic.topic_id, number): topic for topic in topics for number in range(topic.partition_count)}
        self._looked = {key: looked for key, looked in self._looked.items() if key in partitions}
        jobs: list[Job] = []
        for (topic_id, number), topic in partitions.items():
            if len(jobs) == room:
                break
            looked, end = self._looked.get((topic_id, number), (-1.0, 0))
            high_watermark = self._high_watermark(topic_id, number) or 0
            # Nothing new: what was too young, or may lose its tombstones, is looked at again now and then.
            pause_ms = self._settings.clean_interval_ms * (1 if high_watermark != end else 10)
            if high_watermark and (looked < 0 or now >= looked + pause_ms / 1000):
                self._looked[topic_id, number] = now, high_watermark
                jobs.append(Job(self.kind, f"{topic_id.hex()}/{number}", _encode(self._job(topic, number))))
        return jobs

    async def finished(self, job: Job, result: bytes) -> None:
        """Nothing follows from it: what was swapped is durable."""

    def _job(self, topic: Topic, partition: int) -> CleanJob:
        return CleanJob(topic.topic_id, partition, *cleaning_policy(topic.configs), self._settings.min_age_ms)


def cleaning_policy(configs: Mapping[str, str]) -> tuple[float, int, int, int]:
    """How a topic is compacted by key: the least dirty ratio; milliseconds: the least and the longest lag, and how long
    tombstones stay."""
    return (
        float(effective(configs, "min.cleanable.dirty.ratio")),
        int(effective(configs, "min.compaction.lag.ms")),
        int(effective(configs, "max.compaction.lag.ms")),
        int(effective(configs, "delete.retention.ms")),
    )
