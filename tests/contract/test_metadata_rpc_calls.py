"""Metadata calls over a network that loses, repeats and delays them, and across failovers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest
from structlog.testing import capture_logs

from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentLoad
from metadata.group_model import JoinGroup, OffsetCommit, OffsetRecord, SyncGroup
from metadata.model import ExtentsQuery, MetadataUnavailable, Refused, Topic
from metadata.rpc import answers, server
from metadata.rpc.client import RemoteMetadata
from metadata.rpc.leader import Server
from metadata.rpc.methods import METHODS
from metadata.rpc.wire import Answer, Head, Outcome
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.settings import GroupSettings
from tests.support.metadata import FaultyMetadataStore, batch, registration, running_service, segment
from tests.support.metadata_proxy import Fault, FaultyProxy
from tests.support.metadata_rpc import RpcNode, remote_metadata

MEMBER = JoinGroup("g", "", None, "client", "/host", 10_000, 10_000, "consumer", (("range", b""),), False)


GROUPS = GroupSettings(initial_rebalance_delay_ms=400)


class World:
    """Two nodes, each behind a faulty network, over one store; the first leads."""

    def __init__(self) -> None:
        self.store = FaultyMetadataStore(MemoryMetadataStore())
        self.nodes = (RpcNode(), RpcNode())
        self.proxies: list[FaultyProxy] = []
        self.generation = 0
        self.service: MetadataService
        self.leading = 0
        self._term = AsyncExitStack()
        self.client: RemoteMetadata
        self.epoch = -1
        self.topic: Topic

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
        self.epoch = (await self.client.register_agent(registration())).agent_epoch
        self.topic = await self.client.create_topic("logs", 1, {})

    async def lead(self, number: int) -> None:
        """Let node ``number`` lead, under the next generation."""
        await self._term.aclose()
        self.generation += 1
        self.leading = number
        self.service = await self._term.enter_async_context(
            running_service(self.store, entropy_seed=self.generation, groups=GROUPS)
        )
        node = self.nodes[number]
        self._term.push_async_callback(node.stand_by)
        await node.lead(self.service, self.generation)

    @property
    def proxy(self) -> FaultyProxy:
        return self.proxies[self.leading]

    def next_call(self, fault: Fault, method: str = "") -> None:
        """What happens to the next call (of ``method``)."""
        waiting = [fault]

        def plan(called: str) -> Fault:
            return waiting.pop() if waiting and method in ("", called) else Fault.NONE

        for proxy in self.proxies:
            proxy.plan = plan

    async def commit(self, sequence: int, records: int = 1) -> int:
        """The base offset."""
        (answer,) = await self.client.commit_segments(
            self.epoch, sequence - 1, [segment(sequence, (self.topic.topic_id, 0, [batch(records)]))]
        )
        return answer.extents[0][0].base_offset

    async def commit_offset(self, offset: int) -> None:
        record = OffsetRecord(self.topic.topic_id, 0, offset, -1, "", 0)
        assert (await self.client.commit_offsets(OffsetCommit("g", -1, "", None, (record,)))).refusal is None

    async def committed_offset(self) -> int:
        ((record),) = await self.client.fetch_offsets("g", None)
        return record.offset


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World()
        await world.start(stack)
        yield world


REPEATABLE: dict[str, Callable[[World], Awaitable[Any]]] = {
    "register_agent": lambda world: world.client.register_agent(registration("other")),
    "create_topic": lambda world: world.client.create_topic("new", 1, {}),
    "delete_topic": lambda world: world.client.delete_topic(world.topic.topic_id),
    "grant_producer_id": lambda world: world.client.grant_producer_id(-1, -1),
    "commit_segments": lambda world: world.commit(1),
    "join_group": lambda world: world.client.join_group(MEMBER),
    "leave_agent": lambda world: world.client.leave_agent(world.epoch),
}


@pytest.mark.parametrize("method", REPEATABLE)
@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST, Fault.REPEATED, Fault.LATE_COPY, Fault.DELAYED])
async def test_a_call_is_executed_once_whatever_the_network_does(
    world: World, method: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[str] = []
    inner = getattr(world.service, method)

    async def counted(*arguments: Any, **named: Any) -> Any:
        executed.append(method)
        return await inner(*arguments, **named)

    monkeypatch.setattr(world.service, method, counted)
    world.next_call(fault, method)
    await REPEATABLE[method](world)
    await world.proxy.late_copies()
    assert executed == [method]
    assert world.proxy.calls.count(method) == 1 + (fault in (Fault.LOST, Fault.ANSWER_LOST, Fault.DELAYED)) + (
        method in ("register_agent", "create_topic")
    )


async def test_a_late_copy_of_a_settled_call_changes_nothing(world: World) -> None:
    world.next_call(Fault.LATE_COPY, "commit_offsets")
    await world.commit_offset(5)
    await world.commit_offset(9)
    await world.proxy.late_copies()
    assert await world.committed_offset() == 9
    world.next_call(Fault.DELAYED, "create_topic")
    created = await world.client.create_topic("new", 1, {})
    await world.client.delete_topic(created.topic_id)
    await world.proxy.late_copies()
    assert [topic.name for topic in world.service._visible.topics.values()] == ["logs"]
    outcomes = [msgspec.msgpack.decode(answer, type=Answer).outcome for _, _, answer in world.proxy.late_statuses]
    assert outcomes == [Outcome.SETTLED] * 2


@pytest.mark.parametrize("next_leader", [0, 1])
async def test_a_copy_delayed_beyond_a_failover_changes_nothing(world: World, next_leader: int) -> None:
    """The new leader remembers no call; the copy names the term it was meant for."""
    late = world.proxy
    world.next_call(Fault.LATE_COPY, "commit_offsets")
    late.late_seconds = 0.5
    await world.commit_offset(5)
    await world.lead(next_leader)
    late.target = world.nodes[next_leader].url
    await world.commit_offset(9)
    await late.late_copies()
    ((_, status, answer),) = late.late_statuses
    assert (status, msgspec.msgpack.decode(answer, type=Answer).outcome) == (200, Outcome.OTHER_GENERATION)
    assert await world.committed_offset() == 9


async def test_a_cancelled_call_is_not_executed_after_a_later_one(world: World) -> None:
    world.next_call(Fault.DELAYED, "commit_offsets")
    world.proxy.late_seconds = 0.2
    world.proxies[0].plan = _delayed_always = lambda method: Fault.DELAYED if method == "commit_offsets" else Fault.NONE
    committing = asyncio.create_task(world.commit_offset(5))
    await asyncio.sleep(0.05)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert world.proxies[0].plan is _delayed_always
    world.next_call(Fault.NONE)
    await world.commit_offset(9)
    await world.proxy.late_copies()
    assert await world.committed_offset() == 9


async def test_an_answer_of_a_replaced_leader_is_dropped(world: World) -> None:
    """It was true when it was given, and arrives when the client has heard of the next leader."""
    await world.commit(1, 3)

    def hold_answer(_method: str) -> Fault:
        world.proxies[0].frozen = True
        return Fault.NONE

    world.proxies[0].plan = hold_answer
    asking = asyncio.create_task(world.client.partition_offsets([(world.topic.topic_id, 0)]))
    await asyncio.sleep(0.1)
    await world.lead(1)
    late = segment(2, (world.topic.topic_id, 0, [batch()]))
    await world.service.commit_segments(world.epoch, -1, [late])
    world.client._finder.heard(2)
    world.proxies[0].plan = lambda _method: Fault.NONE
    world.proxies[0].thaw()
    (offsets,) = await asking
    assert offsets is not None and offsets.high_watermark == 4


async def test_a_frozen_leader_is_left_for_the_next(world: World) -> None:
    """The first node takes connections and bytes, and answers nothing."""
    await world.commit(1)
    world.proxies[0].frozen = True
    committing = asyncio.create_task(world.commit(2))
    await asyncio.sleep(1.0)
    began = asyncio.get_running_loop().time()
    await world.lead(1)
    assert await committing == 1
    assert await world.commit(3) == 2
    assert asyncio.get_running_loop().time() - began < 2.0


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.ANSWER_LOST, Fault.SWALLOWED])
async def test_parked_calls_survive_a_broken_connection(
    world: World, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metadata.rpc.client.PARKED_ATTEMPT_SECONDS", 1.0)
    world.next_call(fault, "join_group")
    first = await world.client.join_group(MEMBER)
    assert (first.refusal, first.generation_id, len(first.members)) == (None, 1, 1)
    world.next_call(fault, "sync_group")
    synced = await world.client.sync_group(
        SyncGroup("g", 1, first.member_id, None, "consumer", "range", ((first.member_id, b"all"),))
    )
    assert synced.assignment == b"all"
    (described,) = await world.client.describe_groups(["g"])
    assert [member.member_id for member in described.members] == [first.member_id], "no second member was made"


async def test_a_parked_call_moves_to_the_next_leader_at_once(world: World) -> None:
    joining = asyncio.create_task(world.client.join_group(MEMBER))
    await asyncio.sleep(0.1)
    assert not joining.done()
    await world.lead(1)
    async with asyncio.timeout(5):
        joined = await joining
    assert joined.refusal is None
    assert world.proxies[1].calls == ["join_group"]


async def test_a_parked_call_leaves_a_leader_that_froze_when_another_is_found(world: World) -> None:
    joining = asyncio.create_task(world.client.join_group(MEMBER))
    await asyncio.sleep(0.1)
    world.proxies[0].frozen = True
    await world.lead(1)
    await world.commit(1)
    async with asyncio.timeout(5):
        assert (await joining).refusal is None


async def test_a_failed_write_is_asked_for_again_until_it_is_known(world: World) -> None:
    world.store.fail_after = 1
    assert await world.commit(1, 3) == 0
    world.store.fail_before = 1
    assert await world.commit(2) == 3
    (found,) = await world.client.find_extents([ExtentsQuery(world.topic.topic_id, 0, 0, 10**9)])
    assert [extent.base_offset for extent in found.extents] == [0, 3]
    assert world.client.problem() is None


async def test_without_a_leader_calls_fail_at_their_deadline_and_say_why(world: World) -> None:
    await world.nodes[0].stand_by()
    async with remote_metadata([proxy.url for proxy in world.proxies], patience_seconds=0.3) as client:
        for _ in range(2):
            began = asyncio.get_running_loop().time()
            with pytest.raises(MetadataUnavailable, match="does not lead"):
                await client.describe_agents()
            assert 0.2 < asyncio.get_running_loop().time() - began < 1.0
        for node in world.nodes:
            await node.stop()
        with pytest.raises(MetadataUnavailable, match=r"127\.0\.0\.1"):
            await client.describe_agents()


async def test_a_slow_call_is_not_taken_for_a_frozen_leader(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadata.rpc.client.ATTEMPT_SECONDS", 0.4)
    monkeypatch.setattr("metadata.rpc.client.ANSWERED_EARLY_SECONDS", 0.2)
    world.store.gate = asyncio.Event()
    committing = asyncio.create_task(world.commit(1))
    await asyncio.sleep(1.0)
    world.store.gate.set()
    assert await committing == 0
    assert world.proxy.calls.count("commit_segments") >= 3
    assert len([changes for changes in world.store.writes if "SegmentAdded" in repr(changes)]) == 1


async def test_closing_fails_what_waits(world: World) -> None:
    async with remote_metadata([world.nodes[1].url]) as client:
        waiting = asyncio.create_task(client.describe_agents())
        joining = asyncio.create_task(world.client.join_group(MEMBER))
        await asyncio.sleep(0.05)
        await client.close()
        await world.client.close()
        for task in (waiting, joining):
            with pytest.raises(MetadataUnavailable):
                await task


# --- the secret, bounds, and rubbish ------------------------------------------------------------------------------


async def test_a_leader_of_another_cluster_is_none(world: World) -> None:
    """Its epochs, topics and offsets mean something else: the same calls would hit somebody else's there."""
    epoch = world.epoch
    other = RpcNode()
    await other.start()
    async with running_service(MemoryMetadataStore(), entropy_seed=99) as service:
        assert service.cluster_id and service.cluster_id != world.service.cluster_id
        for number in range(epoch):
            await service.register_agent(registration(f"stranger-{number}"))
        await other.lead(service, world.generation + 5)
        world.client._finder._servers = (world.client._servers[0], Server(other.url, None))
        await world.nodes[0].stand_by()
        world.client._patience_seconds = 0.5
        with capture_logs() as logs, pytest.raises(MetadataUnavailable):
            while True:  # the first may find the old leader's last answer
                await world.commit(1)
        assert "metadata_of_another_cluster" in {line["event"] for line in logs}
        assert other.registry.get_sample_value(
            "tidelog_metadata_rpc_calls_total", {"method": "commit_segments", "outcome": "value"}
        ) in (None, 0.0)
        world.client._patience_seconds = 15.0
        await world.lead(0)
        assert await world.commit(2) == 0, "the generation heard of elsewhere does not count"
        await world.client._finder._servers[1].disconnect()
        await other.stop()


