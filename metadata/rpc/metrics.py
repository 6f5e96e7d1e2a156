"""What both ends of the metadata transport count and time."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_CALL_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)


class RpcServerMetrics:
    """One per metadata process. Labels are names of calls and outcomes, both from fixed tables."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "tidelog_metadata_rpc_calls_total",
            "Calls answered, by what became of them: value, refused, fenced, unavailable, failed, pending, settled, "
            "other_generation, not_leader, overloaded, malformed.",
            ["method", "outcome"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "tidelog_metadata_rpc_call_seconds",
            "From a call's complete request to its answer, parked time included.",
            ["method"],
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        self.unauthorized = Counter(
            "tidelog_metadata_rpc_unauthorized_total", "Requests without the cluster's secret.", registry=registry
        )
        self.calls_in_flight = Gauge(
            "tidelog_metadata_rpc_calls_in_flight", "Calls not yet answered.", registry=registry
        )
        self.answer_bytes = Gauge(
            "tidelog_metadata_rpc_answer_bytes", "Answers kept for calls that may be repeated.", registry=registry
        )
        self.watchers = Gauge("tidelog_metadata_watchers_count", "Agents with an open watch.", registry=registry)
        self.partitions_followed = Gauge(
            "tidelog_metadata_partitions_followed_count",
            "Partitions that at least one watch follows.",
            registry=registry,
        )
        self.events_sent = Counter(
            "tidelog_metadata_watch_events_total", "Events written to watches, beats included.", registry=registry
        )
        self.watchers_cut = Counter(
            "tidelog_metadata_watchers_cut_total", "Watches ended because their reader was too slow.", registry=registry
        )
        self.generation = Gauge(
            "tidelog_metadata_generation", "The generation this process leads under, or led last.", registry=registry
        )
        self.is_leader = Gauge(
            "tidelog_metadata_is_leader", "1 while this process is the active one.", registry=registry
        )


class RpcClientMetrics:
    """One per process that calls a metadata service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "tidelog_metadata_client_calls_total",
            "Calls of the metadata service by outcome: value, refused, fenced, unavailable, cancelled.",
            ["method", "outcome"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "tidelog_metadata_client_call_seconds",
            "From a call to its outcome, all attempts and parked time included.",
            ["method"],
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        self.repeats = Counter(
            "tidelog_metadata_client_repeats_total",
            "Attempts of calls after the first, by why: disconnected, silent, not_leader, stale, overloaded, "
            "unavailable, pending, other_generation.",
            ["reason"],
            registry=registry,
        )
        self.leader_changes = Counter(
            "tidelog_metadata_client_leader_changes_total",
            "Times another metadata process, or a new term of the same, became the active one.",
            registry=registry,
        )
        self.watch_gaps = Counter(
            "tidelog_metadata_client_watch_gaps_total",
            "Times the watch was interrupted and everything derived from it was asked for again.",
            registry=registry,
        )
        self.watch_connected = Gauge(
            "tidelog_metadata_client_watch_connected", "1 while events arrive.", registry=registry
        )
