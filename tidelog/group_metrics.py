"""Consumer groups in ``/metrics``: states, members, and lag in records and in seconds. Computed when scraped."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict

from prometheus_client import CollectorRegistry, Gauge

from metadata.group_model import GroupClient
from metadata.model import MetadataUnavailable
from runtime.clock import Clock

GROUPS_SHOWN_MAX = 1_000
"""Groups beyond this many are left out of the per-group series, so that clients cannot grow them without bound."""

SERIES_SHOWN_MAX = 5_000
"""Pairs of group and topic, for the same reason."""
KEPT_SECONDS = 5.0
"""Figures are as old as this at most, however often they are scraped."""
SUMMED_AT_ONCE = 1_000

STATES = ("Empty", "PreparingRebalance", "CompletingRebalance", "Stable", "Dead")


class GroupMetrics:
    """Refreshes the group gauges from the metadata service; pass :meth:`refresh` to ``HttpServer.before_scrape``."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        self._refreshing = asyncio.Lock()
        self._read_at: float | None = None
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
            "tidelog_groups_left_out",
            "Groups not shown with their lag: without committed offsets, or too many to show.",
            registry=registry,
        )

    async def refresh(self, groups: GroupClient) -> None:
        """Read states and lags, unless that was done just now.

        When the metadata service cannot answer, the last figures stay.
        """
        async with self._refreshing:
            if self._read_at is None or self._clock.monotonic() - self._read_at >= KEPT_SECONDS:
                await self._read(groups)

    def forget(self) -> None:
        """The metadata service is elsewhere now, and shows them there."""
        self._read_at = None
        self._groups.clear()
        self._lag_records.clear()
        self._lag_seconds.clear()
        self._left_out.set(0)

    async def _read(self, groups: GroupClient) -> None:
        try:
            descriptions = await groups.list_groups()
            lags = await groups.group_lags()
        except MetadataUnavailable:
            return
        self._read_at = self._clock.monotonic()
        by_state = Counter(description.state for description in descriptions)
        for state in STATES:
            self._groups.labels(state).set(by_state[state])
        records: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        for number, lag in enumerate(lags, 1):
            records[lag.group_id][lag.topic] += lag.records
            key = (lag.group_id, lag.topic)
            seconds[key] = max(seconds[key], lag.seconds)
            if number % SUMMED_AT_ONCE == 0:
                await asyncio.sleep(0)
        shown: list[str] = []
        series = 0
        for group_id in sorted(records):
            series += len(records[group_id])
            if len(shown) == GROUPS_SHOWN_MAX or series > SERIES_SHOWN_MAX:
                break
            shown.append(group_id)
        self._left_out.set(max(0, len(descriptions) - len(shown)))
        self._lag_records.clear()
        self._lag_seconds.clear()
        for group_id in shown:
            for topic, count in records[group_id].items():
                self._lag_records.labels(group_id, topic).set(count)
                self._lag_seconds.labels(group_id, topic).set(seconds[group_id, topic])