async def test_a_wrong_secret_is_refused_and_said_on_both_sides() -> None:
    secret = "open sesame, says the test"
    node = RpcNode(secret)
    await node.start()
    async with running_service(MemoryMetadataStore()) as service:
        await node.lead(service, 1)
        async with remote_metadata([node.url], secret=secret) as client:
            await client.register_agent(registration())
        for wrong in (None, secret[:-1], secret + "é"):
            with capture_logs() as logs:
                async with remote_metadata([node.url], secret=wrong, patience_seconds=0.2) as client:
                    with pytest.raises(MetadataUnavailable, match="secret"):
                        await client.register_agent(registration("other"))
            assert "metadata_secret_refused" in {line["event"] for line in logs}
        async with aiohttp.ClientSession() as session:
            body = METHODS["leave_agent"].encode_request(Head(bytes(16), 0, 0, 0, 1, 100), (1,))
            for method, path in (
                ("POST", "/rpc/leave_agent"),
                ("GET", "/watch?client=a&watch=b"),
                ("POST", "/watch/b/follow"),
                ("GET", "/rpc"),
            ):
                node.server._logged_at.clear()
                with capture_logs() as logs:
                    async with session.request(method, f"{node.url}{path}", data=body) as response:
                        assert response.status == 401
                assert [line["event"] for line in logs] == ["rpc_unauthorized"]
        assert len(await service.describe_agents()) == 1
    await node.stop()


