"""aiohttp as the product uses it, over the simulated network: sessions, exchanges, streams, routes.

The product's clients make ``aiohttp.ClientSession``s and its servers are aiohttp handlers; :data:`aiohttp_shim` stands
in for the module where clients are made. Handlers are given :class:`SimRequest` and answer with aiohttp's own
responses.
"""

from __future__ import annotations

import asyncio
import re
import types
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from aiohttp.http import HttpVersion11

from tests.simulation.loop import PROCESS, SimProcess
from tests.simulation.network import Channel, Network

Handler = Callable[[Any], Awaitable[web.StreamResponse]]
LATE_COPY_SECONDS_MAX = 6.0


class SimRouter:
    """The part of aiohttp's that the product uses."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add_get(self, path: str, handler: Handler, **_: Any) -> None:
        self._add("GET", path, handler)

    def add_post(self, path: str, handler: Handler, **_: Any) -> None:
        self._add("POST", path, handler)

    def _add(self, method: str, path: str, handler: Handler) -> None:
        self._routes.append((method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), handler))

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        for kind, pattern, handler in self._routes:
            if kind == method and (match := pattern.fullmatch(path)):
                return handler, match.groupdict()
        return None


class SimHttpServer:
    """In the place of ``runtime.http.HttpServer``: health and metrics are nobody's business here."""

    def __init__(self, network: Network, process: SimProcess) -> None:
        self.app = types.SimpleNamespace(router=SimRouter())
        self._network = network
        self._process = process
        self._port = 0

    def before_scrape(self, refresh: Callable[[], Awaitable[None]]) -> None: ...

    async def start(self, _host: str, port: int) -> int:
        self._port = port
        self._network.listeners[self._process.host, port] = self.app.router
        return port

    async def stop(self) -> None:
        self._network.listeners.pop((self._process.host, self._port), None)


class _Body:
    """A request's body."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def readexactly(self, count: int) -> bytes:
        assert count == len(self._data)
        return self._data


class _Abort:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def abort(self) -> None:
        self._exchange.server_aborts()


class SimRequest:
    """What handlers read of a request."""

    version = HttpVersion11
    keep_alive = True

    def __init__(self, exchange: Exchange, match_info: dict[str, str]) -> None:
        self.method = exchange.method
        self.path = exchange.path
        self.query = exchange.query
        self.headers = exchange.headers
        self.match_info = match_info
        self.remote = exchange.source.host
        self.content_length = len(exchange.data)
        self.content = _Body(exchange.data)
        self.transport = _Abort(exchange)
        self._data = exchange.data
        self._payload_writer = _Writer(exchange)

    async def read(self) -> bytes:
        return self._data

    async def _prepare_hook(self, _response: web.StreamResponse) -> None: ...


class _Writer:
    """The server's end of a streamed answer, as aiohttp's ``StreamResponse`` writes to it."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.length: int | None = None
        self.output_size = 0

    def enable_chunking(self) -> None: ...

    async def write_headers(self, status_line: str, _headers: Any) -> None:
        self._exchange.answer_begins(int(status_line.split()[1]))

    def send_headers(self) -> None: ...

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.output_size += len(data)
        self._exchange.answer_goes_on(bytes(data))

    async def write_eof(self, data: bytes = b"") -> None:
        if data:
            self._exchange.answer_goes_on(bytes(data))
        self._exchange.answer_ends()


