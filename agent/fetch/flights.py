"""One piece of work for everybody who wants its result at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from agent.fetch.pool import Entry
from runtime.tasks import Supervisor
from storage.store import StorageUnavailable

T = TypeVar("T")


class Flight(Generic[T]):
    """Work under way. ``waiters`` is how many pins its entry needs when it arrives."""

    __slots__ = ("entry", "error", "landed", "waiters")

    def __init__(self) -> None:
        self.waiters = 0
        self.landed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.entry: Entry[T] | None = None
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Flights by key. The work runs in a supervised task of its own: a waiter that is cancelled leaves it alone."""

    def __init__(self, name: str, supervisor: Supervisor) -> None:
        self._name = name
        self._supervisor = supervisor
        self._flights: dict[Hashable, Flight[T]] = {}

    def is_running(self, key: Hashable) -> bool:
        return key in self._flights

    def launch(self, key: Hashable, work: Callable[[Flight[T]], Coroutine[Any, Any, Entry[T]]]) -> Flight[T]:
        """Start ``work(flight)``. It returns an entry pinned ``flight.waiters`` times, with no await in between."""
        assert key not in self._flights
        flight: Flight[T] = Flight()
        self._flights[key] = flight
        self._supervisor.start(f"{self._name} {key}", self._fly(key, flight, work))
        return flight

    def running(self, key: Hashable) -> Flight[T] | None:
        return self._flights.get(key)

    async def wait(self, flight: Flight[T]) -> Entry[T]:
        """The entry, pinned once for the caller. Raises what the work raised."""
        flight.waiters += 1
        try:
            if not flight.landed.done():
                await asyncio.wait([flight.landed])
        except asyncio.CancelledError:
            if flight.entry is not None:
                flight.entry.unpin()
            else:
                flight.waiters -= 1
            raise
        if flight.error is not None:
            raise flight.error
        assert flight.entry is not None
        return flight.entry

    async def _fly(
        self, key: Hashable, flight: Flight[T], work: Callable[[Flight[T]], Coroutine[Any, Any, Entry[T]]]
    ) -> None:
        try:
            flight.entry = await work(flight)
        except asyncio.CancelledError:
            flight.error = StorageUnavailable(f"{self._name} {key}: the process is stopping")
            raise
        except Exception as error:
            flight.error = error
        finally:
            del self._flights[key]
            flight.landed.set_result(None)
