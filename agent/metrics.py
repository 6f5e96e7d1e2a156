"""What the Kafka side of an agent counts. Plain integers on the hot path, exported when somebody asks.

``prometheus_client`` takes a lock for every increment; a produce request would pay more for its metrics than for its
decoding. One event loop writes these numbers, and a collector reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.wire.apis import APIS
from agent.zone_traffic import ZoneTraffic
from metadata.agent_model import AgentCondition
from runtime.budget import Budget

LATENCY_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ApiMetrics:
    """One API's requests: ``ok``, ``error`` (answered with a Kafka error), ``failed`` (our fault), ``refused`` (not
    understood, so the connection was closed), and how long they took from the last byte in to the answer's first out.
    """

    __slots__ = ("buckets", "error", "failed", "name", "ok", "refused", "seconds")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ok = 0
        self.error = 0
        self.failed = 0
        self.refused = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)

    def observe(self, seconds: float) -> None:
        """One request was answered so long after it had arrived."""
        self.seconds += seconds
        self.buckets[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1


class AgentMetrics(Collector):
    """Connections, requests, bytes and the budget of one agent."""

    def __init__(self, registry: CollectorRegistry, budget: Budget) -> None:
        self._budget = budget
        self.connections_open = 0
        self.connections_accepted = 0
        self.connections_rejected = 0
        self.tls_handshakes = 0
        self.tls_handshakes_pending = 0
        self.tls_handshakes_failed: Counter[str] = Counter()
        """By reason; the reasons are the constants in :mod:`agent.tls`."""
        self.certificate_expires_at: int | None = None
        """Seconds since the Unix epoch; None without TLS."""
        self.connections_closed: Counter[str] = Counter()
        """By reason; the reasons are the constants in :mod:`agent.connection`."""
        self.apis = {api.key: ApiMetrics(api.name) for api in APIS}
        self.unknown_api_requests = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.received_records = 0
        self.received_batches = 0
        self.refused_batches: Counter[str] = Counter()
        """By Kafka's error name, for batches a produce was refused before they reached a segment."""
        self.cross_zone = ZoneTraffic()
        self.foreign_answers = 0
        """That named agents of other zones, because the client's has none."""
        self.condition = ""
        """What this agent last thought of itself."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        yield from self._connections()
        yield from self._tls()
        yield from self._requests()
        yield _counter("received_bytes", "Bytes received from Kafka clients, frames included.", self.received_bytes)
        yield _counter("sent_bytes", "Bytes of answers handed to Kafka clients' connections.", self.sent_bytes)
        yield _counter("received_records", "Records of valid batches taken in from producers.", self.received_records)
        yield _counter("received_batches", "Valid record batches taken in from producers.", self.received_batches)
        refused = CounterMetricFamily(
            "tidelog_agent_refused_batches", "Record batches refused before they reached a segment.", labels=["error"]
        )
        for error, count in self.refused_batches.items():
            refused.add_metric([error], count)
        yield refused
        yield from self._memory()
        yield from self._zones()

    def request_count(self) -> int:
        """Requests of all kinds since the start, however they ended."""
        apis = self.apis.values()
        return self.unknown_api_requests + sum(api.ok + api.error + api.failed + api.refused for api in apis)

    def _connections(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tidelog_agent_connections", "Open Kafka connections.", value=float(self.connections_open)
        )
        yield _counter("accepted_connections", "Kafka connections accepted.", self.connections_accepted)
        yield _counter(
            "rejected_connections",
            "Kafka connections closed at once because connection.connections_max was reached.",
            self.connections_rejected,
        )
        closed = CounterMetricFamily(
            "tidelog_agent_closed_connections", "Kafka connections closed, by reason.", labels=["reason"]
        )
        for reason, count in self.connections_closed.items():
            closed.add_metric([reason], count)
        yield closed

    def _tls(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tidelog_agent_certificate_expiry_seconds",
            "When the certificate in use expires, or the first one of its chain (seconds since the Unix epoch).",
            value=None if self.certificate_expires_at is None else float(self.certificate_expires_at),
        )
        yield GaugeMetricFamily(
            "tidelog_agent_pending_tls_handshakes",
            "Accepted sockets whose TLS handshake is not done, those that have not sent anything yet included.",
            value=float(self.tls_handshakes_pending),
        )
        yield _counter("tls_handshakes", "TLS handshakes done.", self.tls_handshakes)
        failed = CounterMetricFamily(
            "tidelog_agent_failed_tls_handshakes",
            "TLS handshakes that did not become a connection, by reason.",
            labels=["reason"],
        )
        for reason, count in self.tls_handshakes_failed.items():
            failed.add_metric([reason], count)
        yield failed

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tidelog_agent_requests",
            "Requests by API and outcome: ok, error (a Kafka error was answered), failed (a fault of this agent), "
            "refused (not understood, connection closed).",
            labels=["api", "outcome"],
        )
        latency = HistogramMetricFamily(
            "tidelog_agent_request_duration_seconds",
            "From a request's last byte in to its answer queued, waiting for commits and long polls included.",
            labels=["api"],
        )
        for api in self.apis.values():
            for outcome in ("ok", "error", "failed", "refused"):
                if count := getattr(api, outcome):
                    requests.add_metric([api.name, outcome], count)
            if any(api.buckets):
                latency.add_metric([api.name], _cumulative(api.buckets), sum_value=api.seconds)
        if self.unknown_api_requests:
            requests.add_metric(["unknown", "refused"], self.unknown_api_requests)
        yield requests
        yield latency

    def _memory(self) -> Iterator[Metric]:
        held = GaugeMetricFamily(
            "tidelog_agent_held_bytes", "Bytes held on behalf of clients, by purpose.", labels=["purpose"]
        )
        for purpose, count in self._budget.by_purpose.items():
            held.add_metric([purpose], float(count))
        yield held
        yield GaugeMetricFamily(
            "tidelog_agent_budget_bytes",
            "The limit on all bytes held; at it the agent stops reading from clients.",
            value=float(self._budget.limit_bytes),
        )

    def _zones(self) -> Iterator[Metric]:
        crossed = CounterMetricFamily(
            "tidelog_agent_cross_zone_bytes",
            "Bytes received from and sent to clients and peers whose zone is known to be another, by that zone.",
            labels=["direction", "zone"],
        )
        for zone, counted in self.cross_zone.by_zone.items():
            crossed.add_metric(["received", zone], counted.received)
            crossed.add_metric(["sent", zone], counted.sent)
        yield crossed
        yield _counter(
            "foreign_zone_answers",
            "Answers that sent a client to agents of other zones, because its own has none that is ready.",
            self.foreign_answers,
        )
        condition = GaugeMetricFamily(
            "tidelog_agent_condition", "1 for what this agent thinks of itself.", labels=["condition"]
        )
        for possible in AgentCondition:
            condition.add_metric([possible], float(possible == self.condition))
        yield condition


def _counter(noun: str, documentation: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"tidelog_agent_{noun}", documentation, value=float(value))


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total = 0
    rows: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, LATENCY_BOUNDS_SECONDS), "+Inf"], buckets, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows
