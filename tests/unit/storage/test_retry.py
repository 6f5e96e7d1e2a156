"""Retries: which errors, how often, how long, how patiently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry

from runtime.clock import SeededEntropy, SystemClock
from storage.faults import Fault, FaultyStore
from storage.memory import MemoryStore
from storage.metrics import StorageMetrics
from storage.retry import RetryingStore, RetryPolicy
from storage.store import (
    Chunk,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    StorageError,
    StorageRefused,
    StorageThrottled,
    StorageUnavailable,
)


class ManualClock:
    """Sleeping moves it on at once."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class LongestEntropy(SeededEntropy):
    """Every wait is as long as it may be."""

    def uniform(self, low: float, high: float) -> float:
        return high


class ScriptedStore(MemoryStore):
    """Its head answers with the given errors, each after ``seconds`` of the clock."""

    def __init__(self, clock: ManualClock, *errors: StorageError, seconds: float = 0.0) -> None:
        super().__init__(clock)
        self.errors = list(errors)
        self.calls = 0
        self._seconds = seconds
        self._manual = clock

    async def head(self, key: str) -> ObjectInfo:
        self.calls += 1
        self._manual.seconds += self._seconds
        if self.errors:
            raise self.errors.pop(0)
        return ObjectInfo(key, 1, 1)


def retrying(
    inner: MemoryStore | FaultyStore, clock: ManualClock, policy: RetryPolicy | None = None
) -> tuple[RetryingStore, Callable[[str, str], float]]:
    registry = CollectorRegistry()
    store = RetryingStore(inner, policy or RetryPolicy(), clock, LongestEntropy(1), StorageMetrics(registry))

    def count(name: str, operation: str) -> float:
        return registry.get_sample_value(f"tidelog_storage_{name}_total", {"operation": operation}) or 0.0

    return store, count


async def test_waits_double_up_to_a_limit_and_attempts_are_bounded() -> None:
    clock = ManualClock()
    inner = ScriptedStore(clock, *(StorageUnavailable(f"error {number}") for number in range(20)))
    policy = RetryPolicy(attempts_max=6, deadline_ms=600_000, wait_ms=100, wait_ms_max=1000)
    store, count = retrying(inner, clock, policy)
    with pytest.raises(StorageUnavailable, match="error 5"):
        await store.head("key")
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert inner.calls == 6
    assert (count("retries", "head"), count("given_up", "head")) == (5, 1)


async def test_throttling_waits_longer() -> None:
    clock = ManualClock()
    inner = ScriptedStore(clock, StorageThrottled("slow down"), StorageUnavailable("error"))
    store, _ = retrying(inner, clock, RetryPolicy(wait_ms=100))
    assert (await store.head("key")).byte_length == 1
    assert clock.slept == [0.4, 0.2]


async def test_waits_are_spread_over_their_whole_range() -> None:
    clock = ManualClock()
    inner = ScriptedStore(clock, *(StorageUnavailable("error") for _ in range(200)))
    metrics = StorageMetrics(CollectorRegistry())
    policy = RetryPolicy(attempts_max=300, deadline_ms=10**9, wait_ms=1000, wait_ms_max=1000)
    await RetryingStore(inner, policy, clock, SeededEntropy(3), metrics).head("key")
    assert min(clock.slept) < 0.05 and max(clock.slept) > 0.95


@pytest.mark.parametrize("error", [ObjectNotFound, ObjectExists, StorageRefused])
async def test_what_will_not_change_is_not_retried(error: type[StorageError]) -> None:
    clock = ManualClock()
    inner = ScriptedStore(clock, error("as it is"))
    store, count = retrying(inner, clock)
    with pytest.raises(error):
        await store.head("key")
    assert inner.calls == 1
    assert (count("retries", "head"), count("given_up", "head")) == (0, 0)


async def test_one_deadline_covers_all_attempts_and_waits() -> None:
    clock = ManualClock()
    inner = ScriptedStore(clock, *(StorageUnavailable("error") for _ in range(100)), seconds=3.0)
    policy = RetryPolicy(attempts_max=100, deadline_ms=10_000, wait_ms=1000, wait_ms_max=1000)
    store, count = retrying(inner, clock, policy)
    with pytest.raises(StorageUnavailable):
        await store.head("key")
    assert clock.seconds - 1000 <= 13.0, "at most one attempt beyond the deadline, which the timeout cuts off"
    assert inner.calls == 3
    assert count("given_up", "head") == 1


async def test_an_attempt_that_hangs_is_cut_off_at_the_deadline() -> None:
    faulty = FaultyStore(MemoryStore(SystemClock()), SeededEntropy(1))
    faulty.inject("put", Fault.HANG)
    metrics = StorageMetrics(CollectorRegistry())
    store = RetryingStore(faulty, RetryPolicy(deadline_ms=50), SystemClock(), SeededEntropy(1), metrics)
    with pytest.raises(StorageUnavailable, match="no result within 50 ms"):
        await store.put("key", [b""], 0)
    assert faulty.hanging == 0


async def test_cancelling_ends_the_wait_at_once() -> None:
    faulty = FaultyStore(MemoryStore(SystemClock()), SeededEntropy(1))
    faulty.inject("get", *[Fault.ERROR_BEFORE] * 3)
    metrics = StorageMetrics(CollectorRegistry())
    store = RetryingStore(faulty, RetryPolicy(wait_ms=600_000, wait_ms_max=600_000, deadline_ms=600_000),
                          SystemClock(), LongestEntropy(1), metrics)  # fmt: skip
    task = asyncio.get_running_loop().create_task(store.get("key"))
    while faulty.met[Fault.ERROR_BEFORE] == 0:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert faulty.met[Fault.ERROR_BEFORE] == 1


class BrokenListing(MemoryStore):
    """Lists ``run`` objects further each time before it fails."""

    def __init__(self, clock: ManualClock, run: int) -> None:
        super().__init__(clock)
        self._run = run
        self._good = 0
        self.listings = 0

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self.listings += 1
        self._good += self._run
        seen = 0
        async for info in super().list(prefix):
            if seen == self._good:
                raise StorageUnavailable("a page failed")
            seen += 1
            yield info


async def filled(store: MemoryStore, count: int) -> Sequence[Chunk]:
    for number in range(count):
        await store.put(f"{number:03}", [b"x"], 0)
    return []


async def test_a_broken_listing_goes_on_where_it_was_as_long_as_it_gets_further() -> None:
    clock = ManualClock()
    inner = BrokenListing(clock, run=2)
    await filled(inner, 20)
    store, _ = retrying(inner, clock, RetryPolicy(attempts_max=3))
    assert [info.key async for info in store.list("")] == [f"{number:03}" for number in range(20)]
    assert inner.listings == 10


async def test_a_listing_that_gets_nowhere_ends() -> None:
    clock = ManualClock()
    inner = BrokenListing(clock, run=0)
    await filled(inner, 3)
    store, count = retrying(inner, clock, RetryPolicy(attempts_max=3))
    with pytest.raises(StorageUnavailable):
        _ = [info async for info in store.list("")]
    assert inner.listings == 3
    assert count("given_up", "list") == 1


async def test_check_is_not_retried() -> None:
    class Failing(MemoryStore):
        calls = 0

        async def check(self) -> None:
            self.calls += 1
            raise StorageUnavailable("nobody there")

    inner = Failing(ManualClock())
    store, _ = retrying(inner, ManualClock())
    with pytest.raises(StorageUnavailable):
        await store.check()
    assert inner.calls == 1
