"""The listener on real sockets, on uvloop and on asyncio's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from agent.handlers import api_versions
from agent.server import KafkaServer
from agent.wire import apis
from runtime.clock import SystemClock
from tests.support.batches import build_batch
from tests.support.connections import Harness, frame, produce

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run_on_loop(test: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await test()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(bounded())

    return run_on_loop


class Fixture:
    """A listening server whose writer commits at once."""

    def __init__(self, **limits: int) -> None:
        self.harness = Harness({apis.API_VERSIONS: api_versions.handle}, **limits)
        self.harness.writer.at_once = True
        self.harness.agent.clock = SystemClock()
        self.server = KafkaServer(self.harness.agent, self.harness.supervisor, {apis.API_VERSIONS: api_versions.handle})
        self.port = 0

    async def __aenter__(self) -> Fixture:
        self.port = await self.server.bind("127.0.0.1", 0)
        await self.server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.close()
        await self.harness.supervisor.stop()
        assert self.harness.budget.held_bytes == 0
        assert self.harness.failures == []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    data = await reader.readexactly(length)
    return struct.unpack_from(">i", data)[0], data[4:]


def test_requests_of_all_sizes(run: Any) -> None:
    async def test() -> None:
        async with Fixture() as fixture:
            reader, writer = await fixture.connect()
            sizes = [10, 900_000, 10, 10, 130_000, 500_000, 1]
            for number, size in enumerate(sizes):
                writer.write(produce(number, {("logs", 0): build_batch([b"x" * size])}))
            writer.write(frame(apis.API_VERSIONS, 0, 77))
            for number in range(len(sizes)):
                correlation_id, rest = await answer(reader)
                assert correlation_id == number
                assert struct.unpack_from(">h", rest, 4 + 6 + 4 + 4) == (0,)
            correlation_id, rest = await answer(reader)
            assert correlation_id == 77 and struct.unpack_from(">hi", rest) == (0, len(apis.APIS))
            writer.close()

    run(test)


def test_draining_closes_idle_connections_and_refuses_new_ones(run: Any) -> None:
    async def test() -> None:
        async with Fixture() as fixture:
            idle_reader, idle_writer = await fixture.connect()
            reader, writer = await fixture.connect()
            fixture.harness.writer.at_once = False
            writer.write(produce(1))
            while not fixture.harness.writer.appended:
                await asyncio.sleep(0.001)
            drain = fixture.harness.supervisor.start("drain", fixture.server.drain())
            assert await idle_reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await fixture.connect()
            assert not drain.done()
            fixture.harness.writer.settle()
            assert (await answer(reader))[0] == 1
            assert await reader.read() == b""
            await drain
            idle_writer.close()
            writer.close()

    run(test)


def test_one_connection_too_many(run: Any) -> None:
    async def test() -> None:
        async with Fixture(connections_max=1) as fixture:
            reader, writer = await fixture.connect()
            writer.write(frame(apis.API_VERSIONS, 0, 1))
            await answer(reader)
            late_reader, late_writer = await fixture.connect()
            with contextlib.suppress(ConnectionResetError):
                assert await late_reader.read() == b""
            late_writer.close()
            writer.write(frame(apis.API_VERSIONS, 0, 2))
            assert (await answer(reader))[0] == 2
            writer.close()

    run(test)


def test_a_client_that_does_not_read_its_answers_is_closed(run: Any) -> None:
    async def test() -> None:
        async with Fixture(write_stall_ms=200) as fixture:
            request = frame(apis.API_VERSIONS, 0, 1) * 1000
            closed = fixture.harness.metrics.connections_closed
            with socket.create_connection(("127.0.0.1", fixture.port)) as client:
                client.setblocking(False)
                while closed["write_stall"] == 0:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        client.send(request)
                    await asyncio.sleep(0.001)

    run(test)


def test_an_address_that_is_taken(run: Any) -> None:
    async def test() -> None:
        async with Fixture() as fixture:
            other = Fixture()
            with pytest.raises(OSError, match="in use"):
                await other.server.bind("127.0.0.1", fixture.port)
            await other.server.close()

    run(test)
