"""Metrics of compaction in an agent."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class CompactionMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.bytes_read = Counter(
            "tidelog_compaction_read_bytes_total", "Bytes read of segments being compacted.", registry=registry
        )
        self.reads = Counter("tidelog_compaction_reads_total", "GETs of segments being compacted.", registry=registry)
        self.bytes_written = Counter(
            "tidelog_compaction_written_bytes_total", "Bytes of compacted segments put.", registry=registry
        )
        self.segments_written = Counter(
            "tidelog_compaction_segments_total", "Compacted segments put.", registry=registry
        )
        self.extents_replaced = Counter(
            "tidelog_compaction_extents_replaced_total",
            "Extents whose place was taken by larger ones.",
            registry=registry,
        )
        self.extents_made = Counter(
            "tidelog_compaction_extents_made_total", "Extents that took the place of smaller ones.", registry=registry
        )
        self.swaps_refused = Counter(
            "tidelog_compaction_swaps_refused_total",
            "Swaps refused because the extents had changed (retention, deletion, another agent). Work lost, not data.",
            registry=registry,
        )
        self.corrupt = Counter(
            "tidelog_compaction_corrupt_extents_total",
            "Extents that were not compacted because their bytes are damaged. Any is worth a look: tidelog fsck.",
            registry=registry,
        )
