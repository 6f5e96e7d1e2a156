"""A Kafka connection without a socket: a transport, a writer and handlers that do what a test tells them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry

from agent.connection import Connection
from agent.context import Agent, AgentIdentity, Body, Call
from agent.metrics import AgentMetrics
from agent.server import KafkaServer
from agent.topics import TopicDirectory
from agent.wire.codec import EncodedResponse
from ingest.ticket import IngestFailed, PendingBatch, Ticket
from metadata.model import BatchCommitted, Topic
from runtime.budget import Budget
from runtime.clock import SeededEntropy
from runtime.settings import ConnectionSettings, Settings
from runtime.tasks import Supervisor
from tests.support.agents import lone_roster
from tests.support.batches import build_batch

NOW_MS = 1_700_000_000_000


class ManualClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ms(self) -> int:
        return NOW_MS

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, _seconds: float) -> None:
        await asyncio.get_running_loop().create_future()


class FakeTransport:
    """Keeps what is written; ``kernel_takes`` False lets it pile up as with a client that does not read."""

    def __init__(self) -> None:
        self.protocol: Connection | None = None
        self.written = bytearray()
        self.waiting = 0
        self.kernel_takes = True
        self.reading = True
        self.closing = False
        self.pauses = 0

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return ("10.0.0.9", 40000)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing
        self.written += data
        if not self.kernel_takes:
            self.waiting += len(data)
            assert self.protocol is not None
            self.protocol.pause_writing()

    def writelines(self, chunks: list[bytes]) -> None:
        self.write(b"".join(chunks))

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def take(self, count: int) -> None:
        """The client reads so many of the waiting bytes."""
        assert self.protocol is not None
        self.waiting -= count
        if self.waiting == 0:
            self.protocol.resume_writing()

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False
        self.pauses += 1

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self._lose()

    def abort(self) -> None:
        self._lose()

    def _lose(self) -> None:
        if not self.closing:
            self.closing = True
            assert self.protocol is not None
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def answers(self) -> list[tuple[int, bytes]]:
        """(correlation id, rest) of every whole frame written; forgets them."""
        found = []
        position = 0
        while len(self.written) - position >= 4:
            (length,) = struct.unpack_from(">i", self.written, position)
            frame = bytes(self.written[position + 4 : position + 4 + length])
            assert len(frame) == length
            found.append((struct.unpack_from(">i", frame)[0], frame[4:]))
            position += 4 + length
        assert position == len(self.written)
        self.written.clear()
        return found


class FakeWriter:
    """Keeps what is appended until the test settles it, or settles in the next turn of the loop."""

    def __init__(self) -> None:
        self.appended: list[tuple[Ticket, int, PendingBatch]] = []
        self.at_once = False
        self.next_offset = 100
        self.fault: Exception | None = None

    def append_one(self, ticket: Ticket, batch: PendingBatch) -> None:
        self.append(ticket, [batch])

    def append(self, ticket: Ticket, batches: Sequence[PendingBatch]) -> None:
        if self.fault is not None:
            raise self.fault
        self.appended += [(ticket, index, batch) for index, batch in enumerate(batches)]
        if self.at_once:
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self, count: int | None = None, outcome: BatchCommitted | IngestFailed | None = None) -> None:
        """Settle the oldest ``count`` batches, each with the next offsets unless told otherwise."""
        due = self.appended[:count]
        del self.appended[: len(due)]
        for ticket, index, batch in due:
            ticket.settle(index, outcome or BatchCommitted(self.next_offset, 0))
            self.next_offset += batch.draft.record_count


class Gate:
    """A handler that waits until it is opened; counts what it was asked."""

    def __init__(self, answer: Body | EncodedResponse | Exception | None = None) -> None:
        self.calls: list[Call] = []
        self.answer = answer if answer is not None else {"error_code": 0}
        self._open: list[asyncio.Future[None]] = []
        self.cancelled = 0

    async def __call__(self, call: Call, _request: Any, _agent: Agent) -> Any:
        self.calls.append(call)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def open(self) -> None:
        self._open.pop(0).set_result(None)


class Harness:
    """One server's parts with manual time; :meth:`connect` makes connections."""

    def __init__(
        self,
        handlers: dict[int, Callable[..., Awaitable[Any]]] | None = None,
        budget_bytes: int = 64 << 20,
        topics: dict[str, dict[str, str]] | None = None,
        **limits: int,
    ) -> None:
        self.clock = ManualClock()
        self.budget = Budget(budget_bytes)
        self.writer = FakeWriter()
        self.topics = TopicDirectory()
        self.topics.reset(
            Topic(bytes([number + 1]) * 16, name, 4, configs, 0)
            for number, (name, configs) in enumerate((topics or {"logs": {}}).items())
        )
        self.metrics = AgentMetrics(CollectorRegistry(), self.budget)
        settings = Settings(connection=ConnectionSettings(**limits))  # type: ignore[arg-type]
        identity = AgentIdentity("cluster", 1, 1, "127.0.0.1", 9092, "zone", "group")
        self.agent = Agent(
            settings,
            self.clock,
            SeededEntropy(1),
            identity,
            cast(Any, None),
            self.topics,
            cast(Any, self.writer),
            cast(Any, None),
            self.budget,
            self.metrics,
            lone_roster(identity),
        )
        self.failures: list[tuple[str, BaseException]] = []
        self.supervisor = Supervisor(lambda name, error: self.failures.append((name, error)))
        self.server = KafkaServer(self.agent, self.supervisor, handlers or {})

    def connect(self) -> tuple[Connection, FakeTransport]:
        transport = FakeTransport()
        connection = Connection(self.server)
        transport.protocol = connection
        connection.connection_made(cast(Any, transport))
        return connection, transport

    def sweep(self, seconds: float) -> None:
        """So much time passes, with one sweep at its end."""
        self.clock.seconds += seconds
        self.server.sweep()


def deliver(connection: Connection, transport: FakeTransport, data: bytes, piece: int = 1 << 30) -> int:
    """What a socket does while it may be read from; returns the bytes that were read."""
    position = 0
    while position < len(data) and transport.reading and not transport.closing:
        buffer = connection.get_buffer(-1)
        count = min(len(buffer), len(data) - position, piece)
        assert count > 0
        buffer[:count] = data[position : position + count]
        position += count
        connection.buffer_updated(count)
    return position


def frame(api_key: int, version: int, correlation_id: int, body: bytes = b"", client_id: bytes = b"test") -> bytes:
    """A request with an old header."""
    payload = struct.pack(">hhih", api_key, version, correlation_id, len(client_id)) + client_id + body
    return struct.pack(">i", len(payload)) + payload


def produce(
    correlation_id: int, batches: dict[tuple[str, int], bytes | None] | None = None, acks: int = -1, version: int = 7
) -> bytes:
    """A Produce request of version 3-8; one valid batch for logs-0 unless told otherwise."""
    if batches is None:
        batches = {("logs", 0): build_batch()}
    body = struct.pack(">hhii", -1, acks, 30_000, len(batches))
    for (name, partition), records in batches.items():
        body += struct.pack(">h", len(name)) + name.encode() + struct.pack(">ii", 1, partition)
        body += struct.pack(">i", -1) if records is None else struct.pack(">i", len(records)) + records
    return frame(0, version, correlation_id, body)


def heartbeat(correlation_id: int) -> bytes:
    """Heartbeat version 0: a small request that is not Produce."""
    return frame(12, 0, correlation_id, struct.pack(">h", 1) + b"g" + struct.pack(">ih", 1, 1) + b"m")


async def turns(count: int = 5) -> None:
    """Let the loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)