async def post(session: aiohttp.ClientSession, url: str, body: Any) -> int:
    async with session.post(url, data=body) as response:
        await response.read()
        return response.status


async def test_rubbish_is_refused_and_nothing_else_happens(world: World) -> None:
    chance = random.Random(3)
    good = METHODS["commit_segments"].encode_request(
        Head(bytes(16), 0, 0, 0, 1, 100),
        (world.epoch, -1, [segment(1, (world.topic.topic_id, 0, [batch()]))]),
    )
    url = world.nodes[0].url
    async with aiohttp.ClientSession() as session:
        for name in METHODS:
            assert await post(session, f"{url}/rpc/{name}", b"\xc1") == 400
        for _ in range(300):
            body = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            status = await post(session, f"{url}/rpc/commit_segments", bytes(body[: chance.randint(0, len(body))]))
            assert status in (200, 400, 503), "503: it named a later term"
        assert await post(session, f"{url}/rpc/no_such_call", good) == 404
        assert await post(session, f"{url}/rpc/stop", good) == 404, "not every method of the service is a call"
        assert await post(session, f"{url}/watch/unknown/follow", b"\xc1") == 400

        async def chunks() -> AsyncIterator[bytes]:
            yield good

        assert await post(session, f"{url}/rpc/commit_segments", chunks()) == 411
    await world.client.describe_agents()


