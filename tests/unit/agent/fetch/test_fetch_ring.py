"""Agents of one zone and group read for each other, over real sockets; the object store is asked once for them all."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, unused_port

from agent.fetch import peer_server
from agent.fetch.answer import FetchLimits, PartitionFetch
from agent.fetch.peer_wire import PATH, PeerRange, decode_answer, decode_read, encode_lengths, encode_read
from agent.fetch.pool import Entry
from agent.fetch.ring import Ring
from metadata.agent_model import AgentCondition, AgentInfo
from metadata.model import Extent
from metadata.rpc.wire import authorization
from runtime.budget import Budget
from tests.unit.agent.fetch.world import MIB, TOPIC, World, evict, make_batch, records_of

PARTITIONS = 8


def info(node_id: int, zone: str, port: int = 1, condition: AgentCondition = AgentCondition.READY) -> AgentInfo:
    address = f"127.0.0.1:{port}"
    return AgentInfo(node_id, node_id, f"a{node_id}", zone, "g", "127.0.0.1", 9092, address, "0", ("proxy",), condition)


class Zones:
    """Fetchers of several zones over one store and one metadata service; the first is the world's own, the writer."""

    def __init__(self, zones: str) -> None:
        self.world = World(block_bytes=64 * 1024, tail_block_bytes=MIB)
        self.fetchers = [self.world.fetcher, *(self.world.new_fetcher() for _ in zones[1:])]
        self.zones = zones
        self.servers: list[TestServer] = []
        for partition in range(PARTITIONS):
            self.world.create(partition)

    async def start(self) -> None:
        for fetcher in self.fetchers:
            app = web.Application()
            fetcher.peer_server.add_to(app)
            server = TestServer(app, host="127.0.0.1")
            await server.start_server()
            self.servers.append(server)
        self.agents = [info(1 + n, zone, self.servers[n].port) for n, zone in enumerate(self.zones)]
        self.tell()
        for number in range(len(self.fetchers)):
            (await self.fetch(number)).release()

    def tell(self) -> None:
        for number, fetcher in enumerate(self.fetchers):
            fetcher.agents_changed(self.agents, 1 + number)

    async def write(self, size: int = 2_000, count: int = 3) -> list[Extent]:
        """One segment by agent 1, with a batch for every partition; everybody hears of it."""
        parts = [(number, [make_batch([b"%d" % number * size] * count)]) for number in range(PARTITIONS)]
        extents = await self.world.write(parts, agent_epoch=1)
        for fetcher in self.fetchers[1:]:
            fetcher.extents_committed(extents)
        return extents

    async def fetch(self, number: int, partitions: Sequence[int] = range(PARTITIONS), offset: int = 0):  # type: ignore[no-untyped-def]
        asked = [PartitionFetch(TOPIC, partition, offset, MIB) for partition in partitions]
        return await self.fetchers[number].fetch(asked, FetchLimits(50 * MIB, 1, 0))

    async def check(self, number: int, count: int = 3) -> None:
        """Agent ``number`` gives all records."""
        fetched = await self.fetch(number)
        for partition, answer in enumerate(fetched.partitions):
            assert answer.problem is None
            records = records_of(answer.chunks)
            assert len(records) == count and all(value[:1] == b"%d" % partition for _, value in records)
        fetched.release()

    async def stop(self) -> None:
        for fetcher in self.fetchers:
            await fetcher.close()
        for server in self.servers:
            await server.close()
        await self.world.supervisor.stop()
        for fetcher in self.fetchers:
            evict(fetcher)
        assert self.world.budget.held_bytes == 0
        assert not self.world.failures


@pytest.fixture
async def zones() -> AsyncIterator[Callable[[str], Zones]]:
    made: list[Zones] = []

    def make(layout: str) -> Zones:
        made.append(Zones(layout))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


async def test_the_tail_costs_no_get_in_the_writers_zone_and_one_in_each_other(zones: Callable[[str], Zones]) -> None:
    cluster = zones("aaabbbccc")
    await cluster.start()
    for _ in range(5):
        await cluster.write()
    for number in range(3):
        await cluster.check(number, count=15)
    assert cluster.world.store.gets == []
    await asyncio.gather(*(cluster.check(number, count=15) for number in range(9)))
    gets = Counter(key for key, _ in cluster.world.store.gets)
    assert len(gets) == 5 and set(gets.values()) == {2}, "each segment once in zone b and once in zone c"


async def test_a_replay_by_all_agents_of_a_zone_reads_each_block_once(zones: Callable[[str], Zones]) -> None:
    cluster = zones("abbb")
    await cluster.start()
    for _ in range(3):
        await cluster.write(size=10_000, count=5)
    for fetcher in cluster.fetchers:
        evict(fetcher)
        fetcher.resynchronize()
    for _ in range(2):
        await asyncio.gather(*(cluster.check(number, count=15) for number in (1, 2, 3)))
    gets = Counter(cluster.world.store.gets)
    assert len(gets) > 3 and set(gets.values()) == {1}, "small blocks, each once for the whole zone"


