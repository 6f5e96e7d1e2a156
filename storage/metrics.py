"""What the storage room tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OPERATIONS = ("put", "get", "head", "delete", "list")
OUTCOMES = ("ok", "not_found", "exists", "throttled", "unavailable", "refused", "cancelled")
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0, 10.0, 30.0)


class StorageMetrics:
    """Counters of the object store; one per process. An *operation* is one attempt, as a store would bill it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.operations = Counter(
            "tidelog_storage_operations_total",
            "Object store requests (each attempt counts), by kind and outcome.",
            ["operation", "outcome"],
            registry=registry,
        )
        self.duration = Histogram(
            "tidelog_storage_operation_duration_seconds",
            "Time one attempt of an object store request took, whatever its outcome.",
            ["operation"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "tidelog_storage_operations_in_flight",
            "Object store requests running now.",
            ["operation"],
            registry=registry,
        )
        self.written = Counter(
            "tidelog_storage_written_bytes_total", "Bytes of objects put successfully.", registry=registry
        )
        self.read = Counter("tidelog_storage_read_bytes_total", "Bytes of objects read.", registry=registry)
        self.retries = Counter(
            "tidelog_storage_retries_total",
            "Attempts made because an earlier attempt of the same operation failed.",
            ["operation"],
            registry=registry,
        )
        self.given_up = Counter(
            "tidelog_storage_given_up_total",
            "Operations that failed with no attempt or no time left.",
            ["operation"],
            registry=registry,
        )
        # Every series exists from the start: a rate over a counter that appears with its first failure misses it.
        for operation in OPERATIONS:
            for outcome in OUTCOMES:
                self.operations.labels(operation, outcome)
            for metric in (self.duration, self.in_flight, self.retries, self.given_up):
                metric.labels(operation)
