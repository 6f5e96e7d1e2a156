"""A store that fails on purpose, repeatably: before or after the effect, by throttling, or by hanging."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from crc32c import crc32c as crc32c_of

from runtime.clock import Entropy
from storage.metrics import OPERATIONS
from storage.store import (
    ChecksumMismatch,
    Chunk,
    ObjectInfo,
    ObjectStore,
    StorageThrottled,
    StorageUnavailable,
)

Result = TypeVar("Result")


class Fault(Enum):
    """What goes wrong with one request."""

    ERROR_BEFORE = "error before effect"
    ERROR_AFTER = "error after effect"
    THROTTLE = "throttled"
    HANG = "hang until released"


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The share (0 to 1) of requests that meet each fault; together at most 1. ``operations`` limits whom it hits."""

    error_before: float = 0.0
    error_after: float = 0.0
    throttle: float = 0.0
    hang: float = 0.0
    operations: frozenset[str] = frozenset(OPERATIONS)

    def choose(self, operation: str, draw: float) -> Fault | None:
        """The fault that ``draw`` (0 to 1) picks for a request of this kind."""
        if operation not in self.operations:
            return None
        for fault, rate in (
            (Fault.ERROR_BEFORE, self.error_before),
            (Fault.ERROR_AFTER, self.error_after),
            (Fault.THROTTLE, self.throttle),
            (Fault.HANG, self.hang),
        ):
            if draw < rate:
                return fault
            draw -= rate
        return None


class FaultyStore:
    """``inner`` with faults at ``rates`` (replace them at any time) or as scripted by :meth:`inject`.

    Repeatable: one draw of ``entropy`` per request. Unlike a real store it always verifies the CRC32C of a put.
    """

    def __init__(self, inner: ObjectStore, entropy: Entropy, rates: FaultRates | None = None) -> None:
        self.name = f"{inner.name} (faulty)"
        self.hedged = inner.hedged
        self.rates = rates if rates is not None else FaultRates()
        self.met: dict[Fault, int] = dict.fromkeys(Fault, 0)
        """How many requests met each fault so far."""
        self._inner = inner
        self._entropy = entropy
        self._script: defaultdict[str, deque[Fault | None]] = defaultdict(deque)
        self._hanging: set[asyncio.Future[None]] = set()

    def inject(self, operation: str, *faults: Fault | None) -> None:
        """The next requests of this kind meet these faults (None: none), before the rates count again."""
        assert operation in OPERATIONS, operation
        self._script[operation].extend(faults)

    @property
    def hanging(self) -> int:
        """Requests that hang now."""
        return len(self._hanging)

    def release(self) -> None:
        """Let every hanging request go on; later ones may hang again."""
        for future in self._hanging:
            if not future.done():
                future.set_result(None)

    def heal(self) -> None:
        """No more faults, and nothing hangs."""
        self.rates = FaultRates()
        self._script.clear()
        self.release()

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        checksum = 0
        for chunk in chunks:
            checksum = crc32c_of(chunk, checksum)
        if checksum != crc32c:
            raise ChecksumMismatch(f"put {key}: the bytes have CRC32C {checksum:#010x}, not {crc32c:#010x}")
        await self._run("put", key, lambda: self._inner.put(key, chunks, crc32c))

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return await self._run("get", key, lambda: self._inner.get(key, start, length))

    async def head(self, key: str) -> ObjectInfo:
        return await self._run("head", key, lambda: self._inner.head(key))

    async def delete(self, keys: Sequence[str]) -> None:
        await self._run("delete", f"{len(keys)} objects", lambda: self._inner.delete(keys))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """An error "after effect" comes after the first object, as when a later page fails."""
        fault = await self._meet("list", prefix)
        async for info in self._inner.list(prefix):
            yield info
            if fault is Fault.ERROR_AFTER:
                break
        if fault is Fault.ERROR_AFTER:
            raise StorageUnavailable(f"list {prefix}: injected error after effect")

    async def check(self) -> None:
        await self._inner.check()

    async def close(self) -> None:
        self.release()
        await self._inner.close()

    async def _run(self, operation: str, key: str, work: Callable[[], Awaitable[Result]]) -> Result:
        fault = await self._meet(operation, key)
        result = await work()
        if fault is Fault.ERROR_AFTER:
            raise StorageUnavailable(f"{operation} {key}: injected error after effect")
        return result

    async def _meet(self, operation: str, key: str) -> Fault | None:
        """Act out the faults that come before the effect; returns what is left to do after it."""
        draw = self._entropy.uniform(0, 1)
        script = self._script[operation]
        fault = script.popleft() if script else self.rates.choose(operation, draw)
        if fault is None:
            return None
        self.met[fault] += 1
        if fault is Fault.ERROR_BEFORE:
            raise StorageUnavailable(f"{operation} {key}: injected error before effect")
        if fault is Fault.THROTTLE:
            raise StorageThrottled(f"{operation} {key}: injected throttling")
        if fault is Fault.HANG:
            await self._hang()
            return None
        return fault

    async def _hang(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._hanging.add(future)
        try:
            await future
        finally:
            self._hanging.discard(future)
