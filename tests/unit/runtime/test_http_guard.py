"""The HTTP side under those who connect and say nothing, or nonsense: places are bounded, and lines are few."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from runtime import http
from runtime.health import Health
from runtime.http import HttpServer

ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def says(self, data: bytes) -> bytes:
        """The first line of the answer; empty when the connection is closed instead."""
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            async with asyncio.timeout(5):
                line = await self._reader.readline()
                if line:
                    while await self._reader.readline() != b"\r\n":
                        pass
                    await self._reader.readexactly(len(b'{"status": "ok"}'))
                return line
        return b""

    async def is_closed(self) -> bool:
        try:
            async with asyncio.timeout(0.2):
                return await self._reader.read() is not None
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self._writer.transport.abort()


Connect = Callable[[], Awaitable[Caller]]


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer(Health(), CollectorRegistry(), connections_max=3)
    yield made
    await made.stop()


@pytest.fixture
async def connect(server: HttpServer) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:
        ports: list[int] = []

        async def make() -> Caller:
            if not ports:
                ports.append(await server.start("127.0.0.1", 0))
            caller = Caller(*await asyncio.open_connection("127.0.0.1", ports[0]))
            stack.callback(caller.close)
            return caller

        yield make


async def test_those_who_say_nothing_make_room_and_those_who_ask_are_answered(connect: Connect) -> None:
    first = await connect()
    assert await first.says(ASK) == b"HTTP/1.1 200 OK\r\n"
    silent = [await connect() for _ in range(2)]
    assert await first.says(ASK) == b"HTTP/1.1 200 OK\r\n"
    for _ in range(2):
        assert await (await connect()).says(ASK) == b"HTTP/1.1 200 OK\r\n"
    assert not await first.is_closed()
    for _ in range(5):
        assert await (await connect()).says(ASK) == b"HTTP/1.1 200 OK\r\n"
    assert all([await each.is_closed() for each in silent])


async def test_a_connection_with_a_request_under_way_keeps_its_place(server: HttpServer, connect: Connect) -> None:
    gate, asked = asyncio.Event(), asyncio.Event()

    async def wait(_request: web.Request) -> web.Response:
        asked.set()
        await gate.wait()
        return web.Response(text='{"status": "ok"}')

    server.app.router.add_get("/wait", wait)
    waiting = []
    for _ in range(3):
        asked.clear()
        caller = await connect()
        waiting.append(asyncio.create_task(caller.says(ASK.replace(b"healthz", b"wait"))))
        await asked.wait()
    assert await (await connect()).says(ASK) == b"", "there is no place at all"
    gate.set()
    assert await asyncio.gather(*waiting) == [b"HTTP/1.1 200 OK\r\n"] * 3
    assert await (await connect()).says(ASK) == b"HTTP/1.1 200 OK\r\n"


async def test_connections_that_went_free_their_places(connect: Connect, server: HttpServer) -> None:
    for _ in range(10):
        caller = await connect()
        assert await caller.says(ASK)
        caller.close()
        await asyncio.sleep(0.01)
    doorkeeper = server._doorkeeper
    assert doorkeeper is not None and not doorkeeper._busy
    doorkeeper._look()
    assert len(doorkeeper) == 0


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost:", ASK + b"GET /hea"])
async def test_a_request_that_does_not_come_is_not_waited_for(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.2)
    caller = await connect()
    caller._writer.write(begun)
    async with asyncio.timeout(2):
        while not await caller.is_closed():
            pass


async def test_nonsense_is_a_line_now_and_then_without_what_was_sent(connect: Connect, server: HttpServer) -> None:
    async def breaks(_request: web.Request) -> web.Response:
        raise ZeroDivisionError

    async def reads(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    server.app.router.add_get("/breaks", breaks)
    server.app.router.add_post("/reads", reads)
    with capture_logs() as logs:
        for _ in range(5):
            for request in (
                b"GET /healthz HTTP/1.1\r\nX: " + b"secret" * 5_000 + b"\r\n\r\n",
                ASK[:-2] + b"X: y\r\n" * 3_000 + b"\r\n",
                b"POST /reads HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx",
                ASK.replace(b"healthz", b"breaks"),
            ):
                caller = await connect()
                caller._writer.write(request)
                await asyncio.sleep(0.02)
                caller.close()
        await asyncio.sleep(0.02)
    assert sorted(line["event"] for line in logs) == ["http_bad_request", "http_bad_request", "http_failed"]
    assert "secret" not in repr(logs)
    assert isinstance(next(line for line in logs if line["event"] == "http_failed")["exc_info"], ZeroDivisionError)
