"""The bucket of a simulated cluster: objects in memory, and one client of it for each process.

A request has a latency, and may meet an error before or after its effect, throttling, a straggler, or silence. A put
that was cancelled, or whose process died, may take effect all the same, later.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import crc32c as crc

from runtime.clock import Clock
from storage.memory import MemoryStore
from storage.store import ChecksumMismatch, Chunk, ObjectInfo, StorageThrottled, StorageUnavailable
from tests.simulation.loop import PROCESS, SimLoop
from tests.simulation.trace import Trace


@dataclass(slots=True)
class BucketWeather:
    """Shares (0 to 1) of requests that meet each fault."""

    error_before: float = 0.0
    error_after: float = 0.0
    throttled: float = 0.0
    straggler: float = 0.0
    """It takes up to ten seconds."""
    silent: float = 0.0
    """No answer, and an effect or not."""
    away: bool = False
    """Nothing works."""


class Bucket:
    """All objects, and what everybody did to them."""

    def __init__(self, loop: SimLoop, rng: random.Random, clock: Clock, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.weather = BucketWeather()
        self.objects = MemoryStore(clock)
        self.before_delete: list[Callable[[Sequence[str]], None]] = []
        """The referee's looks at what is about to be deleted."""
        self.requests = 0

    def keys(self) -> list[str]:
        return sorted(self.objects._objects)

    async def run(self, operation: str, what: str, median_ms: float, effect: Callable[[], Any]) -> Any:
        """One request of the process that runs now: ``effect()`` happens once, never, or after nobody waits for it."""
        self.requests += 1
        rng, weather = self.rng, self.weather
        process = PROCESS.get()
        seconds = median_ms / 1000 * math.exp(rng.gauss(0.0, 0.5))
        draw, fate = rng.random(), ""
        for share, name in (
            (weather.error_before, "error before"),
            (weather.error_after, "error after"),
            (weather.throttled, "throttled"),
            (weather.straggler, "straggler"),
            (weather.silent, "silent"),
        ):
            if draw < share:
                fate = name
                break
            draw -= share
        if weather.away:
            fate = "error before"
        if fate:
            self.trace.note(process, "bucket", operation, what, fate)
        if fate == "straggler":
            seconds += rng.uniform(0.2, 10.0)
        if fate in ("error before", "throttled"):
            await asyncio.sleep(seconds)
            kind = StorageThrottled if fate == "throttled" else StorageUnavailable
            raise kind(f"{operation} {what}: simulated")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def happen() -> None:
            try:
                outcome, error = effect(), None
            except Exception as problem:
                outcome, error = None, problem
            answer = self.loop.call_later(
                seconds / 2, settle, outcome, error, context=None if process is None else process.context
            )
            if fate == "silent":
                answer.cancel()

        def settle(outcome: Any, error: Exception | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            elif fate == "error after":
                done.set_exception(StorageUnavailable(f"{operation} {what}: simulated, after its effect"))
            else:
                done.set_result(outcome)

        nobody = WORLD.copy()
        timer = None
        if fate != "silent" or rng.random() < 0.5:
            timer = self.loop.call_later(seconds / 2, happen, context=nobody)
        try:
            return await done
        except asyncio.CancelledError:
            if timer is not None and rng.random() < 0.5:
                timer.cancel()
            raise


def _world_context() -> Any:
    import contextvars

    context = contextvars.copy_context()
    context.run(PROCESS.set, None)
    return context


WORLD = _world_context()
"""Where things happen that no process does."""


class SimObjectStore:
    """Implements ``storage.store.ObjectStore`` for the process that runs."""

    hedged = True

    def __init__(self, bucket: Bucket) -> None:
        self.name = "sim://bucket"
        self._bucket = bucket

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        data = b"".join(chunks)
        if crc.crc32c(data) != crc32c:
            raise ChecksumMismatch(f"put {key}: wrong CRC32C")
        await self._bucket.run("put", key, 40.0, lambda: _now(self._bucket.objects.put(key, [data], crc32c)))

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        found: bytes = await self._bucket.run(
            "get", key, 15.0, lambda: _now(self._bucket.objects.get(key, start, length))
        )
        return found

    async def head(self, key: str) -> ObjectInfo:
        found: ObjectInfo = await self._bucket.run("head", key, 10.0, lambda: _now(self._bucket.objects.head(key)))
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        wanted = list(keys)

        def effect() -> None:
            for look in self._bucket.before_delete:
                look(wanted)
            self._bucket.trace.note("bucket", "deleted", *wanted)
            _now(self._bucket.objects.delete(wanted))

        await self._bucket.run("delete", f"{len(wanted)} objects", 20.0, effect)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        def effect() -> list[ObjectInfo]:
            found = self._bucket.objects._objects
            return [
                ObjectInfo(key, len(found[key].data), found[key].modified_ms)
                for key in sorted(found)
                if key.startswith(prefix)
            ]

        for info in await self._bucket.run("list", prefix, 20.0, effect):
            yield info

    async def check(self) -> None:
        await self._bucket.run("check", "", 20.0, lambda: None)

    async def close(self) -> None: ...


def _now(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")
