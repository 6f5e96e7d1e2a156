from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from metadata.group_model import GroupDescription, GroupLag
from metadata.model import MetadataUnavailable
from tidelog import group_metrics
from tidelog.group_metrics import GroupMetrics


class FakeGroups:
    def __init__(self) -> None:
        self.states = {"a": "Stable", "b": "Empty", "c": "Empty"}
        self.lags = [
            GroupLag("a", "logs", 0, 5, 1.5),
            GroupLag("a", "logs", 1, 7, 9.0),
            GroupLag("b", "other", 0, 0, 0.0),
        ]
        self.unavailable = False

    async def list_groups(self) -> list[GroupDescription]:
        if self.unavailable:
            raise MetadataUnavailable("the store is away")
        return [GroupDescription(name, state, "consumer", "", ()) for name, state in self.states.items()]

    async def group_lags(self) -> list[GroupLag]:
        return self.lags


async def test_states_and_lags_are_summed_and_the_worst_age_shown() -> None:
    registry, groups = CollectorRegistry(), FakeGroups()
    metrics = GroupMetrics(registry)
    await metrics.refresh(cast(Any, groups))
    value = registry.get_sample_value
    assert value("tidelog_groups", {"state": "Empty"}) == 2
    assert value("tidelog_groups", {"state": "Stable"}) == 1
    assert value("tidelog_groups", {"state": "Dead"}) == 0
    assert value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) == 12
    assert value("tidelog_group_lag_seconds", {"group": "a", "topic": "logs"}) == 9.0
    assert value("tidelog_group_lag_records", {"group": "b", "topic": "other"}) == 0


async def test_a_group_that_is_gone_is_no_longer_shown_and_figures_stay_while_the_metadata_is_away() -> None:
    registry, groups = CollectorRegistry(), FakeGroups()
    metrics = GroupMetrics(registry)
    await metrics.refresh(cast(Any, groups))
    groups.lags = groups.lags[2:]
    groups.unavailable = True
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) == 12
    groups.unavailable = False
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "a", "topic": "logs"}) is None


async def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_metrics, "GROUPS_SHOWN_MAX", 3)
    registry, groups = CollectorRegistry(), FakeGroups()
    groups.lags = [GroupLag(f"g{index}", "logs", 0, 1, 1.0) for index in range(10)]
    metrics = GroupMetrics(registry)
    await metrics.refresh(cast(Any, groups))
    assert registry.get_sample_value("tidelog_groups_left_out") == 7
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "g2", "topic": "logs"}) == 1
    assert registry.get_sample_value("tidelog_group_lag_records", {"group": "g3", "topic": "logs"}) is None
