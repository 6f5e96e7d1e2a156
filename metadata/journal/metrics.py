"""What the journal counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class JournalMetrics:
    """One per process; what a leader's journal shows is zero while it stands by."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lag = Gauge(
            "tidelog_journal_lag_seconds",
            "Age of the oldest durable change that is not in the bucket; 0: there is none.",
            registry=registry,
        )
        self.buffered = Gauge(
            "tidelog_journal_buffered_bytes", "Changes that wait to be put into the bucket.", registry=registry
        )
        self.entries = Counter(
            "tidelog_journal_entries_total", "Entries of the journal put into the bucket.", registry=registry
        )
        self.entry_bytes = Counter(
            "tidelog_journal_entry_bytes_total", "Bytes of entries, compressed.", registry=registry
        )
        self.failures = Counter(
            "tidelog_journal_failures_total",
            "Entries and snapshots that could not be put or made; they are tried again.",
            registry=registry,
        )
        self.gaps = Counter(
            "tidelog_journal_gaps_total",
            "Times the journal lost its thread (bucket away for long, write of unknown outcome): a snapshot follows.",
            registry=registry,
        )
        self.snapshots = Counter("tidelog_journal_snapshots_total", "Snapshots completed.", registry=registry)
        self.snapshot_bytes = Gauge(
            "tidelog_journal_snapshot_bytes", "Size of the newest snapshot in the bucket.", registry=registry
        )
        self.restorable = Gauge(
            "tidelog_journal_restorable_count",
            "1: the metadata can be restored from the bucket up to what tidelog_journal_lag_seconds says.",
            registry=registry,
        )

    def forget(self) -> None:
        """This process leads no more."""
        for gauge in (self.lag, self.buffered, self.restorable, self.snapshot_bytes):
            gauge.set_function(lambda: 0)
