"""Answering other agents of the ring: from memory, or by the one read of the object store that all of them share.

A peer's request is never passed on to another peer, so two agents whose rosters differ cannot send it round in circles.
Whoever is refused reads the object store, so a peer is refused early: when there is no memory, or too many ask.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from agent.fetch.cache import FetchCache
from agent.fetch.metrics import FetchMetrics
from agent.fetch.peer_wire import MISSING, PATH, PeerRange, decode_read, encode_lengths
from agent.fetch.pool import Entry
from agent.fetch.reader import BlockReader
from metadata.rpc.wire import is_authorized
from runtime.budget import Budget
from runtime.shares import FairShare, peer_of
from storage.store import StorageError

REQUESTS_MAX = 80
"""Answered at a time, of which one address alone may have four fifths."""
BODY_SECONDS = 2.0
"""A request that takes longer to arrive is given up: it is small, and its sender has little patience."""
ANSWER_SECONDS = 10.0
"""An answer that takes longer is given up and its connection broken: nobody waits for it (``peers.STORE_SECONDS``), and
a peer that froze while it was read would hold its place among :data:`REQUESTS_MAX`, and its bytes, for ever."""
PURPOSE = "response"


class PeerServer:
    """The ``/peer/read`` route of one agent."""

    def __init__(
        self, cache: FetchCache, blocks: BlockReader, budget: Budget, metrics: FetchMetrics, secret: str | None = None
    ) -> None:
        """``secret``: askers must know it."""
        self._secret = secret
        self._cache = cache
        self._blocks = blocks
        self._budget = budget
        self._metrics = metrics
        self._under_way = FairShare(REQUESTS_MAX)

    def add_to(self, app: web.Application) -> None:
        app.router.add_post(PATH, self._read)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        if self._secret is not None and not is_authorized(request.headers.get("Authorization", ""), self._secret):
            return web.Response(status=401, text="agents of a cluster share a `secret`; this request does not have it")
        peer = peer_of(request.remote)
        if not self._under_way.take(peer):
            return web.Response(status=503, text=f"{self._under_way.held} peer reads are under way already")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
            ranges = decode_read(body)
            if self._budget.exhausted:  # clients' requests wait for this memory; a peer has somewhere else to go
                return _no_memory()
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._answer(request, ranges)
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503, text=f"the request or its answer took longer than {ANSWER_SECONDS} s")
        finally:
            self._under_way.give(peer)

    async def _answer(self, request: web.Request, ranges: tuple[PeerRange, ...]) -> web.StreamResponse:
        pins: list[Entry[bytes]] = []
        held_bytes = 0
        try:
            # All of them end before anything is raised: what one pins after the others were given up stays pinned.
            outcomes = await asyncio.gather(*(self._find(each, pins) for each in ranges), return_exceptions=True)
            found: list[list[memoryview] | None] = []
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                found.append(outcome)
            lengths = [
                MISSING if views is None or sum(map(len, views)) != each.length else each.length
                for each, views in zip(ranges, found, strict=True)
            ]
            if self._budget.exhausted:  # since the look before
                return _no_memory()
            held_bytes = sum(length for length in lengths if length != MISSING)
            self._budget.take(PURPOSE, held_bytes)
            self._metrics.peer_bytes_out += held_bytes
            response = web.StreamResponse()
            response.content_length = 4 * len(ranges) + held_bytes
            await response.prepare(request)
            await response.write(encode_lengths(lengths))
            for views, length in zip(found, lengths, strict=True):
                for view in views or () if length != MISSING else ():
                    await response.write(view)
            await response.write_eof()
            return response
        finally:
            self._budget.give(PURPOSE, held_bytes)
            for entry in pins:
                entry.unpin()

    async def _find(self, wanted: PeerRange, pins: list[Entry[bytes]]) -> list[memoryview] | None:
        """Views of the range; None when it is not to be had. What they lie in is pinned, and added to ``pins``."""
        segment = self._cache.segment(wanted.segment_key)
        if segment is not None:
            views = segment.value.read(wanted.start, wanted.length)
            if views is not None:
                self._metrics.writer_hits += 1
                return views  # views keep the bytes alive; the segment's own count ends when it is evicted
        if wanted.memory_only:
            return None
        if wanted.exactly:
            try:
                entry = await self._blocks.read_exactly(wanted.segment_key, wanted.start, wanted.length)
            except StorageError:
                return None
            pins.append(entry)
            return [memoryview(entry.value)]
        size = self._blocks.size(wanted.hot)
        begin, end = wanted.start, wanted.start + wanted.length
        views = []
        for index in range(begin // size, (end - 1) // size + 1):
            try:
                entry = await self._blocks.read(wanted.segment_key, index, wanted.hot)
            except StorageError:
                return None  # the asker meets the same error, and knows what to do about it
            view = memoryview(entry.value)[max(begin - index * size, 0) : end - index * size]
            if 2 * len(view) < len(entry.value):  # a few bytes of each of 512 blocks must not pin 512 blocks
                view = memoryview(bytes(view))
                entry.unpin()
            else:
                pins.append(entry)
            views.append(view)
        return views


def _no_memory() -> web.Response:
    return web.Response(status=503, text="there is no memory for peers now")
