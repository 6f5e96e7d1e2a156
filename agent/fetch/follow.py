"""Which partitions this agent hears of: those that somebody fetched of late.

A partition is followed *before* its extents are asked for, so no commit falls between the answer and the announcements.
What was known of it from before is forgotten at that moment: announcements were missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from metadata.client import Subscription
from metadata.model import MetadataUnavailable, TopicId
from runtime.clock import Clock
from runtime.tasks import Supervisor

IDLE_SECONDS = 120.0
"""A partition nobody fetched for so long is followed no more."""
SWEEP_SECONDS = 30.0

Partition = tuple[TopicId, int]


class Follower:
    """Keeps one subscription's partitions. ``forget`` is told what can no longer be relied on. One event loop."""

    def __init__(self, clock: Clock, supervisor: Supervisor, forget: Callable[[Partition], None]) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._forget = forget
        self._subscription: Subscription | None = None
        self._used: dict[Partition, float] = {}
        """Followed partitions, and when each was last wanted."""
        self._wanted: dict[Partition, None] = {}
        self._asking: asyncio.Future[None] | None = None
        self._now = clock.monotonic()

    def start(self, subscription: Subscription) -> None:
        """Follow through ``subscription`` from now on."""
        self._subscription = subscription
        self._supervisor.start("follow-sweep", self._sweep())

    def __len__(self) -> int:
        return len(self._used)

    def missing(self, partitions: Sequence[Partition]) -> list[Partition]:
        """Those that are not followed yet. The others count as wanted now."""
        used, now = self._used, self._now
        missing = []
        for partition in partitions:
            if partition in used:
                used[partition] = now
            else:
                missing.append(partition)
        return missing

    async def follow(self, partitions: Sequence[Partition]) -> None:
        """Return when all of ``partitions`` are followed. What many ask for at once is one call.

        :raises MetadataUnavailable: they are not; cancelling leaves the others' question alone.
        """
        if self._subscription is None:
            raise MetadataUnavailable("this agent has not subscribed yet")
        self._wanted.update(dict.fromkeys(partitions))
        while any(partition not in self._used for partition in partitions):
            if self._asking is None:
                self._asking = asyncio.get_running_loop().create_future()
                self._supervisor.start("follow", self._ask(self._asking, self._subscription))
            asking = self._asking
            await asyncio.wait([asking])
            error = asking.exception()
            if error is not None:
                raise MetadataUnavailable(str(error)) from error
            self._wanted.update((partition, None) for partition in partitions if partition not in self._used)

    async def _ask(self, asking: asyncio.Future[None], subscription: Subscription) -> None:
        partitions = [partition for partition in self._wanted if partition not in self._used]
        self._wanted.clear()
        error: Exception | None = None
        try:
            await subscription.follow(partitions)
        except MetadataUnavailable as unavailable:
            error = unavailable
        except BaseException:
            error = MetadataUnavailable("the process is stopping")
            raise
        else:
            for partition in partitions:
                self._forget(partition)
                self._used[partition] = self._now
        finally:
            self._asking = None
            if error is None:
                asking.set_result(None)
            else:
                asking.set_exception(error)
                asking.exception()  # nobody may be waiting any more

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            self.sweep()

    def sweep(self) -> None:
        """Let go of what nobody wants. Wanted times are as coarse as these looks."""
        self._now = self._clock.monotonic()
        idle = [partition for partition, used in self._used.items() if used + IDLE_SECONDS <= self._now]
        for partition in idle:
            del self._used[partition]
            self._forget(partition)
        if idle and self._subscription is not None:
            self._subscription.unfollow(idle)
