"""Kafka's rules of retention, on extents."""

from __future__ import annotations

import pytest

from metadata.retention import NEVER_MS, RetentionPolicy, Verdict, judge, retention_policy
from tests.support.metadata import extent

EVER = RetentionPolicy(-1, -1, compacted=False)
EXTENTS = [extent(base, base + 9, size=100, timestamp=base * 10) for base in range(0, 50, 10)]  # newest at 0 to 400


def by_time(milliseconds: int) -> RetentionPolicy:
    return RetentionPolicy(milliseconds, -1, compacted=False)


def by_size(size: int) -> RetentionPolicy:
    return RetentionPolicy(-1, size, compacted=False)


@pytest.mark.parametrize(
    ("now_ms", "log_start_offset", "due_ms"),
    [(1_000, None, 1_001), (1_001, 10, 1_101), (1_100, 10, 1_101), (1_101, 20, 1_201), (1_400, 40, 1_401)],
)
def test_what_is_older_than_allowed_goes(now_ms: int, log_start_offset: int | None, due_ms: int) -> None:
    freed = 0 if log_start_offset is None else log_start_offset * 10
    assert judge(by_time(1_000), EXTENTS, 500, now_ms) == Verdict(log_start_offset, freed, due_ms, complete=True)


def test_everything_may_be_too_old() -> None:
    assert judge(by_time(1_000), EXTENTS, 500, 1_401) == Verdict(50, 500, NEVER_MS, complete=False)


def test_a_newer_record_keeps_what_comes_after_it() -> None:
    """As in Kafka: what is deleted is the beginning of the log, however old what follows is."""
    extents = [EXTENTS[0], extent(10, 19, timestamp=9_000), *EXTENTS[2:]]
    assert judge(by_time(1_000), extents, 500, 5_000) == Verdict(10, 100, 10_001, complete=True)


def test_records_without_a_timestamp_are_as_old_as_their_commit() -> None:
    without = extent(0, 9, timestamp=-1)
    assert judge(by_time(1_000), [without], 100, without.commit_ms + 1_000).log_start_offset is None
    assert judge(by_time(1_000), [without], 100, without.commit_ms + 1_001).log_start_offset == 10


@pytest.mark.parametrize(
    ("size", "log_start_offset"),
    [(0, 50), (1, 40), (99, 40), (100, 40), (101, 30), (400, 10), (401, None), (500, None)],
)
def test_what_is_left_is_never_smaller_than_asked_for(size: int, log_start_offset: int | None) -> None:
    assert judge(by_size(size), EXTENTS, 500, 10**9).log_start_offset == log_start_offset


def test_either_limit_is_enough() -> None:
    both = RetentionPolicy(1_000, 250, compacted=False)
    assert judge(both, EXTENTS, 500, 1_001).log_start_offset == 20
    assert judge(both, EXTENTS, 500, 1_301).log_start_offset == 40


def test_policies_of_topics() -> None:
    assert retention_policy({}) == RetentionPolicy(604_800_000, -1, compacted=False)
    limits = {"retention.ms": "5", "retention.bytes": "7"}
    assert retention_policy(limits) == RetentionPolicy(5, 7, compacted=False)
    assert retention_policy(limits | {"cleanup.policy": "compact"}).keeps_all
    assert retention_policy(limits | {"cleanup.policy": "compact,delete"}) == RetentionPolicy(5, 7, compacted=True)
    assert retention_policy({"retention.ms": "-1"}).keeps_all
    assert judge(EVER, EXTENTS, 500, 10**15) == Verdict(None, 0, NEVER_MS, complete=True)
