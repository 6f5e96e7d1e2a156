"""A whole drain: clients told, moved and let go, in virtual time over transports without sockets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from agent.connection import Connection
from agent.drain import DrainReport, drain
from agent.handlers import find_coordinator, metadata
from agent.server import KafkaServer
from agent.wire import apis
from ingest.ticket import PendingBatch, Ticket
from metadata.agent_model import AgentCondition
from metadata.model import Topic
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from tests.support.agents import Epochs, MemberAgent
from tests.support.connections import FakeTransport, FakeWriter, Gate, deliver, frame, heartbeat, produce
from tests.support.metadata import running_service
from tests.support.virtual_time import VirtualClock

NOT_LEADER, NOT_COORDINATOR = 6, 16


class Writer(Epochs, FakeWriter):
    """Settles each batch ``seconds`` after it was appended."""

    def __init__(self) -> None:
        Epochs.__init__(self)
        FakeWriter.__init__(self)
        self.seconds = 0.3
        self.committed = 0

    def append(self, ticket: Ticket, batches: Sequence[PendingBatch]) -> None:
        super().append(ticket, batches)
        for _ in batches:
            asyncio.get_running_loop().call_later(self.seconds, self._commit)

    def _commit(self) -> None:
        self.committed += self.appended[0][2].draft.record_count
        self.settle(1)

    async def drain(self) -> None:
        while self.appended:
            await asyncio.sleep(0.01)

    def settled_records(self) -> dict[str, int]:
        return {"committed": self.committed}

    def pending_records(self) -> int:
        return sum(batch.draft.record_count for _, _, batch in self.appended)


class Node(MemberAgent):
    """An agent with a Kafka side, where fetches and joins wait for ever."""

    def __init__(self, service: MetadataService, number: int) -> None:
        super().__init__(service, number)
        self.kafka = Writer()
        self.agent.writer = cast(Any, self.kafka)
        self.agent.topics.reset([Topic(bytes([1]) * 16, "logs", 4, {}, 0)])
        self.waiting = {api: Gate() for api in (apis.FETCH, apis.JOIN_GROUP, apis.HEARTBEAT, apis.LEAVE_GROUP)}
        handlers: dict[int, Any] = {
            **self.waiting,
            apis.METADATA: metadata.handle,
            apis.FIND_COORDINATOR: find_coordinator.handle,
        }
        self.server = KafkaServer(self.agent, self.supervisor, handlers)

    def connect(self) -> Client:
        return Client(self.server)

    async def drain(self, seconds_max: float = 25.0) -> DrainReport:
        return await drain(self.agent, self.server, self.membership, self.supervisor, seconds_max)

    async def stop(self) -> None:
        await self.server.close()
        await super().stop()


class Client:
    """One connection, and what came over it."""

    def __init__(self, server: KafkaServer) -> None:
        self.transport = FakeTransport()
        self.connection = Connection(server)
        self.transport.protocol = self.connection
        self.connection.connection_made(cast(Any, self.transport))

    def send(self, data: bytes) -> None:
        deliver(self.connection, self.transport, data)

    def answers(self) -> list[tuple[int, bytes]]:
        return self.transport.answers()

    @property
    def closed(self) -> bool:
        return self.transport.closing


def fetch(correlation_id: int) -> bytes:
    body = struct.pack(">iiiib", -1, 500, 1, 1 << 20, 0) + struct.pack(">i", 1) + struct.pack(">h", 4) + b"logs"
    return frame(apis.FETCH, 4, correlation_id, body + struct.pack(">iiqi", 1, 2, 0, 1 << 20))


def join(correlation_id: int) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack(">h", len(value)) + value

    body = text(b"g") + struct.pack(">i", 10_000) + text(b"m") + text(b"consumer") + struct.pack(">i", 0)
    return frame(apis.JOIN_GROUP, 0, correlation_id, body)


def ask_metadata(correlation_id: int) -> bytes:
    return frame(apis.METADATA, 1, correlation_id, struct.pack(">i", -1))


def leave(correlation_id: int) -> bytes:
    return frame(apis.LEAVE_GROUP, 0, correlation_id, struct.pack(">h", 1) + b"g" + struct.pack(">h", 1) + b"m")


def produced(rest: bytes) -> tuple[int, int]:
    """(error code, base offset) of a Produce 7 answer for one partition of logs."""
    return cast(tuple[int, int], struct.unpack_from(">hq", rest, 4 + 2 + 4 + 4 + 4))


def fetched(rest: bytes) -> int:
    """The error code of a Fetch 4 answer for one partition of logs."""
    return cast(int, struct.unpack_from(">h", rest, 4 + 4 + 2 + 4 + 4 + 4)[0])


@pytest.fixture
async def service() -> AsyncIterator[MetadataService]:
    async with running_service(MemoryMetadataStore(), VirtualClock()) as started:
        yield started


@pytest.fixture
async def node(service: MetadataService) -> AsyncIterator[Node]:
    """One of two agents."""
    first, second = Node(service, 1), MemberAgent(service, 2)
    for member in (first, second):
        await member.join()
    await asyncio.sleep(0.1)
    yield first
    for member in (first, second):
        await member.stop()


async def test_what_was_taken_in_is_acknowledged_and_what_comes_later_is_sent_elsewhere(node: Node) -> None:
    producer = node.connect()
    producer.send(produce(1) + produce(2))
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.15)
    assert node.agent.moving
    producer.send(produce(3))
    assert len(node.kafka.appended) == 2, "it is not taken in"
    await asyncio.sleep(0.4)
    answers = [(number, *produced(rest)) for number, rest in producer.answers()]
    assert answers == [(1, 0, 100), (2, 0, 101), (3, NOT_LEADER, -1)]
    report = await draining
    assert producer.closed
    assert (report.connections_moved, report.connections_left, report.records_flushed) == (1, 0, 2)
    assert report.seconds < 2
    assert (
        report.sentence()
        == f"Drained in {report.seconds:.1f} s: 1 connection moved; 2 records flushed; nothing was lost."
    )


async def test_a_client_has_moved_when_it_asks_for_nothing_more_and_not_before(node: Node) -> None:
    producer = node.connect()
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.1)
    for number in range(10):  # it has not understood yet
        producer.send(produce(number))
        await asyncio.sleep(0.2)
        assert not producer.closed
        assert produced(producer.answers()[0][1])[0] == NOT_LEADER
    producer.send(ask_metadata(99))
    await asyncio.sleep(0.2)
    ((_, rest),) = producer.answers()
    assert b"agent-2" in rest
    assert b"agent-1" not in rest
    await asyncio.sleep(0.5)
    assert producer.closed, "asking where to go is not asking for more"
    assert (await draining).connections_moved == 1


async def test_who_waits_is_told_at_once_and_who_says_goodbye_is_heard(node: Node) -> None:
    reader, member, leaver = node.connect(), node.connect(), node.connect()
    reader.send(fetch(1))
    member.send(join(1))
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.1)
    ((_, rest),) = reader.answers()
    assert fetched(rest) == NOT_LEADER
    ((_, rest),) = member.answers()
    assert struct.unpack_from(">h", rest)[0] == NOT_COORDINATOR
    assert asyncio.get_running_loop().time() - began < 0.2
    assert node.waiting[apis.FETCH].cancelled == node.waiting[apis.JOIN_GROUP].cancelled == 1
    reader.send(fetch(2))
    member.send(heartbeat(2))
    leaver.send(leave(1))
    await asyncio.sleep(0.01)
    assert fetched(reader.answers()[0][1]) == NOT_LEADER
    assert struct.unpack_from(">h", member.answers()[0][1])[0] == NOT_COORDINATOR
    assert len(node.waiting[apis.LEAVE_GROUP].calls) == 1
    node.waiting[apis.LEAVE_GROUP].open()
    report = await draining
    assert all(client.closed for client in (reader, member, leaver))
    assert (report.connections_moved, report.connections_idle, report.connections_left) == (2, 1, 0)


async def test_idle_clients_are_let_go_and_new_ones_are_told(node: Node) -> None:
    idle = [node.connect() for _ in range(3)]
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.9)
    assert not any(client.closed for client in idle)
    await asyncio.sleep(0.3)
    assert all(client.closed for client in idle)
    late = node.connect()
    late.send(ask_metadata(1))
    await asyncio.sleep(0.01)
    assert b"agent-2" in late.answers()[0][1]
    report = await draining
    assert late.closed
    assert (report.connections_moved, report.connections_idle) == (1, 3)
    assert "1 connection moved, 3 idle; 0 records flushed; nothing was lost." in report.sentence()


async def test_records_that_want_no_answer_are_stored_before_the_connection_says_it(node: Node) -> None:
    producer = node.connect()
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.1)
    producer.send(produce(1, acks=0))
    assert len(node.kafka.appended) == 1
    report = await draining
    assert producer.closed
    assert producer.answers() == []
    assert (report.connections_moved, report.records_flushed, report.records_cut_off) == (1, 1, 0)


async def test_a_client_that_does_not_go_is_cut_off_when_the_time_is_over(node: Node) -> None:
    stubborn = node.connect()
    node.kafka.seconds = 100.0
    stubborn.send(produce(0))
    draining = asyncio.create_task(node.drain(seconds_max=5.0))
    while not draining.done():
        if not stubborn.closed:
            stubborn.send(heartbeat(1))
        await asyncio.sleep(0.2)
    report = draining.result()
    assert report.seconds == pytest.approx(5.0, abs=0.2)
    assert (report.connections_moved, report.connections_left, report.records_cut_off) == (0, 1, 1)
    assert "1 closed without having moved" in report.sentence()
    assert "cut off: 1 record not acknowledged, which producers send again" in report.sentence()
    assert "nothing was lost" not in report.sentence()


async def test_alone_it_stops_accepting_answers_and_goes(service: MetadataService) -> None:
    alone = Node(service, 1)
    await alone.join()
    await asyncio.sleep(0.1)
    producer, reader = alone.connect(), alone.connect()
    producer.send(produce(1))
    reader.send(fetch(1))
    await asyncio.sleep(0.01)
    report = await alone.drain()
    assert not alone.agent.moving
    assert [(number, *produced(rest)) for number, rest in producer.answers()] == [(1, 0, 100)]
    assert reader.answers() == [], "there is nowhere to send it"
    assert report.seconds == pytest.approx(0.3, abs=0.05)
    assert (report.connections_left, report.records_flushed) == (2, 1)
    assert await service.describe_agents() == []
    await alone.stop()


async def test_when_the_last_other_agent_goes_the_rest_are_not_kept_waiting(
    service: MetadataService, node: Node
) -> None:
    producer = node.connect()
    draining = asyncio.create_task(node.drain())
    await asyncio.sleep(0.2)
    producer.send(produce(1))
    (other,) = [one.info for one in await service.describe_agents() if one.info.condition is AgentCondition.READY]
    await service.leave_agent(other.agent_epoch)
    report = await draining
    assert report.seconds < 1
    assert report.connections_left == 1
