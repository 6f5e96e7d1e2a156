"""A Kafka listener with TLS on a real socket, whose writer, handlers and memory are a test's."""

from __future__ import annotations

import asyncio
import ssl
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.handlers import api_versions
from agent.server import KafkaServer
from agent.wire import apis
from runtime.clock import SystemClock
from runtime.settings import ConnectionSettings, RoutingSettings, Settings, TlsSettings
from tests.support.certificates import Authority, Pair
from tests.support.connections import Harness, frame

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class QuickClock(SystemClock):
    """Real time, but nobody sleeps for long."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.05))


class TlsServer:
    """Listens while it is entered. Afterwards asserts that nothing is held and nothing failed."""

    def __init__(
        self,
        folder: Path,
        *,
        client_ca: Authority | None = None,
        principals: tuple[str, ...] = (),
        handlers: Mapping[int, Any] | None = None,
        budget_bytes: int = 64 << 20,
        handshake_ms: int = 10_000,
        handshakes_max: int = 500,
        **limits: int,
    ) -> None:
        self.authority = Authority(folder)
        self.pair = self.authority.issue("server")
        self.harness = Harness(budget_bytes=budget_bytes, topics={"logs": {"max.message.bytes": "20000000"}})
        self.harness.writer.at_once = True
        agent = self.harness.agent
        agent.clock = QuickClock()
        agent.settings = Settings(
            connection=ConnectionSettings(**limits),
            tls=TlsSettings(
                certificate=self.pair.certificate,
                key=self.pair.key,
                client_ca=None if client_ca is None else client_ca.path,
                handshake_ms=handshake_ms,
                handshakes_max=handshakes_max,
            ),
            routing=RoutingSettings(principals=principals),
        )
        self.metrics = agent.metrics
        self.budget = agent.budget
        all_handlers = {apis.API_VERSIONS: api_versions.handle, **(handlers or {})}
        self.server = KafkaServer(agent, self.harness.supervisor, all_handlers)
        self.port = 0

    async def __aenter__(self) -> TlsServer:
        self.port = await self.server.bind("127.0.0.1", 0)
        await self.server.start()
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        await self.server.close()
        await until(lambda: self.budget.held_bytes == 0 or kind is not None)
        await self.harness.supervisor.stop()
        if kind is None:
            assert self.harness.failures == []
            assert self.metrics.tls_handshakes_pending == 0
            assert self.metrics.connections_open == 0

    async def connect(self, pair: Pair | None = None, context: ssl.SSLContext | None = None) -> Streams:
        context = context or self.authority.client_context(pair)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, limit=1 << 24)

    async def ping(self, streams: Streams, correlation_id: int = 1) -> None:
        """Ask for ApiVersions; asserts that the answer comes."""
        streams[1].write(frame(apis.API_VERSIONS, 0, correlation_id))
        assert (await answer(streams[0]))[0] == correlation_id


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """(correlation id, rest) of the next answer."""
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    data = await reader.readexactly(length)
    return struct.unpack_from(">i", data)[0], data[4:]


async def until(condition: Callable[[], object], within_s: float = 10) -> None:
    """Wait for ``condition``."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        await asyncio.sleep(0.002)


class MemoryClient:
    """A client's TLS without a socket: a test decides how its bytes travel."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: int = 1 << 20) -> None:
        """``piece``: bytes sent at a time."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send(writer, piece)
                self.incoming.write(await reader.read(1 << 16))
            else:
                await self.send(writer, piece)
                return

    async def send(self, writer: asyncio.StreamWriter, piece: int = 1 << 20) -> None:
        """Send what TLS has put out."""
        data = self.outgoing.read()
        for start in range(0, len(data), piece):
            writer.write(data[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0)

    async def read(self, reader: asyncio.StreamReader) -> bytes:
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                data = await reader.read(1 << 16)
                assert data, "the server closed the connection"
                self.incoming.write(data)
