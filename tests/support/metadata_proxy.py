"""A network that loses, repeats and delays metadata calls, and cuts and stalls watches: a proxy in the test's loop."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable

import aiohttp
from aiohttp import web


class Fault(enum.Enum):
    """What happens to one request."""

    NONE = "none"
    LOST = "lost"
    """It never arrives; the connection breaks."""
    ANSWER_LOST = "answer lost"
    """It is executed; the connection breaks before the answer."""
    REPEATED = "repeated"
    """It arrives twice at the same time."""
    LATE_COPY = "late copy"
    """It is answered, and arrives once more after :attr:`FaultyProxy.late_seconds`."""
    DELAYED = "delayed"
    """The connection breaks, and it arrives after :attr:`FaultyProxy.late_seconds`."""
    SWALLOWED = "swallowed"
    """It never arrives, and the connection stays."""


class FaultyProxy:
    """Stands before one metadata server at ``target``; ``plan(method)`` decides about each call."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.plan: Callable[[str], Fault] = lambda _method: Fault.NONE
        self.answer_lost: Callable[[str], Awaitable[None]] | None = None
        """Awaited when a call was executed and its answer will be lost, before its client finds out."""
        self.late_seconds = 0.1
        self.late_statuses: list[tuple[str, int, bytes]] = []
        """What the copies that nobody waited for were answered."""
        self.frozen = False
        """Takes connections and bytes, answers nothing, passes nothing on."""
        self.calls: list[str] = []
        self._thawed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._streams: list[web.Request] = []
        self._late: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/rpc/{method}", self._call)
        app.router.add_get("/watch", self._watch)
        app.router.add_route("*", "/{rest:.*}", self._plain)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        assert self._runner is not None and self._session is not None
        self.thaw()
        self.cut_watches()
        if self._late:
            await asyncio.wait(self._late)
        await self._session.close()
        await self._runner.cleanup()

    def cut_watches(self) -> None:
        """Break every watch that is open."""
        for request in tuple(self._streams):
            _abort(request)

    def thaw(self) -> None:
        self.frozen = False
        self._thawed.set()
        self._thawed = asyncio.Event()

    async def late_copies(self) -> None:
        """Wait until every copy that is under way has arrived."""
        while self._late:
            await asyncio.wait(self._late)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        body = await request.read()
        await self._unless_frozen()
        self.calls.append(method)
        fault = self.plan(method)
        if fault is Fault.SWALLOWED:
            await asyncio.sleep(60)
        if fault in (Fault.LOST, Fault.DELAYED):
            if fault is Fault.DELAYED:
                self._later(request, method, body)
            return _abort(request)
        if fault is Fault.REPEATED:
            (status, answer), _ = await asyncio.gather(self._forward(request, body), self._forward(request, body))
        else:
            try:
                status, answer = await self._forward(request, body)
            except aiohttp.ClientError:
                return _abort(request)
        await self._unless_frozen()
        if fault is Fault.ANSWER_LOST:
            if self.answer_lost is not None:
                await self.answer_lost(method)
            return _abort(request)
        if fault is Fault.LATE_COPY:
            self._later(request, method, body)
        return web.Response(status=status, body=answer)

    def _later(self, request: web.Request, method: str, body: bytes) -> None:
        async def send() -> None:
            await asyncio.sleep(self.late_seconds)
            status, answer = await self._forward(request, body)
            self.late_statuses.append((method, status, answer))

        task = asyncio.create_task(send())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _forward(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name == "Authorization"}
        async with self._session.request(
            request.method, f"{self.target}{request.path_qs}", data=body, headers=headers
        ) as response:
            return response.status, await response.read()

    async def _plain(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        await self._unless_frozen()
        try:
            status, answer = await self._forward(request, body)
        except aiohttp.ClientError:
            return _abort(request)
        return web.Response(status=status, body=answer)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        await self._unless_frozen()
        self._streams.append(request)
        response = web.StreamResponse()
        try:
            async with self._session.get(f"{self.target}{request.path_qs}") as upstream:
                response.set_status(upstream.status)
                await response.prepare(request)
                async for data in upstream.content.iter_any():
                    await self._unless_frozen()
                    await response.write(data)
        except (OSError, aiohttp.ClientError):
            pass
        finally:
            self._streams = [kept for kept in self._streams if kept is not request]
        return response

    async def _unless_frozen(self) -> None:
        while self.frozen:
            await self._thawed.wait()


def _abort(request: web.Request) -> web.Response:
    if request.transport is not None:
        with contextlib.suppress(OSError):
            request.transport.abort()
    return web.Response()
