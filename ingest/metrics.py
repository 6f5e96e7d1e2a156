"""What the ingest path tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ingest.policy import SealReason

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1, 2, 5, 10, 30, 60)
_BYTES = tuple(float(4**exponent) for exponent in range(5, 15))


class IngestMetrics:
    """One per process. Everything here is touched once a segment, never once a batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        stage = Histogram(
            "tidelog_ingest_stage_seconds",
            "Time of a segment in each stage: wait (first batch to seal), upload (seal to durable), "
            "commit (durable to answered, waiting for earlier segments included).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.wait_seconds = stage.labels("wait")
        self.upload_seconds = stage.labels("upload")
        self.commit_seconds = stage.labels("commit")
        self.segment_bytes = Histogram(
            "tidelog_ingest_segment_bytes", "Size of sealed segments.", buckets=_BYTES, registry=registry
        )
        seals = Counter("tidelog_ingest_seals_total", "Segments sealed, by reason.", ["reason"], registry=registry)
        self.seals = {reason: seals.labels(reason.value) for reason in SealReason}
        segments = Counter(
            "tidelog_ingest_segments_total",
            "Segments that ended: committed, failed (not durable in time), unresolved (commit unknown at "
            "the deadline), fenced or stopped.",
            ["outcome"],
            registry=registry,
        )
        self.segments = {
            outcome: segments.labels(outcome) for outcome in ("committed", "failed", "unresolved", "fenced", "stopped")
        }
        self.batches = Counter("tidelog_ingest_batches_total", "Record batches committed.", registry=registry)
        self.records = Counter("tidelog_ingest_records_total", "Records committed.", registry=registry)
        self.bytes = Counter("tidelog_ingest_bytes_total", "Bytes of record batches committed.", registry=registry)
        self.batches_refused = Counter(
            "tidelog_ingest_batches_refused_total",
            "Record batches the commit refused (sequence, epoch, topic gone).",
            registry=registry,
        )
        self.batches_duplicate = Counter(
            "tidelog_ingest_batches_duplicate_total",
            "Retried batches acknowledged with their first offsets.",
            registry=registry,
        )
        hedges = Counter(
            "tidelog_ingest_hedges_total",
            "Second PUTs of straggling segments: won, lost (the first was faster), failed (neither worked), "
            "withheld (over the share allowed when it was due; it may have been made later).",
            ["outcome"],
            registry=registry,
        )
        self.hedges = {outcome: hedges.labels(outcome) for outcome in ("won", "lost", "failed", "withheld")}
        self.upload_retries = Counter(
            "tidelog_ingest_upload_retries_total",
            "Uploads begun again under a new key after the store gave up.",
            registry=registry,
        )
        self.commit_retries = Counter(
            "tidelog_ingest_commit_retries_total",
            "Commits asked again because their outcome was unknown.",
            registry=registry,
        )
        discards = Counter(
            "tidelog_ingest_objects_discarded_total",
            "Uploaded objects that no commit references: deleted, or left to the orphan sweep.",
            ["outcome"],
            registry=registry,
        )
        self.objects_discarded = {outcome: discards.labels(outcome) for outcome in ("deleted", "left")}
        self.segments_pending = Gauge(
            "tidelog_ingest_segments_pending",
            "Sealed segments not yet answered (uploading or waiting for their commit).",
            registry=registry,
        )
        self.bytes_pending = Gauge(
            "tidelog_ingest_pending_bytes", "Bytes of sealed segments not yet answered.", registry=registry
        )
