"""Bodies received past aiohttp, through aiohttp's own client: on uvloop and asyncio, plain and over TLS."""

from __future__ import annotations

import asyncio
import itertools
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import pytest
import uvloop

from storage.s3_download import receive_body
from tests.support.certificates import Authority

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
LOST = b"the connection is lost here"
ENDED = b"the server closes here"
HOLD = b"nothing more comes, but the connection stays"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Server:
    """Answers the requests of all connections in turn, each with the next script: pieces that are sent 10 ms apart."""

    def __init__(self, scripts: Sequence[Sequence[bytes]], authority: Authority | None) -> None:
        self._scripts = iter(scripts)
        self._tls: ssl.SSLContext | None = None
        self._trust: ssl.SSLContext | bool = True
        if authority is not None:
            pair = authority.issue("server")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(pair.certificate, pair.key)
            self._trust = authority.client_context()
        self._serving: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.receiving = asyncio.Event()
        self.holding = asyncio.Event()
        self.closed_by_client = asyncio.Event()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        self._url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        self._session = aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(ssl=self._trust))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._server.close()
        if self._serving:
            await asyncio.wait(self._serving)

    async def get(self, pause_seconds: float = 0) -> bytes:
        """As :class:`storage.s3.S3Store` does it; ``pause_seconds`` after the head has come."""
        response = await self._session.get(self._url)
        try:
            await asyncio.sleep(pause_seconds)
            self.receiving.set()
            return await receive_body(response, int(response.headers["Content-Length"]))
        finally:
            response.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in next(self._scripts):
                    if piece is LOST:
                        writer.transport.abort()
                        return
                    if piece is ENDED:
                        return
                    if piece is HOLD:
                        self.holding.set()
                        await reader.read()
                        self.closed_by_client.set()
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


Run = Callable[[Sequence[Sequence[bytes]], Callable[[Server], Awaitable[None]]], None]


@pytest.fixture(params=[(loop, tls) for loop in LOOPS for tls in (False, True)], ids=lambda p: f"{p[0]}-tls={p[1]}")
def run(request: pytest.FixtureRequest, authority: Authority) -> Run:
    loop, tls = request.param

    def run_with_server(scripts: Sequence[Sequence[bytes]], test: Callable[[Server], Awaitable[None]]) -> None:
        problems: list[dict[str, Any]] = []

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            async with asyncio.timeout(20), Server(scripts, authority if tls else None) as server:
                await test(server)

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(bounded())
        assert problems == []

    return run_with_server


def content(byte_length: int, seed: int = 0) -> bytes:
    """Bytes that tell where they belong."""
    return random.Random(seed).randbytes(byte_length)


@pytest.mark.parametrize("byte_length", [0, 1, 1000, 256 * 1024, 3_000_001])
def test_bodies_of_all_sizes_come_whole_over_one_connection(run: Run, byte_length: int) -> None:
    bodies = [content(byte_length, seed) for seed in range(4)]

    async def test(server: Server) -> None:
        for body in bodies:
            assert await server.get() == body
        assert server.connections == 1

    run([[HEAD % byte_length + body] for body in bodies], test)


def test_a_body_in_pieces(run: Run) -> None:
    body = content(900_000)
    cuts = [0, 1, 100, 100_000, 650_000, 899_999, 900_000]
    pieces = [body[start:end] for start, end in itertools.pairwise(cuts)]

    async def test(server: Server) -> None:
        assert await server.get() == body
        assert await server.get() == body
        assert server.connections == 1

    run([[HEAD % len(body), *pieces], [HEAD % len(body) + pieces[0], *pieces[1:]]], test)


def test_what_came_before_it_was_read(run: Run) -> None:
    """More than aiohttp takes in before it pauses."""
    body = content(5_000_000)

    async def test(server: Server) -> None:
        assert await server.get(pause_seconds=0.2) == body
        assert await server.get(pause_seconds=0.2) == body[:600_000]
        assert server.connections == 1

    run([[HEAD % len(body) + body], [HEAD % 600_000 + body[:600_000]]], test)


@pytest.mark.parametrize("end", [LOST, ENDED])
@pytest.mark.parametrize("pause_seconds", [0, 0.2])
def test_a_connection_that_breaks_within_the_body(run: Run, end: bytes, pause_seconds: float) -> None:
    body = content(700_000)

    async def test(server: Server) -> None:
        with pytest.raises(aiohttp.ClientError):
            await server.get(pause_seconds)
        assert await server.get() == body
        assert server.connections == 2

    run([[HEAD % len(body), body[:400_000], end], [HEAD % len(body), body]], test)


def test_a_cancelled_read_closes_its_connection(run: Run) -> None:
    body = content(700_000)

    async def test(server: Server) -> None:
        reading = asyncio.ensure_future(server.get())
        await server.receiving.wait()
        await server.holding.wait()
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        await server.closed_by_client.wait()
        assert await server.get() == body

    run([[HEAD % len(body), body[:400_000], HOLD], [HEAD % len(body), body]], test)


def test_bytes_after_the_body_are_not_taken_for_the_next_one(run: Run) -> None:
    body, other = content(700_000), content(700_000, seed=1)

    async def test(server: Server) -> None:
        assert await server.get() == body
        await asyncio.sleep(0.1)
        assert await server.get() == other

    run([[HEAD % len(body), body[:500_000], body[500_000:] + b"stray" * 10], [HEAD % len(other), other]], test)
