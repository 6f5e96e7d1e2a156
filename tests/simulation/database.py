"""The metadata store of a simulated cluster: durable memory that several processes share, as they share PostgreSQL.

Writes take time, and may fail before or after their effect; the effect of one under way may still come after its
process has died, but never after another generation has begun. Leadership is a session and a lease.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metadata.model import Extent, TopicId
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import Change, Deposed, StoreSnapshot, StoreUnavailable
from tests.simulation.loop import PROCESS, SimLoop, SimProcess
from tests.simulation.object_store import WORLD
from tests.simulation.trace import Trace

LEASE_SECONDS = 4.0
LOOK_SECONDS = 0.05


@dataclass(slots=True)
class DatabaseWeather:
    """Shares (0 to 1) of requests that meet each fault."""

    error_before: float = 0.0
    error_after: float = 0.0
    slow: float = 0.0
    """A write takes up to three seconds: a slow disk."""
    session_lost: float = 0.0
    """A renewal finds the leader's session gone."""
    away: bool = False


class Database:
    """What all sessions see."""

    def __init__(self, loop: SimLoop, rng: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.weather = DatabaseWeather()
        self.store = MemoryMetadataStore()
        self.generation = 0
        self.holder: SimMetadataStore | None = None
        self.renewals = 0
        self.writing = 0
        """Writes under way: what they lock, a reload or a new leader waits for."""
        self.on_write: list[Callable[[int, Sequence[Change]], None]] = []
        """The referee's looks at what is about to become durable."""
        self.after_write: list[Callable[[Sequence[Change]], None]] = []
        """And at what just has."""

    def process_died(self, process: SimProcess) -> None:
        """Its session ends with its connection."""
        if self.holder is not None and self.holder.process is process:
            self.holder = None


class SimMetadataStore:
    """Implements ``metadata.store.port.MetadataStore``: one process's session."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._generation = -1
        self._sure = True
        self.process = PROCESS.get()

    # --- leadership ---------------------------------------------------------------------------------------

    async def lead(self) -> int:
        database = self._database
        seen, since = -1, database.loop.time()
        while True:
            self._check_reachable()
            now = database.loop.time()
            if database.renewals != seen:
                seen, since = database.renewals, now
            if database.writing == 0 and (database.holder is None or now - since > LEASE_SECONDS):
                break
            await asyncio.sleep(LOOK_SECONDS)
        database.holder = self
        database.renewals += 1
        database.generation += 1
        self._generation = database.generation
        database.trace.note(self.process, "leads", self._generation)
        return self._generation

    async def renew(self) -> None:
        database = self._database
        await asyncio.sleep(0.001)
        self._check()
        if database.rng.random() < database.weather.session_lost and database.holder is self:
            database.trace.note(self.process, "session_lost")
            database.holder = None  # from now on another may lead
            self._sure = False
            raise StoreUnavailable("simulated: the session is gone")
        if database.holder is None:
            database.holder = self
        self._sure = True
        database.renewals += 1

    def sure(self) -> bool:
        return self._sure

    # --- reading and writing ------------------------------------------------------------------------------

    async def open(self, new_cluster_id: str) -> StoreSnapshot:
        await asyncio.sleep(0.005)
        self._check()
        return await self._database.store.open(new_cluster_id)

    async def reload(self) -> StoreSnapshot:
        while self._database.writing:
            await asyncio.sleep(LOOK_SECONDS)
        self._check()
        return await self._database.store.reload()

    async def write(self, changes: Sequence[Change]) -> None:
        database, process = self._database, self.process
        rng, weather = database.rng, database.weather
        self._check_reachable()
        seconds = 0.001 + rng.expovariate(1 / 0.002)
        if rng.random() < weather.slow:
            seconds += rng.uniform(0.1, 3.0)
            database.trace.note(process, "slow_write", f"{seconds:.3f}")
        draw = rng.random()
        fails_before = draw < weather.error_before
        fails_after = not fails_before and draw < weather.error_before + weather.error_after
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        kept = list(changes)
        database.writing += 1

        def happen() -> None:
            database.writing -= 1
            error: Exception | None = None
            if self._generation != database.generation:
                error = Deposed(f"generation {database.generation} leads, not {self._generation}")
            elif fails_before:
                error = StoreUnavailable("simulated: the write failed")
            else:
                for look in database.on_write:
                    look(self._generation, kept)
                try:
                    _now(database.store.write(kept))
                except Exception as problem:
                    error = problem
                if error is None:
                    for look_back in database.after_write:
                        look_back(kept)
                if error is None and fails_after:
                    error = StoreUnavailable("simulated: the write's outcome is unknown")
            if error is not None:
                database.trace.note(process, "write_failed", error)
            context = None if process is None else process.context
            database.loop.call_later(seconds / 2, settle, error, context=context)

        def settle(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        database.loop.call_later(seconds / 2, happen, context=WORLD.copy())
        await done

    async def find_extents(
        self, topic_id: TopicId, partition: int, offset: int, byte_max: int, before_offset: int
    ) -> list[Extent]:
        await asyncio.sleep(0.001 + self._database.rng.expovariate(1 / 0.002))
        self._check_reachable()
        return await self._database.store.find_extents(topic_id, partition, offset, byte_max, before_offset)

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        await asyncio.sleep(0.002)
        self._check_reachable()
        return await self._database.store.find_extent_by_timestamp(topic_id, partition, timestamp_ms)

    async def close(self) -> None:
        if self._database.holder is self:
            self._database.holder = None

    async def purge(self, row_max: int, now_ms: int) -> bool:
        await asyncio.sleep(0.002)
        self._check()
        return await self._database.store.purge(row_max, now_ms)

    def __getattr__(self, name: str) -> Any:
        """All other reads: the memory store's, a moment later."""
        found = getattr(self._database.store, name)

        async def read(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0.002)
            self._check_reachable()
            return await found(*arguments, **options)

        return read

    # --- what may be wrong --------------------------------------------------------------------------------

    def _check_reachable(self) -> None:
        database = self._database
        if database.weather.away:
            raise StoreUnavailable("simulated: the database is away")

    def _check(self) -> None:
        self._check_reachable()
        if self._generation != self._database.generation:
            raise Deposed(f"generation {self._database.generation} leads, not {self._generation}")


def _now(work: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")
