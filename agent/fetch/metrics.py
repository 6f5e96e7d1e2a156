"""What the fetch path tells Prometheus. Counted in plain integers on the hot path, exported by a collector."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LAYERS = ("run", "writer", "block", "peer")


class FetchMetrics(Collector):
    """Counters of one agent's fetch path; the owner adds to the fields."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes_out = 0
        self.records_out = 0
        self.run_hits = 0
        self.writer_hits = 0
        self.block_hits = 0
        self.run_misses = 0
        self.block_reads = 0
        self.block_reads_failed = 0
        self.read_ahead = 0
        self.joined_reads = 0
        self.waiting = 0
        self.metadata_queries = 0
        self.missing_objects = 0
        self.corrupt_extents = 0
        self.peer_hits = 0
        self.peer_requests = 0
        self.peer_failures = 0
        self.peer_bytes_in = 0
        self.peer_bytes_out = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield _counter("tidelog_fetch_sent_bytes", "Record bytes handed to consumers.", self.bytes_out)
        yield _counter("tidelog_fetch_sent_records", "Records handed to consumers.", self.records_out)
        hits = CounterMetricFamily(
            "tidelog_fetch_cache_hits",
            "Extents or blocks found in memory, by layer: patched run, the writer's own segment, block, another agent.",
            labels=["layer"],
        )
        counts = (self.run_hits, self.writer_hits, self.block_hits, self.peer_hits)
        for layer, value in zip(LAYERS, counts, strict=True):
            hits.add_metric([layer], value)
        yield hits
        yield _counter("tidelog_fetch_cache_misses", "Extents whose bytes had to be read in blocks.", self.run_misses)
        yield _counter("tidelog_fetch_block_reads", "Blocks read from the object store (GETs).", self.block_reads)
        yield _counter(
            "tidelog_fetch_block_read_failures", "Blocks that could not be read in time.", self.block_reads_failed
        )
        yield _counter(
            "tidelog_fetch_read_ahead_blocks", "Blocks read before a catching-up consumer asked.", self.read_ahead
        )
        yield _counter("tidelog_fetch_joined_reads", "Readers that joined a read already running.", self.joined_reads)
        yield _counter(
            "tidelog_fetch_metadata_queries", "Partitions looked up in the metadata service.", self.metadata_queries
        )
        yield _counter(
            "tidelog_fetch_missing_objects",
            "Extents whose object was gone and were resolved again.",
            self.missing_objects,
        )
        yield _counter(
            "tidelog_fetch_corrupt_extents", "Extents whose bytes contradict the metadata.", self.corrupt_extents
        )
        yield _counter("tidelog_fetch_peer_requests", "Requests for bytes to other agents.", self.peer_requests)
        yield _counter(
            "tidelog_fetch_peer_failures",
            "Of these, not answered (in time); the object store was read.",
            self.peer_failures,
        )
        peer_bytes = CounterMetricFamily(
            "tidelog_fetch_peer_bytes", "Bytes between agents of one zone and group.", labels=["direction"]
        )
        peer_bytes.add_metric(["in"], self.peer_bytes_in)
        peer_bytes.add_metric(["out"], self.peer_bytes_out)
        yield peer_bytes
        yield GaugeMetricFamily(
            "tidelog_fetch_waiting_requests", "Fetch requests waiting for new records.", self.waiting
        )


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value)