class Exchange:
    """One request and its answer. Awaited (or entered) by the client, it gives a :class:`SimResponse`."""

    def __init__(
        self, session: SimSession, method: str, url: str, data: bytes, params: dict[str, str], headers: dict[str, str]
    ) -> None:
        parts = urlsplit(url)
        process = PROCESS.get()
        assert process is not None and parts.hostname is not None and parts.port is not None
        self.source = process
        self.target: SimProcess = process
        self.address = (parts.hostname, parts.port)
        self.method = method
        self.path = parts.path
        self.query = params
        self.data = data
        self.headers = headers
        self.broken = False
        """The client has gone, or the connection has."""
        self._session = session
        self._network = session.network
        self._response: SimResponse | None = None
        self._headed: asyncio.Future[SimResponse] | None = None
        self._back: Channel | None = None
        self._answer_is_lost = False
        self._resets_instead = False

    def __repr__(self) -> str:
        return f"{self.method} {self.address[0]}{self.path}"

    # --- the client's side --------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, SimResponse]:
        return self._begin().__await__()

    async def __aenter__(self) -> SimResponse:
        return await self._begin()

    async def __aexit__(self, *_: object) -> None:
        self.hang_up()

    async def _begin(self) -> SimResponse:
        self._headed = asyncio.get_running_loop().create_future()
        self._session.exchanges[self] = None
        self._dial()
        try:
            return await self._headed
        except BaseException:
            self.hang_up()
            raise

    def hang_up(self) -> None:
        """The client is done with it."""
        self.broken = True
        self._session.exchanges.pop(self, None)
        self._network.closed(self)

    def fail(self, why: str) -> None:
        """The client's connection breaks."""
        self.broken = True
        self._network.closed(self)
        error = aiohttp.ClientConnectionError(why)
        if self._headed is not None and not self._headed.done():
            self._headed.set_exception(error)
        elif self._response is not None:
            self._response.break_off(error)

    # --- on the way ---------------------------------------------------------------------------------------

    def _dial(self) -> None:
        network, rng, weather = self._network, self._network.rng, self._network.weather
        target = network.processes.get(self.address[0])
        if target is None:
            network.loop.call_later(0.001, self.fail, f"nobody is at {self.address[0]}", context=self.source.context)
            return
        self.target = target
        self._back = Channel(network, target, self.source)
        network.opened(self)
        there = Channel(network, self.source, target)
        draw = rng.random()
        for share, fate in (
            (weather.request_lost, "lost"),
            (weather.reset_before, "reset"),
            (weather.answer_lost, "answer lost"),
            (weather.reset_after, "answer reset"),
            (weather.repeated, "repeated"),
        ):
            if draw < share:
                network.trace.note(self.source, "call", self, fate)
                break
            draw -= share
        else:
            fate = ""
        if fate == "lost":
            return
        if fate == "reset":
            network.loop.call_later(0.001, self.fail, "connection reset", context=self.source.context)
            return
        self._answer_is_lost = fate in ("answer lost", "answer reset")
        self._resets_instead = fate == "answer reset"
        there.send(self._arrive, self)
        if fate == "repeated" and self.method == "POST":
            copy = Exchange(self._session, self.method, "http://x:1/", self.data, self.query, self.headers)
            copy.address, copy.path, copy.target = self.address, self.path, target
            copy._back, copy._answer_is_lost = self._back, True
            seconds = rng.uniform(0, LATE_COPY_SECONDS_MAX)
            network.loop.call_later(seconds, there.send, self._arrive, copy, context=self.source.context)

    def cut_off(self, silently: bool) -> None:
        """A process at one end died, or the network broke the connection."""
        self.broken = True
        self._network.closed(self)
        if not silently and not self.source.dead and self._back is not None:
            self._back.send(self.fail, "connection reset")

    # --- the server's side --------------------------------------------------------------------------------

    def _arrive(self, exchange: Exchange) -> None:
        router = self._network.listeners.get(exchange.address)
        found = None if router is None else router.find(exchange.method, exchange.path)
        if found is None:
            exchange.cut_off(False)
            return
        handler, match_info = found
        request = SimRequest(exchange, match_info)
        asyncio.get_running_loop().create_task(exchange._serve(handler, request), name=f"http {exchange.path}")

    async def _serve(self, handler: Handler, request: SimRequest) -> None:
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            self.cut_off(False)
            raise
        except ConnectionResetError:
            return
        except Exception as error:
            self._network.trace.note(self.target, "http_failed", self, repr(error))
            response = web.Response(status=500, text=repr(error))
        if response.prepared:
            if not response._eof_sent:
                self.cut_off(False)  # a watch that ended
            return
        assert isinstance(response, web.Response)
        body = response.body
        assert body is None or isinstance(body, bytes)
        self.answer_begins(response.status)
        if body:
            self._send(lambda: self._answer().feed(body))
        self.answer_ends()

    def answer_begins(self, status: int) -> None:
        self._send(lambda: self._head(status))

    def answer_goes_on(self, data: bytes) -> None:
        """:raises ConnectionResetError: nobody reads it any more."""
        if self.broken:
            raise ConnectionResetError("Cannot write to closing transport")
        self._send(lambda: self._answer().feed(data))

    def answer_ends(self) -> None:
        self._send(lambda: self._answer().end())

    def server_aborts(self) -> None:
        self.cut_off(False)

    def _send(self, deliver: Callable[[], None]) -> None:
        if self.broken and not self._answer_is_lost:
            return
        assert self._back is not None
        if self._answer_is_lost:
            if self._resets_instead:
                self._resets_instead = False
                self._back.send(self.fail, "connection reset")
            return
        self._back.send(deliver)

    def _head(self, status: int) -> None:
        if self._headed is not None and not self._headed.done():
            self._response = SimResponse(self, status)
            self._headed.set_result(self._response)

    def _answer(self) -> SimResponse:
        return self._response if self._response is not None else SimResponse(self, 0)


class SimResponse:
    """What clients read of an answer."""

    def __init__(self, exchange: Exchange, status: int) -> None:
        self.status = status
        self.content = self
        self._exchange = exchange
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def feed(self, data: bytes) -> None:
        self._chunks.append(data)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def break_off(self, error: Exception) -> None:
        self._error = error
        self._changed.set()

    async def readany(self) -> bytes:
        """What there is, at least a byte; nothing at the end."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data

    async def read(self) -> bytes:
        parts = []
        while data := await self.readany():
            parts.append(data)
        return b"".join(parts)

    async def text(self, errors: str = "strict") -> str:
        return (await self.read()).decode(errors=errors)

    def close(self) -> None:
        self._exchange.fail("closed by the client itself")
        self._exchange.hang_up()


class SimSession:
    """``aiohttp.ClientSession``; its connections are its exchanges."""

    network: Network
    """Of the world that runs now."""

    def __init__(self, *, headers: dict[str, str] | None = None, **_: Any) -> None:
        self.exchanges: dict[Exchange, None] = {}
        self._headers = dict(headers or {})

    def post(self, url: str, *, data: bytes = b"", **_: Any) -> Exchange:
        return Exchange(self, "POST", url, data, {}, self._headers)

    def get(self, url: str, *, params: dict[str, str] | None = None, **_: Any) -> Exchange:
        return Exchange(self, "GET", url, b"", params or {}, self._headers)

    async def close(self) -> None:
        for exchange in list(self.exchanges):
            exchange.fail("the session was closed")
            exchange.hang_up()


def _nothing(*_: Any, **__: Any) -> None: ...


aiohttp_shim = types.SimpleNamespace(
    ClientSession=SimSession,
    TCPConnector=_nothing,
    ClientTimeout=_nothing,
    DummyCookieJar=_nothing,
    ClientError=aiohttp.ClientError,
    ClientResponse=SimResponse,
)
"""In the place of ``aiohttp`` in the modules whose sessions go over the network."""
