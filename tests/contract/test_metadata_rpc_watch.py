"""Watches over a network that cuts and stalls them: a view converges, and never misses what it relies on."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentInfo, AgentLoad
from metadata.model import Extent, MetadataUnavailable, Topic, TopicId, TopicsChanged
from metadata.rpc import server, subscription, watch
from metadata.rpc.client import RemoteMetadata
from metadata.rpc.subscription import RemoteSubscription
from metadata.rpc.wire import Step
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from tests.support.metadata import Recorder, batch, extent, registration, running_service, segment
from tests.support.metadata_proxy import FaultyProxy
from tests.support.metadata_rpc import RpcNode, remote_metadata

PARTITIONS = 8


class View:
    """What an agent keeps of the partitions it follows: where each ends, and the whole of topics and agents.

    It asks once after following and after each gap, and from then on relies on hearing of every extent.
    """

    def __init__(self, client: RemoteMetadata) -> None:
        self._client = client
        self.subscription: RemoteSubscription
        self.ends: dict[tuple[TopicId, int], int | None] = {}
        """None: being asked for."""
        self.topics: dict[TopicId, Topic] = {}
        self.agents: tuple[AgentInfo, ...] = ()
        self.missed: list[Extent] = []
        self.gaps = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._heard: dict[tuple[TopicId, int], list[Extent]] = {}

    async def start(self) -> None:
        self.subscription = await self._client.subscribe(self)
        self.topics = {topic.topic_id: topic for topic in self.subscription.topics}
        self.agents = self.subscription.agents

    async def follow(self, keys: Sequence[tuple[TopicId, int]]) -> None:
        await self.subscription.follow(keys)
        for key in keys:
            self._ask(key)

    def unfollow(self, keys: Sequence[tuple[TopicId, int]]) -> None:
        for key in keys:
            del self.ends[key]
        self.subscription.unfollow(keys)

    def _ask(self, key: tuple[TopicId, int]) -> None:
        self.ends[key] = None
        self._heard[key] = []
        task = asyncio.create_task(self._find(key, self.gaps))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _find(self, key: tuple[TopicId, int], gaps: int) -> None:
        (offsets,) = await self._client.partition_offsets([key])
        assert offsets is not None
        if key not in self.ends or gaps != self.gaps:
            return  # given up, or asked anew meanwhile
        self.ends[key] = offsets.high_watermark
        for heard in self._heard[key]:
            self._take(key, heard)

    def _take(self, key: tuple[TopicId, int], new: Extent) -> None:
        end = self.ends[key]
        assert end is not None
        if new.base_offset > end:
            self.missed.append(new)
        self.ends[key] = max(end, new.last_offset + 1)

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        for new in extents:
            key = new.topic_id, new.partition
            if key not in self.ends:
                continue
            if self.ends[key] is None:
                self._heard[key].append(new)
            else:
                self._take(key, new)

    def topics_changed(self, change: TopicsChanged) -> None:
        self.topics.update({topic.topic_id: topic for topic in change.upserted})
        for topic_id in change.deleted:
            self.topics.pop(topic_id, None)

    def log_starts_moved(self, moved: object) -> None: ...

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        self.agents = tuple(agents)

    def resynchronize(self) -> None:
        self.gaps += 1
        for key in self.ends:
            self._ask(key)


class World:
    """Two nodes behind faulty networks; the first leads."""

    def __init__(self) -> None:
        self.store = MemoryMetadataStore()
        self.nodes = (RpcNode(), RpcNode())
        self.proxies: list[FaultyProxy] = []
        self.service: MetadataService
        self.client: RemoteMetadata
        self.epoch = -1
        self.topic: Topic
        self._generation = 0
        self._sequence = 0
        self._term = AsyncExitStack()

    async def start(self, stack: AsyncExitStack) -> None:
        for node in self.nodes:
            await node.start()
            stack.push_async_callback(node.stop)
            proxy = FaultyProxy(node.url)
            await proxy.start()
            stack.push_async_callback(proxy.stop)
            self.proxies.append(proxy)
        stack.push_async_callback(self._term.aclose)
        await self.lead(0)
        self.client = await stack.enter_async_context(remote_metadata([proxy.url for proxy in self.proxies]))
        self.epoch = (await self.service.register_agent(registration())).agent_epoch
        self.topic = await self.service.create_topic("logs", PARTITIONS, {})

    async def lead(self, number: int) -> None:
        await self._term.aclose()
        self._generation += 1
        self.service = await self._term.enter_async_context(running_service(self.store, entropy_seed=self._generation))
        self._term.push_async_callback(self.nodes[number].stand_by)
        await self.nodes[number].lead(self.service, self._generation)

    def key(self, partition: int) -> tuple[TopicId, int]:
        return self.topic.topic_id, partition

    async def commit(self, *partitions: int) -> None:
        """One record in each, straight to the service."""
        self._sequence += 1
        drafts = [(self.topic.topic_id, partition, [batch()]) for partition in partitions]
        await self.service.commit_segments(self.epoch, -1, [segment(self._sequence, *drafts)])

    async def converge(self, view: View, within_seconds: float = 8.0) -> None:
        """Wait until ``view`` is what the service knows."""
        async with asyncio.timeout(within_seconds):
            while not await self._agrees(view):
                await asyncio.sleep(0.01)

    async def _agrees(self, view: View) -> bool:
        keys = list(view.ends)
        offsets = await self.service.partition_offsets(keys)
        ends = {key: each.high_watermark for key, each in zip(keys, offsets, strict=True) if each is not None}
        described = tuple(each.info for each in await self.service.describe_agents())
        topics = {topic.topic_id: topic for topic in (await self.service.subscribe(Recorder())).topics}
        return view.ends == ends and view.topics == topics and view.agents == described


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.start(stack)
        yield world


async def test_an_extent_is_announced_within_milliseconds_and_only_to_followers(world: World) -> None:
    heard: list[float] = []
    loop = asyncio.get_running_loop()

    class Timing(Recorder):
        def extents_committed(self, extents: Sequence[Extent]) -> None:
            super().extents_committed(extents)
            heard.append(loop.time())

    listener, other = Timing(), Recorder()
    subscription = await world.client.subscribe(listener)
    await world.client.subscribe(other)
    await subscription.follow([world.key(0), world.key(2)])
    delays: list[float] = []
    for _ in range(50):
        await world.commit(0, 1, 2)
        committed = loop.time()
        count = len(listener.heard)
        while len(listener.heard) < count + 2 and loop.time() - committed < 1:
            await asyncio.sleep(0)
        delays.append(heard[-1] - committed)
        await asyncio.sleep(0.002)
    assert [each.partition for each in listener.heard] == [0, 2] * 50
    assert other.heard == []
    assert sorted(delays)[45] < 0.05, "announced at once, not with the next beat"


async def test_what_is_no_longer_followed_is_no_longer_announced(world: World) -> None:
    listener = Recorder()
    subscription = await world.client.subscribe(listener)
    await subscription.follow([world.key(0), world.key(1)])
    subscription.unfollow([world.key(0)])
    await subscription.follow([world.key(2)])  # a later step confirms the earlier
    await world.commit(0, 1, 2)
    while len(listener.heard) < 2:
        await asyncio.sleep(0.001)
    assert [each.partition for each in listener.heard] == [1, 2]
    hub = world.nodes[0].server.term.hub  # type: ignore[union-attr]
    assert set(hub._followers) == {world.key(1), world.key(2)}
    subscription.close()
    subscription.close()
    async with asyncio.timeout(3):
        while hub._watchers:
            await asyncio.sleep(0.01)
    assert hub._followers == {}, "nothing is kept of a watch that ended"


async def test_following_and_unfollowing_in_quick_turns_ends_as_it_was_last_asked(world: World) -> None:
    view = View(world.client)
    await view.start()
    chance = random.Random(1)
    for _ in range(200):
        key = world.key(chance.randrange(PARTITIONS))
        if key in view.ends:
            view.unfollow([key])
        else:
            await view.follow([key])
        if chance.random() < 0.5:
            await world.commit(*range(PARTITIONS))
    await view.follow([world.key(partition) for partition in range(PARTITIONS)])
    await world.commit(*range(PARTITIONS))
    await world.converge(view)
    assert view.missed == []
    assert view.gaps == 0


async def test_follow_is_confirmed_before_it_returns(world: World) -> None:
    for _ in range(50):
        listener = Recorder()
        subscription = await world.client.subscribe(listener)
        await subscription.follow([world.key(0)])
        await world.commit(0)
        async with asyncio.timeout(2):
            while not listener.heard:
                await asyncio.sleep(0)
        subscription.close()


async def test_a_cut_watch_comes_back_with_what_changed_meanwhile(world: World) -> None:
    view = View(world.client)
    await view.start()
    await view.follow([world.key(partition) for partition in range(PARTITIONS)])
    await world.commit(0)
    await world.converge(view)
    gone = await world.service.create_topic("gone", 1, {})
    await world.converge(view)
    world.proxies[0].frozen = True  # so that it does not come back before all this has happened
    world.proxies[0].cut_watches()
    await world.service.delete_topic(gone.topic_id)
    await world.service.create_topic("new", 1, {})
    await world.service.alter_topic_configs(world.topic.topic_id, {"retention.ms": "1"})
    await world.service.register_agent(registration("another"))
    await world.commit(0, 3)
    world.proxies[0].thaw()
    await world.converge(view)
    assert (view.gaps, view.missed) == (1, [])
    await world.commit(3)
    await world.converge(view)
    assert view.gaps == 1


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the usual time."""
    monkeypatch.setattr(server, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(subscription, "SILENCE_SECONDS", 0.6)


async def test_a_silent_watch_is_given_up_after_three_beats(quick_beats: None, world: World) -> None:
    view = View(world.client)
    await view.start()
    await view.follow([world.key(0)])
    await asyncio.sleep(0.3)
    began = asyncio.get_running_loop().time()
    world.proxies[0].frozen = True
    await world.commit(0)
    await world.lead(1)
    await world.commit(0)
    await world.converge(view)
    assert 0.3 < asyncio.get_running_loop().time() - began < 3
    assert (view.gaps, view.missed) == (1, [])


async def test_a_watch_that_only_hears_beats_stays(quick_beats: None, world: World) -> None:
    view = View(world.client)
    await view.start()
    await asyncio.sleep(1.0)
    await world.service.create_topic("new", 1, {})
    await world.converge(view)
    assert view.gaps == 0


async def test_a_reload_of_the_service_reaches_the_listener(world: World) -> None:
    view = View(world.client)
    await view.start()
    world.nodes[0].server.term.hub.resynchronize()  # type: ignore[union-attr]
    await world.service.create_topic("new", 1, {})
    await world.converge(view)
    assert view.gaps == 1


@pytest.mark.parametrize("seed", range(3))
async def test_under_random_cuts_and_failovers_nothing_is_missed(world: World, seed: int) -> None:
    chance = random.Random(seed)
    view = View(world.client)
    await view.start()
    await view.follow([world.key(partition) for partition in range(0, PARTITIONS, 2)])
    stopping = asyncio.Event()

    async def committing() -> None:
        while not stopping.is_set():
            try:
                await world.commit(*chance.sample(range(PARTITIONS), chance.randint(1, PARTITIONS)))
            except MetadataUnavailable:
                world._sequence += 1
            await asyncio.sleep(chance.choice((0, 0.001, 0.01)))

    async def changing() -> None:
        while not stopping.is_set():
            key = world.key(chance.randrange(PARTITIONS))
            if key in view.ends and view.ends[key] is not None and chance.random() < 0.4:
                view.unfollow([key])
            elif key not in view.ends:
                await view.follow([key])
            await asyncio.sleep(chance.uniform(0, 0.05))

    async def cutting() -> None:
        for _ in range(25):
            await asyncio.sleep(chance.uniform(0, 0.15))
            for proxy in world.proxies:
                proxy.cut_watches()
            if chance.random() < 0.2:
                await world.lead(chance.randrange(2))
        stopping.set()

    async with asyncio.TaskGroup() as group:
        for work in (committing(), changing(), cutting()):
            group.create_task(work)
    await world.commit(*range(PARTITIONS))
    await world.converge(view)
    assert view.missed == []
    assert view.gaps > 5


async def test_follow_without_a_leader_promises_nothing_and_leaves_nothing(world: World) -> None:
    async with remote_metadata([proxy.url for proxy in world.proxies], patience_seconds=0.3) as client:
        subscription = await client.subscribe(Recorder())
        await subscription.follow([world.key(0)])
        await world.nodes[0].stand_by()
        await asyncio.sleep(0.1)
        with pytest.raises(MetadataUnavailable):
            await subscription.follow([world.key(1)])
        with pytest.raises(MetadataUnavailable):
            await client.subscribe(Recorder())
        await world.lead(1)
        await subscription.follow([world.key(2)])
        hub = world.nodes[1].server.term.hub  # type: ignore[union-attr]
        assert set(hub._followers) == {world.key(0), world.key(2)}
        waiting = asyncio.create_task(subscription.follow([world.key(3)]))
        await asyncio.sleep(0)
        subscription.close()
        with pytest.raises(MetadataUnavailable):
            await waiting


async def test_a_listener_that_fails_is_told_to_start_over(world: World) -> None:
    class Failing(Recorder):
        def extents_committed(self, extents: Sequence[Extent]) -> None:
            raise RuntimeError("planted")

    failing, other = Failing(), Recorder()
    for listener in (failing, other):
        await (await world.client.subscribe(listener)).follow([world.key(0)])
    await world.commit(0)
    while not failing.heard or not other.heard:
        await asyncio.sleep(0.001)
    assert failing.heard == ["resynchronize"]
    assert len(other.heard) == 1


# --- the server's bounds ------------------------------------------------------------------------------------------


async def test_a_watcher_that_does_not_read_is_cut_off_and_the_others_hear_everything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "UNSENT_BYTES_MAX", 100_000)
    hub = world.nodes[0].server.term.hub  # type: ignore[union-attr]
    listener = Recorder()
    await (await world.client.subscribe(listener)).follow([world.key(0)])
    slow = socket.create_connection(("127.0.0.1", world.nodes[0].port))
    slow.sendall(b"GET /watch?client=slow&watch=slow HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(2):
        while "slow" not in hub._watchers:
            await asyncio.sleep(0.01)
    assert hub.follow("slow", Step(0, (world.key(0),), ()))
    for count in range(2_000):
        large = extent(count, count, of=world.topic.topic_id, key="x" * 10_000)
        hub.extents_committed([large])
        if count % 5 == 0:
            await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while "slow" in hub._watchers or len(listener.heard) < 2_000:
            await asyncio.sleep(0.01)
    assert [each.base_offset for each in listener.heard] == list(range(2_000))
    assert world.nodes[0].registry.get_sample_value("tidelog_metadata_watchers_cut_total") == 1
    slow.close()


async def get(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as response:
        return response.status


async def test_a_flood_of_watches_pushes_out_its_own_and_no_agents(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent and the flood have the same address; the agent is known by its heartbeats."""
    monkeypatch.setattr(watch, "WATCHERS_MAX", 5)
    view = View(world.client)
    await view.start()
    await view.follow([world.key(0)])
    await world.client.heartbeat_agent(AgentHeartbeat(world.epoch, AgentCondition.READY, "", AgentLoad()))
    hub: Any = world.nodes[0].server.term.hub  # type: ignore[union-attr]
    hub.open("far", "far", "", "10.0.0.2")
    sockets = []
    with capture_logs() as logs:
        for number in range(20):
            flood = socket.create_connection(("127.0.0.1", world.nodes[0].port))
            flood.sendall(b"GET /watch?client=%d&watch=%d&member=zz HTTP/1.1\r\nHost: x\r\n\r\n" % (number, number))
            sockets.append(flood)
            async with asyncio.timeout(2):
                while str(number) not in hub._watchers:
                    await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
    assert len(hub._watchers) == 5
    assert {"far", "17", "18", "19"} < set(hub._watchers), "the oldest of the address that has most"
    assert view.gaps == 0
    assert [line["event"] for line in logs] == ["watch_cut_off"], "one line in ten seconds"
    await world.commit(0)
    async with asyncio.timeout(2):
        while view.ends[world.key(0)] != 1:
            await asyncio.sleep(0.01)
    for flood in sockets:
        flood.close()
    view.subscription.close()


async def test_those_who_come_back_together_share_their_first_frame(world: World) -> None:
    """A hundred thousand topics are tens of megabytes; after a failover a hundred agents ask for them at once."""
    hub: Any = world.nodes[0].server.term.hub  # type: ignore[union-attr]
    first, second = hub.open("a", "1"), hub.open("b", "2")
    assert first._queue[0] is second._queue[0]
    await world.service.create_topic("one-more", 1, {})
    third = hub.open("c", "3")
    assert b"one-more" in third._queue[0] and b"one-more" not in first._queue[0]
    await world.service.register_agent(registration("one-more-agent"))
    assert b"one-more-agent" in hub.open("d", "4")._queue[0]


async def test_watches_and_what_they_follow_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WATCHERS_MAX", 1)
    monkeypatch.setattr(watch, "FOLLOWED_MAX", 2)
    hub: Any = world.nodes[0].server.term.hub  # type: ignore[union-attr]
    hub._is_member = lambda _client: True
    url = world.nodes[0].url
    async with aiohttp.ClientSession() as session, session.get(f"{url}/watch?client=a&watch=1") as response:
        assert response.status == 200
        assert await get(session, f"{url}/watch?client=b&watch=2") == 429

        async def follow(step: Step, watched: str = "1") -> int:
            async with session.post(f"{url}/watch/{watched}/follow", data=msgspec.msgpack.encode(step)) as answer:
                return answer.status

        assert await follow(Step(0, (world.key(0), world.key(1)), ())) == 200
        assert await follow(Step(1, (world.key(2),), ())) == 429
        assert await follow(Step(2, (), (world.key(0),))) == 200
        assert await follow(Step(1, (world.key(0),), ())) == 200, "a late copy of an earlier step"
        assert set(hub._followers) == {world.key(1)}
        assert await follow(Step(3, (), ()), "unknown") == 404


async def test_a_second_watch_of_an_agent_ends_the_first(world: World) -> None:
    url = world.nodes[0].url
    async with aiohttp.ClientSession() as session, session.get(f"{url}/watch?client=a&watch=1") as first:
        await first.content.readany()
        async with session.get(f"{url}/watch?client=a&watch=2") as second:
            await second.content.readany()
            hub: Any = world.nodes[0].server.term.hub  # type: ignore[union-attr]
            assert set(hub._watchers) == {"2"}
            with pytest.raises(aiohttp.ClientError):
                while await first.content.readany():
                    pass
                raise aiohttp.ClientError("it ended in order")
