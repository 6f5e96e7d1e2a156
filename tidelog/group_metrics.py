"""Consumer groups in ``/metrics``: states, members, and lag in records and in seconds. Computed when scraped."""

from __future__ import annotations

from collections import Counter, defaultdict

from prometheus_client import CollectorRegistry, Gauge

from metadata.group_model import GroupClient
from metadata.model import MetadataUnavailable

GROUPS_SHOWN_MAX = 1_000
"""Groups beyond this many are left out of the per-group series, so that clients cannot grow them without bound."""

STATES = ("Empty", "PreparingRebalance", "CompletingRebalance", "Stable", "Dead")


class GroupMetrics:
    """Refreshes the group gauges from the metadata service; pass :meth:`refresh` to ``HttpServer.before_scrape``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._groups = Gauge("tidelog_groups", "Consumer groups by state.", ["state"], registry=registry)
        self._lag_records = Gauge(
            "tidelog_group_lag_records",
            "Records of the topic that the group has not yet committed, over all partitions.",
            ["group", "topic"],
            registry=registry,
        )
        self._lag_seconds = Gauge(
            "tidelog_group_lag_seconds",
            "Age of the oldest commit the group has not yet consumed, worst partition of the topic.",
            ["group", "topic"],
            registry=registry,
        )
        self._left_out = Gauge(
            "tidelog_groups_left_out", f"Groups beyond the {GROUPS_SHOWN_MAX} shown with their lag.", registry=registry
        )

    async def refresh(self, groups: GroupClient) -> None:
        """Read states and lags. When the metadata service cannot answer, the last figures stay."""
        try:
            descriptions = await groups.list_groups()
            lags = await groups.group_lags()
        except MetadataUnavailable:
            return
        by_state = Counter(description.state for description in descriptions)
        for state in STATES:
            self._groups.labels(state).set(by_state[state])
        shown = sorted({lag.group_id for lag in lags})
        self._left_out.set(max(0, len(shown) - GROUPS_SHOWN_MAX))
        shown_set = set(shown[:GROUPS_SHOWN_MAX])
        records: defaultdict[tuple[str, str], int] = defaultdict(int)
        seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        for lag in lags:
            if lag.group_id in shown_set:
                key = (lag.group_id, lag.topic)
                records[key] += lag.records
                seconds[key] = max(seconds[key], lag.seconds)
        self._lag_records.clear()
        self._lag_seconds.clear()
        for key, count in records.items():
            self._lag_records.labels(*key).set(count)
            self._lag_seconds.labels(*key).set(seconds[key])