async def test_bodies_and_calls_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_BYTES_MAX", 1_000)
    url = f"{world.nodes[0].url}/rpc/describe_agents"
    async with aiohttp.ClientSession() as session:
        assert await post(session, url, bytes(1_001)) == 413
        rpc = world.nodes[0].server
        rpc._body_bytes.limit = 500
        assert await post(session, url, bytes(501)) == 429
        hub_url = f"{world.nodes[0].url}/watch/1/follow"
        assert await post(session, hub_url, bytes(501)) == 429
        rpc._body_bytes.limit = 5_000
        world.store.gate = asyncio.Event()
        committing = asyncio.create_task(world.commit(1))
        while rpc._in_flight.held == 0:
            await asyncio.sleep(0.001)
        rpc._in_flight.limit = 2
        assert await post(session, url, b"\xc1") == 429
        asking = asyncio.create_task(world.client.describe_agents())
        await asyncio.sleep(0.1)
        assert not asking.done(), "a client that meets the bound waits"
        world.store.gate.set()
        assert await committing == 0
        assert len(await asking) == 1


async def test_slow_bodies_of_one_address_leave_room_for_others(world: World) -> None:
    rpc = world.nodes[0].server
    while rpc._body_bytes.take("10.0.0.1", server.REQUEST_BYTES_MAX):
        pass
    while rpc._in_flight.take("10.0.0.1"):
        pass
    assert await world.commit(1) == 0
    async with aiohttp.ClientSession() as session:
        assert await post(session, f"{world.nodes[0].url}/rpc/describe_agents", bytes(2**20)) == 400, "it was read"


