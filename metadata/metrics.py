"""What the metadata service counts and times."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WRITE_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_COMMANDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class MetadataMetrics:
    """One per metadata service. Nothing here is touched per batch: commits count once per call."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.write_seconds = Histogram(
            "tidelog_metadata_write_seconds",
            "Time of one durable transaction of the metadata store.",
            registry=registry,
            buckets=_WRITE_SECONDS,
        )
        self.write_commands = Histogram(
            "tidelog_metadata_write_commands",
            "Commands that shared one durable transaction.",
            registry=registry,
            buckets=_COMMANDS,
        )
        self.write_failures = Counter(
            "tidelog_metadata_write_failures_total",
            "Transactions that failed; the state was reloaded from the store.",
            registry=registry,
        )
        self.reloads = Counter(
            "tidelog_metadata_reloads_total", "Times the state was rebuilt after a failed write.", registry=registry
        )
        self.batches_committed = Counter(
            "tidelog_metadata_batches_committed_total", "Record batches that got offsets.", registry=registry
        )
        self.batches_duplicate = Counter(
            "tidelog_metadata_batches_duplicate_total",
            "Record batches an idempotent producer sent again, acknowledged with their first offsets.",
            registry=registry,
        )
        self.batches_refused = Counter(
            "tidelog_metadata_batches_refused_total",
            "Record batches a commit refused (unknown topic, sequence or epoch).",
            registry=registry,
        )
        self.extents_found = Counter(
            "tidelog_metadata_extents_found_total",
            "Extents handed to readers, by where they were found.",
            ["source"],
            registry=registry,
        )
        self.extents_found_memory = self.extents_found.labels("memory")
        self.extents_found_store = self.extents_found.labels("store")
        self.extents_swapped = Counter(
            "tidelog_metadata_extents_swapped_total",
            "Extents whose place was taken by larger ones of compacted segments.",
            registry=registry,
        )
        self.topics = Gauge("tidelog_metadata_topics_count", "Topics.", registry=registry)
        self.partitions = Gauge("tidelog_metadata_partitions_count", "Partitions of all topics.", registry=registry)
        self.producers = Gauge(
            "tidelog_metadata_producer_states_count",
            "Idempotent producers remembered, once per partition they wrote to.",
            registry=registry,
        )
        self.extents_cached = Gauge(
            "tidelog_metadata_extents_cached_count", "Newest extents held in memory.", registry=registry
        )

        self.jobs = Gauge(
            "tidelog_metadata_jobs_count",
            "Background jobs by kind: open (nobody has them) or leased by an agent.",
            ["kind", "state"],
            registry=registry,
        )
        self.jobs_finished = Counter(
            "tidelog_metadata_jobs_finished_total", "Background jobs that were done.", ["kind"], registry=registry
        )
        self.jobs_failed = Counter(
            "tidelog_metadata_jobs_failed_total",
            "Background jobs that agents gave back, or whose results could not be kept.",
            ["kind"],
            registry=registry,
        )
        self.segments = Gauge(
            "tidelog_metadata_segments_count",
            "Objects in the bucket by what they are worth: live (something in them is referenced) or dead (nothing is;"
            " deleted after the grace). Looked up every minute or less often.",
            ["state"],
            registry=registry,
        )
        self.segment_bytes = Gauge(
            "tidelog_metadata_segments_bytes",
            "Bytes in the bucket: live (referenced), garbage (unreferenced parts of live objects, footers with them),"
            " dead (whole objects that nothing references).",
            ["state"],
            registry=registry,
        )
        self.segments_deleted = Counter(
            "tidelog_metadata_segments_deleted_total", "Dead segments whose objects were deleted.", registry=registry
        )
        self.retention_bytes = Counter(
            "tidelog_metadata_retention_bytes_total",
            "Bytes of extents that logs were cut by, by age or size.",
            registry=registry,
        )
        self.orphans_deleted = Counter(
            "tidelog_metadata_orphans_deleted_total", "Objects nobody knew, deleted by sweeps.", registry=registry
        )

    def forget_state(self) -> None:
        """The service whose state the gauges show has ended: show nothing of it, and keep nothing of it."""
        for gauge in (self.topics, self.partitions, self.producers, self.extents_cached):
            gauge.set_function(lambda: 0)
        for labelled in (self.jobs, self.segments, self.segment_bytes):
            labelled.clear()

    def write_done(self, seconds: float, commands: int, succeeded: bool) -> None:
        """One transaction ended after ``seconds`` with the changes of ``commands`` commands."""
        self.write_seconds.observe(seconds)
        self.write_commands.observe(commands)
        if not succeeded:
            self.write_failures.inc()
