"""What an agent counts of its background jobs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900)


class JobMetrics:
    """One per agent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter(
            "tidelog_jobs_finished_total",
            "Background jobs by how they ended: done, failed, untold (done, but the lease was lost or nobody"
            " answered), given_up (the lease was lost, or the agent stopped).",
            ["kind", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "tidelog_jobs_seconds", "Time of one background job.", ["kind"], registry=registry, buckets=_SECONDS
        )
        self.objects_deleted = Counter(
            "tidelog_jobs_objects_deleted_total",
            "Objects deleted: dead (nothing referenced them any more) or orphan (nobody knew them).",
            ["reason"],
            registry=registry,
        )
        self.objects_listed = Counter(
            "tidelog_jobs_objects_listed_total", "Objects looked at by the orphan sweep.", registry=registry
        )
