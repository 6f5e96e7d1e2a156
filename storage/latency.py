"""Makes a fast store as slow as a distant one: for benchmarks on one machine."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from runtime.clock import Clock, Entropy
from storage.store import Chunk, ObjectInfo, ObjectStore

_NORMAL = NormalDist()
_Z99 = _NORMAL.inv_cdf(0.99)


@dataclass(frozen=True, slots=True)
class Latency:
    """A lognormal distribution with this median and 99th percentile, in milliseconds."""

    p50_ms: float
    p99_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.p50_ms <= self.p99_ms:
            raise ValueError(f"latency needs 0 < p50 <= p99, got p50={self.p50_ms} p99={self.p99_ms} ms")

    def quantile_seconds(self, share: float) -> float:
        """The latency that ``share`` (0 to 1, exclusive) of the requests stay below."""
        sigma = math.log(self.p99_ms / self.p50_ms) / _Z99
        return self.p50_ms / 1000 * math.exp(sigma * _NORMAL.inv_cdf(share))


class LatencyStore:
    """``inner`` behind a delay drawn for each request. Counts as a network store, so puts are hedged."""

    hedged = True

    def __init__(self, inner: ObjectStore, clock: Clock, entropy: Entropy, put: Latency, get: Latency) -> None:
        self.name = f"{inner.name} (PUT {put.p50_ms:g}/{put.p99_ms:g} ms, GET {get.p50_ms:g}/{get.p99_ms:g} ms)"
        self._inner = inner
        self._clock = clock
        self._entropy = entropy
        self._put = put
        self._get = get

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        await self._delay(self._put)
        await self._inner.put(key, chunks, crc32c)

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        await self._delay(self._get)
        return await self._inner.get(key, start, length)

    async def head(self, key: str) -> ObjectInfo:
        await self._delay(self._get)
        return await self._inner.head(key)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._delay(self._put)
        await self._inner.delete(keys)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._delay(self._get)
        async for info in self._inner.list(prefix):
            yield info

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        await self._inner.close()

    async def _delay(self, latency: Latency) -> None:
        await self._clock.sleep(latency.quantile_seconds(self._entropy.uniform(1e-6, 1 - 1e-6)))
