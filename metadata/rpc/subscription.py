"""The agent's end of a watch: a stream of events that comes back by itself, and what it follows.

A connection is used once everything that should be followed is confirmed on it. Until then nothing of it is read, so
that after a gap the listener first hears ``resynchronize``, then the topics and agents, then what is new. One task
reads, one sends the changes of what is followed, in numbered steps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import aiohttp
import msgspec
import structlog

from metadata.agent_model import AgentInfo
from metadata.client import MetadataListener
from metadata.model import Extent, MetadataUnavailable, Topic, TopicId, TopicsChanged
from metadata.rpc.leader import LeaderFinder, Server
from metadata.rpc.metrics import RpcClientMetrics
from metadata.rpc.wire import (
    BEAT_SECONDS,
    BEATS_MISSED_MAX,
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    AgentsAnnounced,
    Beat,
    Event,
    ExtentAnnounced,
    Hello,
    LogStartsAnnounced,
    StartOver,
    Step,
    TopicsAnnounced,
)
from runtime.clock import Clock, Entropy
from runtime.tasks import Supervisor

SILENCE_SECONDS = BEAT_SECONDS * BEATS_MISSED_MAX
STEP_SECONDS = 2.0
"""A step that is not confirmed within this is sent again."""
STEP_PARTITIONS_MAX = 20_000
RETRY_SECONDS = (0.02, 0.5)
"""First and longest pause before the next attempt to connect."""

_event_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
_step_encoder = msgspec.msgpack.Encoder()
_log = structlog.get_logger("tidelog.metadata.client")

PartitionKey = tuple[TopicId, int]


class _Broken(Exception):
    """The connection is of no more use; the message says why."""


class _Stream:
    """One connection of the watch."""

    def __init__(self, server: Server, watch: str, response: aiohttp.ClientResponse) -> None:
        self.server = server
        self.watch = watch
        self.confirmed: set[PartitionKey] = set()
        """What the server follows for us, for certain."""
        self._response = response
        self._buffer = bytearray()
        self._unread: list[Event] = []
        self._step = 0

    async def read(self) -> list[Event]:
        """The next events, one or more; waits no longer than :data:`SILENCE_SECONDS`. :raises _Broken:"""
        while True:
            events, self._unread = self._unread or self._parse(), []
            if events:
                return events
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    data = await self._response.content.readany()
            except TimeoutError as error:
                raise _Broken(f"{self.server.url} was silent for {SILENCE_SECONDS:g} s") from error
            except (aiohttp.ClientError, OSError) as error:
                raise _Broken(f"{self.server.url}: {error!r}") from error
            if not data:
                raise _Broken(f"{self.server.url} ended the watch")
            self._buffer += data

    def unread(self, events: list[Event]) -> None:
        """They are read next."""
        self._unread = events

    async def send_step(self, follow: Sequence[PartitionKey], unfollow: Sequence[PartitionKey]) -> None:
        """Confirmed when it returns. :raises _Broken:"""
        step = Step(self._step, tuple(follow), tuple(unfollow))
        self._step += 1
        self.confirmed.difference_update(unfollow)
        try:
            async with (
                asyncio.timeout(STEP_SECONDS),
                self.server.waits.post(
                    f"{self.server.url}/watch/{self.watch}/follow", data=_step_encoder.encode(step)
                ) as response,
            ):
                status, text = response.status, await response.text(errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            raise _Broken(f"{self.server.url} did not confirm what to follow: {error!r}") from error
        if status != 200:
            raise _Broken(f"{self.server.url} answered HTTP {status} to what to follow: {text[:200]}")
        self.confirmed.update(follow)

    def close(self) -> None:
        self._response.close()

    def _parse(self) -> list[Event]:
        events: list[Event] = []
        buffer = self._buffer
        position = 0
        with memoryview(buffer) as view:
            while len(buffer) - position >= LENGTH_BYTES:
                end = position + LENGTH_BYTES + int.from_bytes(view[position : position + LENGTH_BYTES], "big")
                if end - position > FRAME_BYTES_MAX:
                    raise _Broken(f"{self.server.url} announced a frame of {end - position} bytes")
                if end > len(buffer):
                    break
                try:
                    events.append(_event_decoder.decode(view[position + LENGTH_BYTES : end]))
                except ValueError as error:
                    raise _Broken(f"{self.server.url} sent an event that is none: {error}") from error
                position = end
        if position:
            del buffer[:position]
        return events


class RemoteSubscription:
    """Implements :class:`metadata.client.Subscription`; one event loop. Made by ``RemoteMetadata.subscribe``."""

    def __init__(
        self,
        listener: MetadataListener,
        finder: LeaderFinder,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: RpcClientMetrics,
        patience_seconds: float,
        member: bytes,
    ) -> None:
        """``member``: the client whose calls tell the leader of this agent."""
        self.topics: tuple[Topic, ...] = ()
        self.agents: tuple[AgentInfo, ...] = ()
        self._listener = listener
        self._finder = finder
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._metrics = metrics
        self._patience_seconds = patience_seconds
        self._client = entropy.uuid_bytes().hex()
        self._member = member.hex()
        self._known_topics: dict[TopicId, None] = {}
        self._promised: set[PartitionKey] = set()
        """``follow`` has returned for these."""
        self._asked: Counter[PartitionKey] = Counter()
        """How many calls of ``follow`` wait for these."""
        self._stream: _Stream | None = None
        self._changed = asyncio.Event()
        """The step task has something to look at."""
        self._confirmed = asyncio.Event()
        """Set, and replaced, whenever something was confirmed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._on_close: Callable[[RemoteSubscription], None] = lambda _: None

    async def open(self, on_close: Callable[[RemoteSubscription], None]) -> None:
        """Connect for the first time.

        :raises MetadataUnavailable:
        """
        stream, hello = await self._connect(self._clock.monotonic() + self._patience_seconds)
        self.topics, self.agents = hello.topics, hello.agents
        self._known_topics = dict.fromkeys(topic.topic_id for topic in hello.topics)
        self._use(stream)
        self._on_close = on_close
        self._tasks = [
            self._supervisor.start("metadata-watch", self._watch(stream)),
            self._supervisor.start("metadata-watch-steps", self._send_steps()),
        ]

    async def follow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        keys = list(partitions)
        deadline = self._clock.monotonic() + self._patience_seconds
        self._asked.update(keys)
        try:
            while not self._is_followed(keys):
                self._changed.set()
                remaining = deadline - self._clock.monotonic()
                if self._closed or remaining <= 0:
                    raise MetadataUnavailable(f"the watch is interrupted: {self._finder.problem}")
                try:
                    async with asyncio.timeout(remaining):
                        await self._confirmed.wait()
                except TimeoutError:
                    continue
            self._promised.update(keys)
        finally:
            self._asked.subtract(keys)
            for key in keys:
                if not self._asked[key]:
                    del self._asked[key]
            self._changed.set()

    def unfollow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        self._promised.difference_update(partitions)
        self._changed.set()

    def close(self) -> None:
        """The listener hears nothing more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self._drop_stream()
        self._tell_confirmed()
        self._on_close(self)

    # --- what is followed -------------------------------------------------------------------------------

    def _is_followed(self, keys: Sequence[PartitionKey]) -> bool:
        return self._stream is not None and self._stream.confirmed.issuperset(keys)

    def _next_step(self, stream: _Stream) -> tuple[list[PartitionKey], list[PartitionKey]]:
        """What to follow and to unfollow, a bounded number of each."""
        wanted = self._promised | self._asked.keys()
        follow = list(wanted - stream.confirmed)
        unfollow = list(stream.confirmed - wanted)
        return follow[:STEP_PARTITIONS_MAX], unfollow[:STEP_PARTITIONS_MAX]

    async def _follow_all(self, stream: _Stream) -> None:
        """:raises _Broken:"""
        while True:
            follow, unfollow = self._next_step(stream)
            if not follow and not unfollow:
                return
            await stream.send_step(follow, unfollow)

    async def _send_steps(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            stream = self._stream
            if stream is None:
                continue  # whoever reconnects follows everything anew
            try:
                await self._follow_all(stream)
            except _Broken as error:
                _log.warning("metadata_watch_step_failed", error=str(error))
                stream.close()  # the reader finds it closed and connects again
            else:
                self._tell_confirmed()

    def _tell_confirmed(self) -> None:
        self._confirmed.set()
        self._confirmed = asyncio.Event()

    # --- the stream ---------------------------------------------------------------------------------------

    async def _watch(self, stream: _Stream) -> None:
        pause, pause_max = RETRY_SECONDS
        while True:
            began = self._clock.monotonic()
            try:
                while True:
                    self._dispatch(await stream.read(), stream)
            except _Broken as error:
                _log.warning("metadata_watch_interrupted", error=str(error))
                self._finder.lost(stream.server, str(error))
            self._drop_stream()
            self._metrics.watch_gaps.inc()
            if self._clock.monotonic() - began > BEAT_SECONDS:
                pause = RETRY_SECONDS[0]
            while True:
                await self._clock.sleep(self._entropy.uniform(pause / 2, pause))
                pause = min(pause * 2, pause_max)
                try:
                    stream, hello = await self._connect(self._clock.monotonic() + self._patience_seconds)
                    break
                except MetadataUnavailable as error:
                    self._finder.log_now_and_then("metadata_watch_unavailable", error=str(error))
            self._start_over(hello)
            self._use(stream)
            _log.info("metadata_watch_restored", url=stream.server.url, generation=hello.generation)

    async def _connect(self, deadline: float) -> tuple[_Stream, Hello]:
        """A stream on which everything is followed, and its first event. Tries until ``deadline``.

        :raises MetadataUnavailable:
        """
        pause, pause_max = RETRY_SECONDS
        while True:
            server = await self._finder.leader(deadline)
            try:
                return await self._connect_to(server)
            except _Broken as error:
                self._finder.lost(server, str(error))
                if self._clock.monotonic() >= deadline:
                    raise MetadataUnavailable(f"cannot watch: {error}") from error
            await self._clock.sleep(self._entropy.uniform(pause / 2, pause))
            pause = min(pause * 2, pause_max)

    async def _connect_to(self, server: Server) -> tuple[_Stream, Hello]:
        """:raises _Broken:"""
        watch = self._entropy.uuid_bytes().hex()
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                response = await server.waits.get(
                    f"{server.url}/watch", params={"client": self._client, "watch": watch, "member": self._member}
                )
        except (aiohttp.ClientError, OSError) as error:
            raise _Broken(f"{server.url}: {error!r}") from error
        stream = _Stream(server, watch, response)
        try:
            if response.status == 401:
                self._finder.unauthorized(server)
            if response.status != 200:
                raise _Broken(f"{server.url} answered HTTP {response.status} to a watch")
            first, *others = await stream.read()
            if not isinstance(first, Hello) or not self._finder.heard(first.generation):
                raise _Broken(f"{server.url} was replaced as leader")
            await self._follow_all(stream)
            stream.unread(others)
        except BaseException:
            stream.close()
            raise
        return stream, first

    def _use(self, stream: _Stream) -> None:
        self._stream = stream
        self._metrics.watch_connected.set(1)
        self._tell_confirmed()
        self._changed.set()  # for what was asked or given up meanwhile

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._metrics.watch_connected.set(0)

    # --- the listener -------------------------------------------------------------------------------------

    def _start_over(self, hello: Hello) -> None:
        """After a gap: what may have changed meanwhile."""
        present = dict.fromkeys(topic.topic_id for topic in hello.topics)
        deleted = tuple(topic_id for topic_id in self._known_topics if topic_id not in present)
        self._known_topics = present
        self._tell(self._listener.resynchronize)
        self._tell(partial(self._listener.topics_changed, TopicsChanged(hello.topics, deleted)))
        self._tell(partial(self._listener.agents_changed, hello.agents))

    def _dispatch(self, events: list[Event], stream: _Stream) -> None:
        """Pass on events in order; extents that came together are passed on together. :raises _Broken:"""
        extents: list[Extent] = []
        for event in events:
            if isinstance(event, ExtentAnnounced):
                extents.append(event.extent)
                continue
            if extents:
                self._announce(extents)
                extents = []
            if isinstance(event, Beat | Hello):
                if not self._finder.heard(event.generation):
                    raise _Broken(f"{stream.server.url} was replaced as leader")
            elif isinstance(event, TopicsAnnounced):
                change = event.change
                self._known_topics.update(dict.fromkeys(topic.topic_id for topic in change.upserted))
                for topic_id in change.deleted:
                    self._known_topics.pop(topic_id, None)
                self._tell(partial(self._listener.topics_changed, change))
            elif isinstance(event, AgentsAnnounced):
                self._tell(partial(self._listener.agents_changed, event.agents))
            elif isinstance(event, LogStartsAnnounced):
                self._tell(partial(self._listener.log_starts_moved, event.moved))
            elif isinstance(event, StartOver):
                self._tell(self._listener.resynchronize)
        if extents:
            self._announce(extents)

    def _announce(self, extents: list[Extent]) -> None:
        self._tell(partial(self._listener.extents_committed, extents))

    def _tell(self, event: Callable[[], None]) -> None:
        """A listener that fails is told to start over: it may have missed something."""
        try:
            event()
        except Exception as error:
            _log.error("metadata_listener_failed", listener=type(self._listener).__name__, error=repr(error))
            try:
                self._listener.resynchronize()
            except Exception as again:
                _log.error("metadata_listener_dropped", listener=type(self._listener).__name__, error=repr(again))
                self.close()
