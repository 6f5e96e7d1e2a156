"""Kafka connections over the simulated network: real protocol objects at the agent's end, frames at the client's."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from agent.server import KafkaServer
from tests.simulation.loop import PROCESS, SimProcess
from tests.simulation.network import Channel, Network

CONNECT_SECONDS = 3.0


class Disconnected(Exception):
    """The connection is of no more use, or could not be made."""


class SimKafkaServer(KafkaServer):
    """``agent.server.KafkaServer`` that listens on the simulated network."""

    network: Network
    """Of the world that runs now."""
    _address: tuple[str, int]

    async def bind(self, host: str, port: int) -> int:
        process = PROCESS.get()
        assert process is not None
        self._address = (process.host, port)
        return port

    async def start(self) -> None:
        from agent.connection import Connection

        self.network.listeners[self._address] = lambda: Connection(self)
        self._sweeper = self.supervisor.start("kafka-sweeper", self._sweep_forever())

    async def stop_accepting(self) -> None:
        self.network.listeners.pop(self._address, None)


class ServerTransport(asyncio.Transport):
    """The agent's end of one connection."""

    def __init__(self, link: Link, protocol: asyncio.BufferedProtocol) -> None:
        super().__init__()
        self._link = link
        self._protocol = protocol
        self._closing = False
        self._paused = False
        self._received: deque[bytes] = deque()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._link.source.host, 40_000) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        asyncio.get_running_loop().call_soon(self._deliver)

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._link.down.send(self._link.client_receives, bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._link.down.send(self._link.client_hears_end, "closed by the agent")
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)

    # --- what arrives -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        self._received.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self._received and not self._paused and not self._closing:
            data = memoryview(self._received.popleft())
            while data and not self._paused and not self._closing:
                buffer = self._protocol.get_buffer(len(data))
                count = min(len(buffer), len(data))
                buffer[:count] = data[:count]
                self._protocol.buffer_updated(count)
                data = data[count:]
            if data:
                self._received.appendleft(bytes(data))

    def peer_is_gone(self) -> None:
        if not self._closing:
            self._closing = True
            self._protocol.connection_lost(ConnectionResetError("connection reset"))


class Link:
    """One connection of a client (``source``) to an agent (``target``)."""

    def __init__(self, network: Network, source: SimProcess, target: SimProcess) -> None:
        self.source = source
        self.target = target
        self.up = Channel(network, source, target)
        self.down = Channel(network, target, source)
        self._network = network
        self._transport: ServerTransport | None = None
        self._buffer = bytearray()
        self._frames: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: str | None = None

    # --- the client's side --------------------------------------------------------------------------------

    @classmethod
    async def connect(cls, network: Network, host: str, port: int) -> Link:
        """:raises Disconnected:"""
        source, target = PROCESS.get(), network.processes.get(host)
        assert source is not None
        if target is None:
            await asyncio.sleep(0.001)
            raise Disconnected(f"nobody is at {host}")
        link = cls(network, source, target)
        network.opened(link)
        link.up.send(link._accept, (host, port))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await link._accepted
        except TimeoutError:
            link.close()
            raise Disconnected(f"{host} does not answer") from None
        return link

    def send(self, frame: bytes) -> None:
        """:raises Disconnected:"""
        if self._ended is not None:
            raise Disconnected(self._ended)
        self.up.send(self._server_receives, struct.pack(">i", len(frame)) + frame)

    async def receive(self) -> bytes:
        """The next frame, without its length. :raises Disconnected:"""
        while not self._frames:
            if self._ended is not None:
                raise Disconnected(self._ended)
            self._changed.clear()
            await self._changed.wait()
        return self._frames.popleft()

    def close(self) -> None:
        if self._ended is None:
            self._ended = "closed by the client"
            self._changed.set()
            self._network.closed(self)
            self.up.send(self._server_hears_end)

    # --- on the way ---------------------------------------------------------------------------------------

    def _accept(self, address: tuple[str, int]) -> None:
        factory: Callable[[], asyncio.BufferedProtocol] | None = self._network.listeners.get(address)
        if factory is None:
            self.down.send(self._refused)
            return
        protocol = factory()
        self._transport = ServerTransport(self, protocol)
        protocol.connection_made(self._transport)
        self.down.send(self._welcomed)

    def _welcomed(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _refused(self) -> None:
        self.client_hears_end("connection refused")

    def _server_receives(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.receive(data)

    def _server_hears_end(self) -> None:
        if self._transport is not None:
            self._transport.peer_is_gone()

    def client_receives(self, data: bytes) -> None:
        if self._ended is not None:
            return
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4:
            end = 4 + int.from_bytes(buffer[:4], "big")
            if len(buffer) < end:
                break
            self._frames.append(bytes(buffer[4:end]))
            del buffer[:end]
        self._changed.set()

    def client_hears_end(self, why: str) -> None:
        if self._ended is None:
            self._ended = why
            self._network.closed(self)
            self._changed.set()
        if not self._accepted.done():
            self._accepted.set_exception(Disconnected(why))

    def cut_off(self, silently: bool) -> None:
        """A process at one end died, or the network broke the connection."""
        self._network.closed(self)
        if silently:
            return
        if not self.source.dead:
            self.down.send(self.client_hears_end, "connection reset")
        if not self.target.dead:
            self.up.send(self._server_hears_end)
