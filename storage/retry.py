"""Repeats what failed for a passing reason, within bounds, and never in step with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from runtime.clock import Clock, Entropy
from storage.metrics import OPERATIONS, StorageMetrics
from storage.store import Chunk, ObjectInfo, ObjectStore, StorageThrottled, StorageUnavailable

_log = structlog.get_logger("tidelog.storage")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how long, and how patiently.

    The wait before attempt ``n + 1`` is uniform in [0, min(``wait_ms_max``, ``wait_ms`` * 2^(n-1))] ("full jitter",
    AWS Architecture Blog, "Exponential Backoff And Jitter"); after throttling the range is four times as wide.
    """

    attempts_max: int = 5
    deadline_ms: int = 30_000
    wait_ms: int = 50
    wait_ms_max: int = 5_000

    def wait_range_seconds(self, attempt: int, throttled: bool) -> float:
        """The longest wait after attempt number ``attempt`` (from 1) failed."""
        scale = 4 if throttled else 1
        return min(self.wait_ms_max, scale * self.wait_ms * 2.0 ** min(attempt - 1, 30)) / 1000


class RetryingStore:
    """``inner``, with :class:`StorageUnavailable` retried up to the policy's attempts and deadline.

    The deadline also cuts off an attempt that hangs. What is finally raised is the last attempt's error, or
    :class:`StorageUnavailable` when time ran out. Cancellation passes through at once.
    """

    def __init__(
        self, inner: ObjectStore, policy: RetryPolicy, clock: Clock, entropy: Entropy, metrics: StorageMetrics
    ) -> None:
        self.name = inner.name
        self.hedged = inner.hedged
        self._inner = inner
        self._policy = policy
        self._clock = clock
        self._entropy = entropy
        self._retries = {name: metrics.retries.labels(name) for name in OPERATIONS}
        self._given_up = {name: metrics.given_up.labels(name) for name in OPERATIONS}

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        await self._run("put", key, lambda: self._inner.put(key, chunks, crc32c))

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return await self._run("get", key, lambda: self._inner.get(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._run("head", key, lambda: self._inner.head(key))

    async def delete(self, keys: Sequence[str]) -> None:
        await self._run("delete", f"{len(keys)} objects", lambda: self._inner.delete(keys))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """A listing that fails half-way starts again and skips what it has already yielded.

        The attempts are counted afresh whenever one of them got further: a long listing may meet many errors.
        """
        last = ""
        attempt = 0
        while True:
            try:
                async for info in self._inner.list(prefix):
                    if info.key > last:
                        last, attempt = info.key, 0
                        yield info
                return
            except StorageUnavailable as error:
                attempt += 1
                if attempt >= self._policy.attempts_max:
                    self._given_up["list"].inc()
                    raise
                await self._pause("list", prefix, attempt, error, self._policy.deadline_ms / 1000)

    async def check(self) -> None:
        """Not retried: whoever starts the process wants to hear of a wrong endpoint now."""
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()

    async def _run(self, operation: str, key: str, attempt_once: Callable[[], Awaitable[Result]]) -> Result:
        deadline = self._clock.monotonic() + self._policy.deadline_ms / 1000
        attempt = 0
        while True:
            attempt += 1
            remaining = deadline - self._clock.monotonic()
            try:
                async with asyncio.timeout(remaining):
                    return await attempt_once()
            except TimeoutError as error:
                self._given_up[operation].inc()
                raise StorageUnavailable(
                    f"{operation} {key}: no result within {self._policy.deadline_ms} ms ({attempt} attempts)"
                ) from error
            except StorageUnavailable as error:
                remaining = deadline - self._clock.monotonic()
                if attempt >= self._policy.attempts_max or remaining <= 0:
                    self._given_up[operation].inc()
                    raise
                await self._pause(operation, key, attempt, error, remaining)

    async def _pause(self, operation: str, key: str, attempt: int, error: StorageUnavailable, remaining: float) -> None:
        longest = self._policy.wait_range_seconds(attempt, isinstance(error, StorageThrottled))
        wait = min(self._entropy.uniform(0, longest), remaining)
        self._retries[operation].inc()
        _log.info("storage_retry", operation=operation, key=key, attempt=attempt, wait_seconds=wait, error=str(error))
        await self._clock.sleep(wait)
