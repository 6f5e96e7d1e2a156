"""The leader's end of the watches: every event is encoded once, and handed to those who follow it.

A commit costs one look-up for each extent, and one list entry for each watcher of its partition. What a watcher has not
taken yet is bounded: beyond it the watch is cut off, and the agent starts over. When there are too many watches, the
peer that has most of them loses one that no registered agent needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from metadata.agent_model import AgentInfo
from metadata.client import Subscription
from metadata.model import Extent, LogStart, Topic, TopicId, TopicsChanged
from metadata.rpc.metrics import RpcServerMetrics
from metadata.rpc.wire import (
    AgentsAnnounced,
    Beat,
    Event,
    ExtentAnnounced,
    Hello,
    LogStartsAnnounced,
    StartOver,
    Step,
    TopicsAnnounced,
    frame,
)
from runtime.shares import Places

WATCHERS_MAX = 2_000
"""One or two for each agent."""
UNSENT_BYTES_MAX = 8 * 1024 * 1024
"""Events one watcher has not taken yet: about 80,000 extents. The bytes are shared by all who wait for the same."""
FOLLOWED_MAX = 200_000
"""Partitions one watch follows; a cluster has 100,000 by default."""
WRITE_BYTES = 256 * 1024
"""Written at once."""

PartitionKey = tuple[TopicId, int]


class TooMany(Exception):
    """A bound on watches was reached; the message says which."""


class Watcher:
    """One open watch. The queue holds whole frames."""

    def __init__(self, client: str, watch: str, hello: bytes, member: str = "") -> None:
        self.client = client
        self.member = member
        """The client, in hex, whose calls speak for the same agent."""
        self.watch = watch
        self.followed: set[PartitionKey] = set()
        self.step = -1
        """Of the latest change of ``followed``."""
        self.ended: str | None = None
        """Why it was cut off."""
        self._queue: deque[bytes] = deque((hello,))
        self._unsent_bytes = len(hello)
        self._unsent_bytes_max = UNSENT_BYTES_MAX + len(hello)
        self._wake = asyncio.Event()
        self._wake.set()
        self._abort: Callable[[], None] | None = None

    def push(self, event: bytes) -> None:
        """Queue one frame; too many of them end the watch."""
        if self.ended is not None:
            return
        self._queue.append(event)
        self._unsent_bytes += len(event)
        self._wake.set()
        if self._unsent_bytes > self._unsent_bytes_max:
            self.end(f"{self._unsent_bytes} bytes of events were not taken")

    def end(self, why: str) -> None:
        """Send nothing more and close the connection, also when a write is stuck."""
        if self.ended is None:
            self.ended = why
            self._wake.set()
            if self._abort is not None:
                self._abort()

    async def run(
        self, write: Callable[[bytes], Awaitable[None]], abort: Callable[[], None], sent: Callable[[int], None]
    ) -> None:
        """Write what is queued, as soon as it is queued, until :meth:`end`. ``sent`` hears of how many frames.

        :raises OSError: the connection is gone.
        """
        self._abort = abort
        while True:
            while not self._queue:
                if self.ended is not None:
                    return
                self._wake.clear()
                await self._wake.wait()
            if self.ended is not None:
                return
            parts: list[bytes] = []
            size = 0
            while self._queue and size < WRITE_BYTES:
                parts.append(self._queue.popleft())
                size += len(parts[-1])
            await write(b"".join(parts))
            self._unsent_bytes -= size
            sent(len(parts))


class WatchHub:
    """All watches of one term. Implements :class:`metadata.client.MetadataListener`; one event loop.

    ``is_member(client)``: whether it speaks for a registered agent.
    """

    def __init__(
        self, generation: int, metrics: RpcServerMetrics, is_member: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        self._generation = generation
        self._metrics = metrics
        self._is_member = is_member
        self._places: Places[Watcher] = Places()
        self._hello: bytes | None = None
        """The first frame of a watch that begins now; None: made when it is needed."""
        self._watchers: dict[str, Watcher] = {}
        self._by_client: dict[str, Watcher] = {}
        self._followers: dict[PartitionKey, dict[Watcher, None]] = {}
        self._topics: dict[TopicId, Topic] = {}
        self._agents: tuple[AgentInfo, ...] = ()
        self._beat = frame(Beat(generation))
        self._closed = False

    def start(self, subscription: Subscription) -> None:
        """``subscription`` is this hub's own, made just now: nothing was heard in between."""
        self._topics = {topic.topic_id: topic for topic in subscription.topics}
        self._agents = subscription.agents

    @property
    def topics(self) -> Iterable[Topic]:
        """All topics, as watchers know them."""
        return self._topics.values()

    # --- events -----------------------------------------------------------------------------------------

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            followers = self._followers.get((extent.topic_id, extent.partition))
            if followers:
                event = frame(ExtentAnnounced(extent))
                for watcher in followers:
                    watcher.push(event)

    def log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        for each in moved:
            followers = self._followers.get((each.topic_id, each.partition))
            if followers:
                event = frame(LogStartsAnnounced((each,)))
                for watcher in followers:
                    watcher.push(event)

    def topics_changed(self, change: TopicsChanged) -> None:
        for topic in change.upserted:
            self._topics[topic.topic_id] = topic
        for topic_id in change.deleted:
            self._topics.pop(topic_id, None)
        self._hello = None
        self._push_all(TopicsAnnounced(change))

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        self._agents = tuple(agents)
        self._hello = None
        self._push_all(AgentsAnnounced(self._agents))

    def resynchronize(self) -> None:
        self._push_all(StartOver())

    def beat(self) -> None:
        """Call every :data:`metadata.rpc.wire.BEAT_SECONDS` while this process leads."""
        for watcher in self._watchers.values():
            watcher.push(self._beat)

    def _push_all(self, event: Event) -> None:
        encoded = frame(event)
        for watcher in self._watchers.values():
            watcher.push(encoded)

    # --- watchers ---------------------------------------------------------------------------------------

    def open(self, client: str, watch: str, member: str = "", peer: str = "unknown") -> Watcher:
        """A new watch of ``client``, whose earlier one ends. It hears everything after its first frame.

        ``member``: see :class:`Watcher`; ``peer`` is where it comes from.

        :raises TooMany: every place is a registered agent's.
        """
        earlier = self._by_client.get(client)
        if earlier is not None:
            earlier.end("the agent opened another watch")
            self.close(earlier)
        if self._closed or watch in self._watchers:
            raise TooMany("this watch is open already")
        if len(self._watchers) >= WATCHERS_MAX:
            self._crowd_out()
        if self._hello is None:  # shared by all who come back at the same time, after a failover
            self._hello = frame(Hello(self._generation, tuple(self._topics.values()), self._agents))
        watcher = Watcher(client, watch, self._hello, member)
        self._watchers[watch] = self._by_client[client] = watcher
        self._places.add(watcher, peer)
        self._count()
        return watcher

    def close(self, watcher: Watcher) -> None:
        """It hears nothing more. Idempotent."""
        if self._watchers.get(watcher.watch) is not watcher:
            return
        del self._watchers[watcher.watch]
        self._places.discard(watcher)
        if self._by_client.get(watcher.client) is watcher:
            del self._by_client[watcher.client]
        for key in watcher.followed:
            self._forget(key, watcher)
        watcher.followed.clear()
        self._count()

    def follow(self, watch: str, step: Step) -> bool:
        """Take ``step``, from now on; False when there is no such watch (any more).

        :raises TooMany:
        """
        watcher = self._watchers.get(watch)
        if watcher is None or watcher.ended is not None:
            return False
        if step.number <= watcher.step:
            return True
        if len(watcher.followed) + len(step.follow) > FOLLOWED_MAX:
            raise TooMany(f"one watch follows at most {FOLLOWED_MAX} partitions")
        watcher.step = step.number
        for key in step.unfollow:
            if key in watcher.followed:
                watcher.followed.discard(key)
                self._forget(key, watcher)
        for key in step.follow:
            watcher.followed.add(key)
            self._followers.setdefault(key, {})[watcher] = None
        self._count()
        return True

    def end(self) -> None:
        """The term is over: every watch ends."""
        self._closed = True
        for watcher in tuple(self._watchers.values()):
            watcher.end("this process no longer leads")
            self.close(watcher)

    def was_cut_off(self, watcher: Watcher) -> bool:
        """Whether it was ended for its agent's sake or others', and not with the term; counted."""
        if watcher.ended is None or self._closed:
            return False
        self._metrics.watchers_cut.inc()
        return True

    def _crowd_out(self) -> None:
        """:raises TooMany:"""
        watcher = self._places.yielding(self._stays)
        if watcher is None:
            raise TooMany(f"{len(self._watchers)} watches of agents are open")
        watcher.end("every place was taken, and it is no registered agent's")
        self.close(watcher)

    def _stays(self, watcher: Watcher) -> bool:
        try:
            return self._is_member(bytes.fromhex(watcher.member))
        except ValueError:
            return False

    def _forget(self, key: PartitionKey, watcher: Watcher) -> None:
        followers = self._followers[key]
        del followers[watcher]
        if not followers:
            del self._followers[key]

    def _count(self) -> None:
        self._metrics.watchers.set(len(self._watchers))
        self._metrics.partitions_followed.set(len(self._followers))