async def test_a_flood_of_clients_does_not_keep_an_agent_from_its_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is known by its heartbeats, which is all that tells it from the flood."""
    monkeypatch.setattr(answers, "LANES_MAX", 20)
    await world.client.heartbeat_agent(AgentHeartbeat(world.epoch, AgentCondition.READY, "", AgentLoad()))
    world.next_call(Fault.ANSWER_LOST, "grant_producer_id")
    async with aiohttp.ClientSession() as session:
        for number in range(100):
            head = Head((number + 10**6).to_bytes(16, "big"), 0, 0, 0, world.generation, 1_000)
            body = METHODS["heartbeat_agent"].encode_request(
                head, (AgentHeartbeat(10**6, AgentCondition.READY, "", AgentLoad()),)
            )
            assert await post(session, f"{world.nodes[0].url}/rpc/heartbeat_agent", body) == 200
        first = await world.client.grant_producer_id(-1, -1)
    assert (await world.client.grant_producer_id(-1, -1)).producer_id == first.producer_id + 1, "it was asked once"
    memory = world.nodes[0].server.term.answers  # type: ignore[union-attr]
    assert (world.client._id, 0) in memory._lanes and len(memory._lanes) == 20


async def test_a_client_that_breaks_off_is_no_defect(world: World) -> None:
    """No line for each, and least of all with a traceback."""
    with capture_logs() as logs:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", world.nodes[0].port)
            writer.write(b"POST /rpc/leave_agent HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            await writer.drain()
            while not world.nodes[0].server._in_flight.held:
                await asyncio.sleep(0.001)
            writer.transport.abort()
            while world.nodes[0].server._in_flight.held:
                await asyncio.sleep(0.001)
    assert logs == []
    assert (
        world.nodes[0].registry.get_sample_value(
            "tidelog_metadata_rpc_calls_total", {"method": "leave_agent", "outcome": "malformed"}
        )
        == 20
    )


async def test_a_client_whose_calls_cannot_be_remembered_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LANE_CALLS_MAX", 4)
    world.store.gate = asyncio.Event()
    creating = [asyncio.create_task(world.client.create_topic(f"t{number}", 1, {})) for number in range(12)]
    await asyncio.sleep(0.1)
    assert world.nodes[0].server.term.answers.under_way == 4  # type: ignore[union-attr]
    world.store.gate.set()
    assert [topic.name for topic in await asyncio.gather(*creating)] == [f"t{number}" for number in range(12)]


async def test_a_call_larger_than_any_is_not_sent(world: World) -> None:
    with pytest.raises(MetadataUnavailable, match="larger"):
        await world.client.join_group(msgspec.structs.replace(MEMBER, protocols=(("range", bytes(33 * 2**20)),)))


async def test_a_defect_in_the_service_is_one_calls_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(world.service, "grant_producer_id", broken)
    with pytest.raises(MetadataUnavailable, match="ZeroDivisionError"):
        await world.client.grant_producer_id(-1, -1)
    monkeypatch.undo()
    await world.client.grant_producer_id(-1, -1)


# --- everything at once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_under_random_faults_and_failovers_every_promise_holds(world: World, seed: int) -> None:
    chance = random.Random(seed)
    faults = [*[Fault.NONE] * 6, Fault.LOST, Fault.ANSWER_LOST, Fault.REPEATED, Fault.LATE_COPY, Fault.DELAYED]
    one_at_a_time = asyncio.Lock()
    failovers_between: list[str] = []

    async def fail_over(method: str) -> None:
        """The next leader remembers nothing but what was saved, and that is all the repetition can meet."""
        if METHODS[method].remembered and len(failovers_between) < 6 and not one_at_a_time.locked():
            failovers_between.append(method)
            async with one_at_a_time:
                await world.lead(chance.randrange(2))

    for proxy in world.proxies:
        proxy.plan = lambda _method: chance.choice(faults)
        proxy.answer_lost = fail_over
        proxy.late_seconds = 0.2
    acknowledged: dict[int, int] = {}
    granted: list[int] = []
    topics: list[str] = []

    async def commits(first: int) -> None:
        for sequence in range(first, first + 40):
            acknowledged[sequence] = await world.commit(sequence)

    async def offsets() -> None:
        for offset in range(60):
            await world.commit_offset(offset)
            assert await world.committed_offset() == offset

    async def producers() -> None:
        for _ in range(40):
            granted.append((await world.client.grant_producer_id(-1, -1)).producer_id)

    async def creations() -> None:
        for number in range(20):
            topic = await world.client.create_topic(f"topic-{number}", 1, {})
            topics.append(topic.name)
            if number % 2:
                await world.client.delete_topic(topic.topic_id)
                topics.remove(topic.name)

    async def failovers() -> None:
        for number in range(4):
            await asyncio.sleep(0.3)
            async with one_at_a_time:
                await world.lead(chance.randrange(2) if number else 1)

    async with asyncio.TaskGroup() as group:
        for work in (commits(0), offsets(), producers(), creations(), failovers()):
            group.create_task(work)
    for proxy in world.proxies:
        await proxy.late_copies()
        proxy.plan = lambda _method: Fault.NONE
    (found,) = await world.client.find_extents([ExtentsQuery(world.topic.topic_id, 0, 0, 10**9)])
    assert {extent.segment_key: extent.base_offset for extent in found.extents} == {
        f"segments/{sequence}": offset for sequence, offset in acknowledged.items()
    }, "every commit once, at the offset that was acknowledged"
    assert len(found.extents) == len(acknowledged) == found.high_watermark
    assert len(set(granted)) == len(granted)
    assert await world.committed_offset() == 59
    kept = {topic.name for topic in world.service._visible.topics.values()} - {"logs"}
    assert kept == set(topics)
    assert failovers_between, "the ids of calls were of use"
    with pytest.raises(Refused):
        await world.client.create_topic("logs", 1, {})


async def test_a_leader_that_breaks_every_call_is_not_asked_without_pause(world: World) -> None:
    world.proxies[0].plan = lambda _method: Fault.LOST
    asking = asyncio.create_task(world.client.describe_agents())
    await asyncio.sleep(1.0)
    assert 3 <= len(world.proxies[0].calls) < 30
    world.proxies[0].plan = lambda _method: Fault.NONE
    assert len(await asking) == 1
