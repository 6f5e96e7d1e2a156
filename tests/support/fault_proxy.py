"""A network with faults between processes: TCP links that pass, are cut, swallow everything, are slow or narrow.

The proxy runs on a thread of its own; its links may be changed from any thread at any time. A *blackholed* link behaves
as a partition does: bytes that were sent arrive when it has healed, if the connection still exists then.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import uvloop

CHUNK_BYTES = 64 * 1024
CHUNKS_HELD_MAX = 64
"""Of one direction of one connection; beyond, the sender meets its own full buffers."""
_RESET = struct.pack("ii", 1, 0)


class Mode(enum.Enum):
    PASS = "pass"
    CUT = "cut"
    """Connections are reset, those there are and new ones."""
    BLACKHOLE = "blackhole"
    """Nothing passes, and nobody is told."""


class Link:
    """One listening address that leads to ``target`` (host:port). Read the counters from any thread."""

    def __init__(self, name: str, target: str, proxy: FaultProxy) -> None:
        self.name = name
        self.target = target
        self.address = ""
        """host:port to connect to."""
        self.mode = Mode.PASS
        self.delay_seconds = 0.0
        self.bytes_a_second: float | None = None
        """Of each direction of the whole link; None: no limit."""
        self.connections = 0
        """Ever accepted."""
        self.bytes_up = 0
        """Delivered to the target."""
        self.bytes_down = 0
        """Delivered to those who connected."""
        self._proxy = proxy
        self._passing = asyncio.Event()
        self._passing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._free_at = {True: 0.0, False: 0.0}

    @property
    def bytes_carried(self) -> int:
        return self.bytes_up + self.bytes_down

    def pass_(self) -> None:
        """As if nothing was between, at full speed."""
        self._proxy.run(lambda: self._set(Mode.PASS, 0.0, None))

    def cut(self) -> None:
        """Reset every connection, and new ones at once."""
        self._proxy.run(lambda: self._set(Mode.CUT))

    def blackhole(self) -> None:
        """Keep every connection, and let nothing through."""
        self._proxy.run(lambda: self._set(Mode.BLACKHOLE))

    def slow(self, delay_seconds: float) -> None:
        """Every byte arrives so much later; the rate is not limited by that."""
        self._proxy.run(lambda: self._set(Mode.PASS, delay_seconds, None))

    def throttle(self, bytes_a_second: float) -> None:
        """At most so much in each direction, all connections together."""
        self._proxy.run(lambda: self._set(Mode.PASS, 0.0, bytes_a_second))

    def break_connections(self) -> None:
        """Reset the connections there are; new ones pass as before."""
        self._proxy.run(self._reset)

    def _set(self, mode: Mode, delay_seconds: float | None = None, bytes_a_second: float | None = None) -> None:
        self.mode = mode
        if delay_seconds is not None:
            self.delay_seconds, self.bytes_a_second = delay_seconds, bytes_a_second
        if mode is Mode.BLACKHOLE:
            self._passing.clear()
        else:
            self._passing.set()
        if mode is Mode.CUT:
            self._reset()

    def _reset(self) -> None:
        for writer in tuple(self._open):
            _abort(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        far: asyncio.StreamWriter | None = None
        try:
            await self._passing.wait()
            if self.mode is Mode.CUT:
                return
            host, _, port = self.target.rpartition(":")
            far_reader, far = await asyncio.open_connection(host, int(port), limit=CHUNK_BYTES)
            self._open.add(far)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far, up=True))
                group.create_task(self._pump(far_reader, writer, up=False))
        except* (OSError, RuntimeError):  # uvloop's word for a connection that is closed
            pass
        finally:
            for one in (writer, far):
                if one is not None:
                    self._open.discard(one)
                    _abort(one) if self.mode is Mode.CUT else one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """:raises ExceptionGroup: of OSError or RuntimeError: either side is gone; both are closed then."""
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_HELD_MAX)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(held, writer, up=up))
            while True:
                chunk = await reader.read(CHUNK_BYTES)
                await held.put((asyncio.get_running_loop().time() + self.delay_seconds, chunk))
                if not chunk:
                    return

    async def _deliver(
        self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        while True:
            due, chunk = await held.get()
            await _sleep_until(due)
            if self.bytes_a_second is not None:
                now = asyncio.get_running_loop().time()
                self._free_at[up] = max(self._free_at[up], now) + len(chunk) / self.bytes_a_second
                await _sleep_until(self._free_at[up])
            await self._passing.wait()
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()
            if up:
                self.bytes_up += len(chunk)
            else:
                self.bytes_down += len(chunk)


class FaultProxy:
    """Any number of links on one thread: ``with FaultProxy() as network: network.link("a-b", "127.0.0.1:9092")``."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def link(self, name: str, target: str) -> Link:
        """A new link; ``name`` is unique. Connections are made to ``target`` when somebody connects to it."""
        assert name not in self.links, name
        link = Link(name, target, self)

        async def listen() -> None:
            server = await asyncio.start_server(link._accept, "127.0.0.1", 0, limit=CHUNK_BYTES)
            link.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            self._servers.append(server)

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)
        self.links[name] = link
        return link

    def run(self, change: Callable[[], Any]) -> None:
        """Do ``change`` on the proxy's thread, and wait for it."""

        async def act() -> None:
            change()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def heal(self) -> None:
        """Every link passes."""
        for link in self.links.values():
            link.pass_()

    def close(self) -> None:
        """Everything is closed, the thread has ended. Idempotent."""
        if not self._thread.is_alive():
            return

        async def end() -> None:
            for server in self._servers:
                server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def _sleep_until(moment: float) -> None:
    wait = moment - asyncio.get_running_loop().time()
    if wait > 0:
        await asyncio.sleep(wait)
