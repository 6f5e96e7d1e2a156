"""A proxy in front of an S3 server that misbehaves as scripted, and remembers what passed through it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import aiohttp
from aiohttp import web

ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
HOP_HEADERS = frozenset({"transfer-encoding", "connection", "content-encoding", "keep-alive"})


class Act(Enum):
    """What happens to one request."""

    PASS = "pass"
    SLOW_DOWN = "503 SlowDown, before any effect"
    INTERNAL_ERROR = "500 InternalError, before any effect"
    LOSE_ANSWER = "the server acts, then the connection closes without an answer"
    ERROR_AFTER = "the server acts, then 500"
    HANG = "nothing, until the proxy stops"
    CUT_BODY = "half of the answer's body, then the connection closes"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class S3Proxy:
    """Requests take the next act of ``script``, or ``otherwise``."""

    upstream: str
    script: deque[Act] = field(default_factory=deque)
    otherwise: Act = Act.PASS
    remove_headers: frozenset[str] = frozenset()
    seen: list[Seen] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    endpoint: str = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        self.seen.append(Seen(request.method, request.raw_path, request.headers, body))
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        act = self.script.popleft() if self.script else self.otherwise
        if act is Act.SLOW_DOWN:
            return web.Response(status=503, text=ERROR.format(code="SlowDown", message="Please reduce your rate."))
        if act is Act.INTERNAL_ERROR:
            return web.Response(status=500, text=ERROR.format(code="InternalError", message="Try again."))
        if act is Act.HANG:
            await asyncio.Event().wait()
        answer = await self._forward(request, body)
        if act is Act.ERROR_AFTER:
            return web.Response(status=500, text=ERROR.format(code="InternalError", message="Try again."))
        if act is Act.LOSE_ANSWER:
            request.transport.abort()
        if act is Act.CUT_BODY:
            await self._cut(request, answer)
        return answer

    async def _forward(self, request: web.BaseRequest, body: bytes) -> web.Response:
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name.lower() not in HOP_HEADERS and name.lower() not in self.remove_headers
        ]
        # The host is signed: the server must see the one the client used, which is ours.
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, self.upstream + request.raw_path, data=body, headers=headers, allow_redirects=False
            ) as answer,
        ):
            content = await answer.read()
            kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS]
            response = web.Response(status=answer.status, body=content)
            for name, value in kept:
                if name.lower() not in ("content-length", "content-type", "server", "date"):
                    response.headers[name] = value
            if request.method == "HEAD":
                response.headers["Content-Length"] = answer.headers.get("Content-Length", "0")
            return response

    async def _cut(self, request: web.BaseRequest, answer: web.Response) -> None:
        assert isinstance(answer.body, bytes) and request.transport is not None
        begun = web.StreamResponse(status=answer.status, headers={"Content-Length": str(len(answer.body))})
        await begun.prepare(request)
        await begun.write(answer.body[: len(answer.body) // 2])
        request.transport.abort()


@asynccontextmanager
async def run_proxy(upstream: str, *script: Act) -> AsyncIterator[S3Proxy]:
    """A proxy on a port of its own for as long as the block lasts."""
    proxy = S3Proxy(upstream, deque(script))
    runner = web.ServerRunner(web.Server(proxy.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    proxy.endpoint = f"http://{host}:{port}"
    try:
        yield proxy
    finally:
        await runner.cleanup()