async def test_what_is_asked_of_one_peer_at_once_travels_together(zones: Callable[[str], Zones]) -> None:
    cluster = zones("aa")
    await cluster.start()
    await cluster.write()
    await cluster.check(1)
    metrics = cluster.fetchers[1]._metrics
    assert (metrics.peer_requests, metrics.peer_hits) == (1, PARTITIONS)


async def test_a_frozen_peer_costs_one_timeout_and_then_the_object_store_is_read(
    zones: Callable[[str], Zones], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.fetch.peers.MEMORY_SECONDS", 0.2)
    monkeypatch.setattr("agent.fetch.peers.STORE_SECONDS", 0.2)
    cluster = zones("aa")
    await cluster.start()
    frozen = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await frozen.wait()
        return web.Response(status=503)

    app = web.Application()
    app.router.add_post(PATH, hang)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    cluster.agents[0] = info(1, "a", server.port)
    cluster.tell()
    await cluster.write()
    async with asyncio.timeout(2):
        await cluster.check(1)
    metrics = cluster.fetchers[1]._metrics
    assert (metrics.peer_requests, metrics.peer_failures) == (1, 1)
    assert len(cluster.world.store.gets) == 1
    await cluster.write()
    await cluster.check(1, count=6)
    assert metrics.peer_requests == 1, "it is not asked again so soon"
    frozen.set()
    await server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0\0\1" * PARTITIONS,
        encode_lengths([-1] * PARTITIONS) + b"more",
        encode_lengths([2**30] * PARTITIONS),
        encode_lengths([-7] * PARTITIONS),
    ],
    ids=["nothing", "wrong lengths", "too much", "huge", "negative"],
)
async def test_a_peer_that_answers_rubbish_does_no_harm(zones: Callable[[str], Zones], answer: bytes) -> None:
    cluster = zones("aa")
    await cluster.start()

    async def lie(_: web.Request) -> web.Response:
        return web.Response(body=answer)

    app = web.Application()
    app.router.add_post(PATH, lie)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    cluster.agents[0] = info(1, "a", server.port)
    cluster.tell()
    await cluster.write()
    await cluster.check(1)
    assert len(cluster.world.store.gets) == 1
    await server.close()


async def test_nobody_there_is_nobody_asked(zones: Callable[[str], Zones]) -> None:
    cluster = zones("aa")
    await cluster.start()
    cluster.agents[0] = info(1, "a", unused_port())
    cluster.tell()
    await cluster.write()
    await cluster.check(1)
    assert len(cluster.world.store.gets) == 1


async def test_a_server_refuses_what_is_no_request(zones: Callable[[str], Zones]) -> None:
    cluster = zones("a")
    await cluster.start()
    (extent, *_) = await cluster.write()
    too_many = (PeerRange(extent.segment_key, 0, 1, True, True),) * 600
    client = TestClient(cluster.servers[0])
    for body in (b"", b"\xc1", b"\x91\x91\x93\x01\x02\x03", encode_read(too_many)):
        async with client.post(PATH, data=body) as response:
            assert response.status == 400, body
    wanted = (
        PeerRange(extent.segment_key, 0, 10, True, True),
        PeerRange(extent.segment_key, 0, 2**24, False, False),
        PeerRange("segments/gone", 0, 10, False, False),
    )
    async with client.post(PATH, data=encode_read(wanted)) as response:
        found = decode_answer(wanted, await response.read())
    assert found[0] is not None and len(found[0]) == 10
    assert found[1:] == [None, None], "beyond the object's end, and no such object"
    await client.close()


async def test_a_peer_without_the_secret_gets_nothing(zones: Callable[[str], Zones]) -> None:
    cluster = zones("aa")
    for fetcher in cluster.fetchers:
        fetcher.peer_server._secret = "the cluster's secret"
    await cluster.start()
    await cluster.write()
    await cluster.check(1)
    assert len(cluster.world.store.gets) == 1
    headers = {"Authorization": authorization("the cluster's secret")}
    cluster.fetchers[1]._peers._headers.update(headers)
    async with TestClient(cluster.servers[0]).post(PATH, data=encode_read(()), headers=headers) as response:
        assert response.status == 200


