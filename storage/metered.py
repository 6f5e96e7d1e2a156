"""Counts every request to an object store: kind, outcome, time, bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from runtime.clock import Clock
from storage.metrics import OPERATIONS, OUTCOMES, StorageMetrics
from storage.store import (
    Chunk,
    ObjectExists,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    StorageRefused,
    StorageThrottled,
)


def outcome_of(error: BaseException) -> str:
    """The ``outcome`` label of a failed operation."""
    match error:
        case ObjectNotFound():
            return "not_found"
        case ObjectExists():
            return "exists"
        case StorageThrottled():
            return "throttled"
        case StorageRefused():
            return "refused"
        case asyncio.CancelledError() | GeneratorExit():
            return "cancelled"
        case _:
            return "unavailable"


class MeteredStore:
    """``inner``, with every call counted in ``metrics``. Wrap it inside the retries, so that attempts are seen."""

    def __init__(self, inner: ObjectStore, metrics: StorageMetrics, clock: Clock) -> None:
        self.name = inner.name
        self.hedged = inner.hedged
        self._inner = inner
        self._clock = clock
        self._written = metrics.written
        self._read = metrics.read
        self._in_flight = {name: metrics.in_flight.labels(name) for name in OPERATIONS}
        self._duration = {name: metrics.duration.labels(name) for name in OPERATIONS}
        self._outcomes = {
            (name, outcome): metrics.operations.labels(name, outcome) for name in OPERATIONS for outcome in OUTCOMES
        }

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        with self._measured("put"):
            await self._inner.put(key, chunks, crc32c)
        self._written.inc(sum(map(len, chunks)))

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._measured("get"):
            data = await self._inner.get(key, start, length)
        self._read.inc(len(data))
        return data

    async def head(self, key: str) -> ObjectInfo:
        with self._measured("head"):
            return await self._inner.head(key)

    async def delete(self, keys: Sequence[str]) -> None:
        with self._measured("delete"):
            await self._inner.delete(keys)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """One listing is one operation however many pages it takes; its time includes the caller's."""
        with self._measured("list"):
            async for info in self._inner.list(prefix):
                yield info

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        outcome = "ok"
        started = self._clock.monotonic()
        self._in_flight[operation].inc()
        try:
            yield
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            self._in_flight[operation].dec()
            self._duration[operation].observe(self._clock.monotonic() - started)
            self._outcomes[operation, outcome].inc()
