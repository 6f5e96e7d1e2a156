"""Metrics, latency and faults: the decorators that are not retries."""

from __future__ import annotations

import asyncio

import pytest
from crc32c import crc32c
from prometheus_client import CollectorRegistry, generate_latest

from runtime.clock import SeededEntropy, SystemClock
from storage.faults import Fault, FaultRates, FaultyStore
from storage.latency import Latency, LatencyStore
from storage.memory import MemoryStore
from storage.metered import MeteredStore
from storage.metrics import OPERATIONS, OUTCOMES, StorageMetrics
from storage.store import (
    ChecksumMismatch,
    ObjectExists,
    ObjectNotFound,
    ObjectStore,
    StorageRefused,
    StorageThrottled,
    StorageUnavailable,
)

CLOCK = SystemClock()
DATA = b"some data"


async def put(store: ObjectStore, key: str = "key", data: bytes = DATA) -> None:
    await store.put(key, [data], crc32c(data))


def metered(*faults: tuple[str, Fault]) -> tuple[MeteredStore, CollectorRegistry]:
    registry = CollectorRegistry()
    faulty = FaultyStore(MemoryStore(CLOCK), SeededEntropy(1))
    for operation, fault in faults:
        faulty.inject(operation, fault)
    return MeteredStore(faulty, StorageMetrics(registry), CLOCK), registry


