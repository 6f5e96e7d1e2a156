"""Fetches that wait for records, woken by the commit that brings them.

Waiters are found by partition, so a commit costs what it touches, however many others wait. The only timer is
each fetch's own ``max_wait_ms`` (Kafka: ``DelayedFetch``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from metadata.model import Extent, TopicId

TopicIdPartition = tuple[TopicId, int]


class Waiter:
    """One fetch. Made by :meth:`Waits.enter`, given back with :meth:`Waits.leave`."""

    __slots__ = ("_bytes_missing", "_woken", "partitions")

    def __init__(self, partitions: Sequence[TopicIdPartition], bytes_missing: int) -> None:
        self.partitions = partitions
        self._bytes_missing = bytes_missing
        self._woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, seconds: float) -> bool:
        """True when woken, False when ``seconds`` have passed."""
        timer = asyncio.get_running_loop().call_later(seconds, self.wake)
        try:
            await self._woken
        finally:
            timer.cancel()
        return self._bytes_missing <= 0

    def wake(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    def arrived(self, byte_length: int) -> None:
        self._bytes_missing -= byte_length
        if self._bytes_missing <= 0:
            self.wake()

    def wake_to_look(self) -> None:
        """What it waited for may never come, or is there already: let it look again."""
        self._bytes_missing = 0
        self.wake()


class Waits:
    """All waiting fetches of an agent. One event loop."""

    def __init__(self) -> None:
        self._by_partition: dict[TopicIdPartition, dict[Waiter, None]] = {}  # dicts, not sets: they keep their order
        self._waiters: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, partitions: Sequence[TopicIdPartition], bytes_missing: int) -> Waiter:
        """Register before anything else can run, or a commit could slip in between looking and waiting."""
        waiter = Waiter(partitions, bytes_missing)
        self._waiters[waiter] = None
        by_partition = self._by_partition
        for key in partitions:
            waiting = by_partition.get(key)
            if waiting is None:
                by_partition[key] = {waiter: None}
            else:
                waiting[waiter] = None
        return waiter

    def leave(self, waiter: Waiter) -> None:
        self._waiters.pop(waiter, None)
        by_partition = self._by_partition
        for key in waiter.partitions:
            waiting = by_partition.get(key)
            if waiting is not None:
                waiting.pop(waiter, None)
                if not waiting:
                    del by_partition[key]

    def committed(self, extents: Iterable[Extent]) -> None:
        """Wake those who now have enough."""
        by_partition = self._by_partition
        if not by_partition:
            return
        for extent in extents:
            waiting = by_partition.get((extent.topic_id, extent.partition))
            if waiting is not None and extent.level <= 0:
                for waiter in waiting:
                    waiter.arrived(extent.byte_length)

    def wake_topics(self, topic_ids: Iterable[TopicId]) -> None:
        gone = set(topic_ids)
        for (topic_id, _), waiting in self._by_partition.items():
            if topic_id in gone:
                for waiter in waiting:
                    waiter.wake_to_look()

    def wake_all(self) -> None:
        for waiter in self._waiters:
            waiter.wake_to_look()
