import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from metadata.group_model import GroupDescription, GroupLag
from metadata.model import MetadataUnavailable
from tidelog import group_metrics
from tidelog.group_metrics import KEPT_SECONDS, GroupMetrics


class FakeClock:
    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class FakeGroups:
    def __init__(self) -> None:
        self.states = {"a": "Stable", "b": "Empty", "c": "Empty"}
        self.lags = [
            GroupLag("a", "logs", 0, 5, 1.5),
            GroupLag("a", "logs", 1, 7, 9.0),
            GroupLag("b", "other", 0, 0, 0.0),
        ]
        self.unavailable = False
        self.asked = 0

    async def list_groups(self) -> list[GroupDescription]:
        if self.unavailable:
            raise MetadataUnavailable("the store is away")
        return [GroupDescription(name, state, "consumer", "", ()) for name, state in self.states.items()]

    async def group_lags(self) -> list[GroupLag]:
        self.asked += 1
        await asyncio.sleep(0)
        return self.lags


async def test_states_and_lags_are_summed_and_the_worst_age_shown() -> None:
    registry, groups, clock = CollectorRegistry(), FakeGroups(), FakeClock()
    metrics = GroupMetrics(registry, cast(Any, clock))
    await metrics.refresh(cast(Any, groups))
    value = registry.get_sample_value
    assert value("tidelog_groups", {"state": "Empty"}) == 2
    assert value("tidelog_groups", {"state": "Stable"}) == 1
    assert value("tidelog_groups", {"state": "Dead"}) == 0
    assert value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) == 12
    assert value("tidelog_group_lag_seconds", {"group": "a", "topic": "logs"}) == 9.0
    assert value("tidelog_group_lag_records", {"group": "b", "topic": "other"}) == 0


async def test_a_group_that_is_gone_is_no_longer_shown_and_figures_stay_while_the_metadata_is_away() -> None:
    registry, groups, clock = CollectorRegistry(), FakeGroups(), FakeClock()
    metrics = GroupMetrics(registry, cast(Any, clock))
    await metrics.refresh(cast(Any, groups))
    groups.lags = groups.lags[2:]
    groups.unavailable = True
    clock.seconds += KEPT_SECONDS
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) == 12
    groups.unavailable = False
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) is None


async def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_metrics, "GROUPS_SHOWN_MAX", 3)
    registry, groups, clock = CollectorRegistry(), FakeGroups(), FakeClock()
    groups.lags = [GroupLag(f"g{index}", "logs", 0, 1, 1.0) for index in range(10)]
    groups.states = {f"g{index}": "Empty" for index in range(10)}
    metrics = GroupMetrics(registry, cast(Any, clock))
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_groups_left_out") == 7
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "g2", "topic": "logs"}) == 1
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "g3", "topic": "logs"}) is None


async def test_scrapes_share_figures_for_some_seconds() -> None:
    registry, groups, clock = CollectorRegistry(), FakeGroups(), FakeClock()
    metrics = GroupMetrics(registry, cast(Any, clock))
    await asyncio.gather(*(metrics.refresh(cast(Any, groups)) for _ in range(5)))
    clock.seconds += KEPT_SECONDS - 0.1
    await metrics.refresh(cast(Any, groups))
    assert groups.asked == 1
    clock.seconds += 0.1
    await metrics.refresh(cast(Any, groups))
    assert groups.asked == 2


async def test_whole_groups_are_left_out_when_they_have_too_many_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_metrics, "SERIES_SHOWN_MAX", 3)
    registry, groups, clock = CollectorRegistry(), FakeGroups(), FakeClock()
    groups.lags = [GroupLag(group, topic, 0, 1, 1.0) for group in ("a", "b") for topic in ("x", "y")]
    await GroupMetrics(registry, cast(Any, clock)).refresh(cast(Any, groups))
    shown = [
        sample.labels["group"] for metric in registry.collect() for sample in metric.samples if "topic" in sample.labels
    ]
    assert set(shown) == {"a"}