async def test_peers_that_take_nothing_do_not_hold_their_places_for_ever(
    zones: Callable[[str], Zones], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_server, "ANSWER_SECONDS", 3.0)
    cluster = zones("ab")
    await cluster.start()
    extent = max(await cluster.write(size=200_000, count=4), key=lambda each: each.byte_length)
    budget = cluster.fetchers[0].peer_server._budget = Budget(2**40)
    body = encode_read((PeerRange(extent.segment_key, extent.byte_position, extent.byte_length, True, False),) * 12)
    request = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    server = cluster.servers[0]
    writers = []
    share = peer_server.REQUESTS_MAX * 4 // 5
    for _ in range(share):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(request)
        writers.append(writer)
    async with asyncio.timeout(10):
        while cluster.fetchers[0].peer_server._under_way.held < share:
            await asyncio.sleep(0.01)
    async with TestClient(server) as client:
        statuses = [await ask_one_byte(client, extent)]
        deadline = asyncio.get_running_loop().time() + 20
        while statuses[-1] != 200 and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            statuses.append(await ask_one_byte(client, extent))
    assert statuses[0] == 503, "every place is taken"
    assert statuses[-1] == 200, "and given up in the end"
    while budget.held_bytes:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
    for writer in writers:
        writer.transport.abort()


async def test_no_address_takes_every_place_for_peers(zones: Callable[[str], Zones]) -> None:
    cluster = zones("ab")
    await cluster.start()
    extent = (await cluster.write())[0]
    places = cluster.fetchers[0].peer_server._under_way
    while places.take("10.0.0.1"):
        pass
    async with TestClient(cluster.servers[0]) as client:
        assert await ask_one_byte(client, extent) == 200
    places.give("10.0.0.1", places.held)


async def test_a_peer_is_refused_while_there_is_no_memory_and_reads_the_store(zones: Callable[[str], Zones]) -> None:
    cluster = zones("aa")
    await cluster.start()
    extent = (await cluster.write())[0]
    budget = cluster.fetchers[0].peer_server._budget = Budget(1)
    budget.take("request", 1)
    await cluster.check(1)
    assert len(cluster.world.store.gets) == 1
    async with TestClient(cluster.servers[0]) as client:
        assert await ask_one_byte(client, extent) == 503
        budget.give("request", 1)
        assert await ask_one_byte(client, extent) == 200


async def test_a_peer_whose_request_does_not_come_gives_its_place_up(
    zones: Callable[[str], Zones], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_server, "BODY_SECONDS", 0.1)
    cluster = zones("ab")
    await cluster.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.servers[0].port)
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx".encode())
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert cluster.fetchers[0].peer_server._under_way.held == 0
    writer.close()


async def ask_one_byte(client: TestClient, extent: Extent) -> int:  # type: ignore[type-arg]
    wanted = (PeerRange(extent.segment_key, 0, 1, True, True),)
    async with client.post(PATH, data=encode_read(wanted)) as response:
        await response.read()
        return response.status


async def test_a_few_bytes_of_a_block_do_not_pin_it_for_a_peer(zones: Callable[[str], Zones]) -> None:
    cluster = zones("ab")
    await cluster.start()
    extents = await cluster.write(size=100_000)
    server = cluster.fetchers[1].peer_server
    pins: list[Entry[bytes]] = []
    views = await server._find(PeerRange(extents[0].segment_key, 0, 10, True, False), pins)
    assert views is not None and sum(map(len, views)) == 10 and pins == []
    whole = extents[-1].byte_position + extents[-1].byte_length
    views = await server._find(PeerRange(extents[0].segment_key, 0, min(whole, MIB), True, False), pins)
    assert views is not None and len(pins) == 1, "most of a block is not copied"
    pins[0].unpin()


def test_requests_and_answers_are_what_they_say() -> None:
    ranges = (PeerRange("a", 0, 3, True, True), PeerRange("b", 5, 2, False, False))
    assert decode_read(encode_read(ranges)) == ranges
    found = decode_answer(ranges, encode_lengths([3, -1]) + b"xyz")
    assert found[1] is None and found[0] is not None and bytes(found[0]) == b"xyz"
    for start, length in ((-1, 3), (0, 0), (2**63 - 1, 3), (2**64 - 1, 3)):
        wrong = (PeerRange("a", start, length, True, True),)
        with pytest.raises(ValueError):
            decode_read(encode_read(wrong))
    with pytest.raises(ValueError, match="bytes in one request"):
        decode_read(encode_read((PeerRange("a", 0, 2**30, True, True),)))


def test_the_ring_is_of_one_zone_and_group() -> None:
    ring = Ring()
    agents = [info(1, "a"), info(2, "a"), info(3, "b"), info(4, "a", condition=AgentCondition.SICK)]
    agents.append(info(5, "a", condition=AgentCondition.DRAINING))
    assert ring.owner("segments/x", 0) is None, "alone"
    ring.update(agents, 1)
    owners = {None if (owner := ring.owner(f"segments/{n}", 0)) is None else owner.node_id for n in range(200)}
    assert owners == {None, 2}, "sick and draining agents own nothing"
    key = "segments/{}/"
    assert ring.writer(key) is None
    ring.update(agents, 9)
    assert ring.owner("segments/x", 0) is None, "an agent that is not in the roster is alone"