def operations(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    counted = {
        (operation, outcome): registry.get_sample_value(
            "tidelog_storage_operations_total", {"operation": operation, "outcome": outcome}
        )
        for operation in OPERATIONS
        for outcome in OUTCOMES
    }
    assert None not in counted.values(), "every series exists from the start"
    return {key: value for key, value in counted.items() if value}


async def test_operations_are_counted_by_kind_and_outcome() -> None:
    store, registry = metered(("get", Fault.THROTTLE), ("delete", Fault.ERROR_AFTER))
    await put(store)
    await put(store)
    for expected, call in [
        (ObjectExists, lambda: put(store, data=b"other")),
        (ChecksumMismatch, lambda: store.put("k", [b"x"], 1)),
        (StorageThrottled, lambda: store.get("key")),
        (ObjectNotFound, lambda: store.get("absent")),
        (ObjectNotFound, lambda: store.head("absent")),
        (StorageUnavailable, lambda: store.delete(["key"])),
        (StorageRefused, lambda: store.get("key", -1)),
    ]:
        with pytest.raises(expected):
            await call()
    await put(store)
    assert await store.get("key", 5, 2) == b"da"
    assert [info.key async for info in store.list("")] == ["key"]
    assert operations(registry) == {
        ("put", "ok"): 3,
        ("put", "exists"): 1,
        ("put", "refused"): 1,
        ("get", "throttled"): 1,
        ("get", "not_found"): 1,
        ("get", "refused"): 1,
        ("get", "ok"): 1,
        ("head", "not_found"): 1,
        ("delete", "unavailable"): 1,
        ("list", "ok"): 1,
    }
    assert registry.get_sample_value("tidelog_storage_written_bytes_total") == 3 * len(DATA)
    assert registry.get_sample_value("tidelog_storage_read_bytes_total") == 2
    assert registry.get_sample_value("tidelog_storage_operation_duration_seconds_count", {"operation": "put"}) == 5


async def test_running_operations_are_shown_and_cancelled_ones_counted() -> None:
    store, registry = metered(("put", Fault.HANG))
    task = asyncio.get_running_loop().create_task(put(store))
    await asyncio.sleep(0)
    running = {"operation": "put"}
    assert registry.get_sample_value("tidelog_storage_operations_in_flight", running) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert registry.get_sample_value("tidelog_storage_operations_in_flight", running) == 0
    assert operations(registry) == {("put", "cancelled"): 1}


async def test_a_listing_that_its_caller_leaves_is_counted_once() -> None:
    store, registry = metered()
    await put(store, "a")
    await put(store, "b")
    listing = store.list("")
    async for _ in listing:
        break
    await listing.aclose()  # type: ignore[attr-defined]
    assert operations(registry) == {("put", "ok"): 2, ("list", "cancelled"): 1}


def test_every_metric_has_a_help_text_and_a_unit() -> None:
    registry = CollectorRegistry()
    StorageMetrics(registry)
    for family in registry.collect():
        assert family.documentation.endswith(".")
        assert family.name.startswith("tidelog_storage_")
    assert b"tidelog_storage_operations_total" in generate_latest(registry)


def test_latency_has_the_median_and_the_tail_it_was_given() -> None:
    latency = Latency(60, 400)
    assert latency.quantile_seconds(0.5) == pytest.approx(0.060)
    assert latency.quantile_seconds(0.99) == pytest.approx(0.400)
    assert latency.quantile_seconds(0.1) < 0.060 < latency.quantile_seconds(0.9) < 0.400
    entropy = SeededEntropy(5)
    drawn = sorted(latency.quantile_seconds(entropy.uniform(0, 1)) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(0.060, rel=0.05)
    assert drawn[19_800] == pytest.approx(0.400, rel=0.10)


@pytest.mark.parametrize(("p50", "p99"), [(0, 1), (-1, 1), (2, 1)])
def test_impossible_latencies_are_refused(p50: float, p99: float) -> None:
    with pytest.raises(ValueError, match="0 < p50 <= p99"):
        Latency(p50, p99)


async def test_every_operation_is_delayed_and_puts_are_worth_hedging() -> None:
    class Recorded(SystemClock):
        slept: list[float] = []  # noqa: RUF012

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    clock = Recorded()
    store = LatencyStore(MemoryStore(clock), clock, SeededEntropy(1), put=Latency(60, 60), get=Latency(25, 25))
    await put(store)
    await store.get("key")
    await store.head("key")
    _ = [info async for info in store.list("")]
    await store.delete(["key"])
    assert clock.slept == pytest.approx([0.060, 0.025, 0.025, 0.025, 0.060])
    assert store.hedged
    assert "PUT 60/60 ms" in store.name


async def test_faults_before_the_effect_leave_no_effect_and_those_after_do() -> None:
    inner = MemoryStore(CLOCK)
    store = FaultyStore(inner, SeededEntropy(1))
    store.inject("put", Fault.ERROR_BEFORE, Fault.THROTTLE, Fault.ERROR_AFTER, None)
    with pytest.raises(StorageUnavailable, match="before effect"):
        await put(store, "before")
    with pytest.raises(StorageThrottled):
        await put(store, "throttled")
    with pytest.raises(StorageUnavailable, match="after effect"):
        await put(store, "after")
    await put(store, "fine")
    assert [info.key async for info in inner.list("")] == ["after", "fine"]
    assert store.met == {Fault.ERROR_BEFORE: 1, Fault.THROTTLE: 1, Fault.ERROR_AFTER: 1, Fault.HANG: 0}


async def test_hanging_requests_go_on_when_released() -> None:
    store = FaultyStore(MemoryStore(CLOCK), SeededEntropy(1), FaultRates(hang=1.0))
    tasks = [asyncio.get_running_loop().create_task(put(store, f"{number}")) for number in range(3)]
    await asyncio.sleep(0)
    assert store.hanging == 3
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    assert store.hanging == 2
    store.heal()
    await asyncio.gather(*tasks[1:])
    assert store.hanging == 0
    assert [info.key async for info in store.list("")] == ["1", "2"]


async def test_rates_can_be_switched_and_limited_to_some_operations() -> None:
    store = FaultyStore(MemoryStore(CLOCK), SeededEntropy(1))
    await put(store)
    store.rates = FaultRates(error_before=1.0, operations=frozenset({"get"}))
    await put(store, "other")
    with pytest.raises(StorageUnavailable):
        await store.get("key")
    store.rates = FaultRates()
    assert await store.get("key") == DATA


async def outcomes(seed: int) -> list[str]:
    rates = FaultRates(error_before=0.2, error_after=0.2, throttle=0.2)
    store = FaultyStore(MemoryStore(CLOCK), SeededEntropy(seed), rates)
    results = []
    for number in range(300):
        try:
            await put(store, f"{number}")
            results.append("ok")
        except StorageUnavailable as error:
            results.append(str(error).partition(": ")[2])
    return results


async def test_the_same_seed_gives_the_same_faults_at_the_rates_asked_for() -> None:
    first = await outcomes(11)
    assert first == await outcomes(11)
    assert first != await outcomes(12)
    for outcome in set(first) - {"ok"}:
        assert 30 < first.count(outcome) < 90
    assert len(set(first)) == 4


async def test_a_listing_can_fail_half_way() -> None:
    store = FaultyStore(MemoryStore(CLOCK), SeededEntropy(1))
    for name in "abc":
        await put(store, name)
    store.inject("list", Fault.ERROR_AFTER)
    seen = []
    with pytest.raises(StorageUnavailable):
        async for info in store.list(""):
            seen.append(info.key)
    assert seen == ["a"]
