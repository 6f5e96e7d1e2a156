"""Whoever connects to a process's HTTP address: so many connections and no more, and few lines about what they send.

A connection without a request under way may be closed at any time (its client opens another), so places that are all
taken are no problem as long as one of them is idle: the address that holds most loses the one it used longest ago.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from runtime.clock import Clock
from runtime.shares import Places, peer_of

LOST_LOOK_SECONDS: Final = 1.0
"""Between two looks for connections that have gone."""
LOG_SECONDS: Final = 10.0
"""Of one kind of failure there is a line at most so often."""
KINDS_MAX: Final = 100

_log = structlog.get_logger("tidelog.http")


class Doorkeeper:
    """Lets connections in to one ``server``, and knows which of them are busy. One event loop."""

    def __init__(self, server: web.Server, connections_max: int) -> None:
        self._server = server
        self._connections_max = connections_max
        self._places: Places[web.RequestHandler] = Places()
        self._busy: dict[web.RequestHandler, int] = {}

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a socket just accepted."""
        return _Arrival(self)

    def __len__(self) -> int:
        return len(self._places)

    def admit(self, transport: asyncio.Transport) -> None:
        """Serve this connection if there is a place for it, else close it."""
        if len(self._places) >= self._connections_max:
            self._look()
        if len(self._places) >= self._connections_max:
            idlest = self._places.yielding(self._busy.__contains__)
            if idlest is None:
                transport.abort()
                return
            self._places.discard(idlest)
            if idlest.transport is not None:
                idlest.transport.abort()
        address = transport.get_extra_info("peername")
        handler = self._server()
        self._places.add(handler, peer_of(address[0] if isinstance(address, tuple) else None))
        transport.set_protocol(handler)
        handler.connection_made(transport)

    async def busy(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Around every request: its connection is busy."""
        connection = request.protocol
        self._busy[connection] = self._busy.get(connection, 0) + 1
        try:
            return await handler(request)
        finally:
            self._busy[connection] -= 1
            if not self._busy[connection]:
                del self._busy[connection]
            if connection in self._places:
                self._places.used(connection)

    async def look_forever(self, clock: Clock) -> None:
        """Forget connections that have gone, now and then."""
        while True:
            await clock.sleep(LOST_LOOK_SECONDS)
            self._look()

    def _look(self) -> None:
        for handler in [handler for handler in self._places if handler.transport is None]:
            self._places.discard(handler)


class _Arrival(asyncio.Protocol):
    """A socket of which nothing is known yet."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper = doorkeeper

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._doorkeeper.admit(cast(asyncio.Transport, transport))  # uvloop's own class is not a subclass


class FailureLines(logging.Handler):
    """What aiohttp has to say about requests, as our own lines: one for each kind of failure now and then."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}
        """When there was a line of each kind last, and how many there would have been since."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            return  # a client that has gone
        kind = record.msg if error is None else type(error).__name__
        now = self._clock.monotonic()
        at, left_out = self._logged.get(kind, (-LOG_SECONDS, 0))
        if now - at < LOG_SECONDS:
            self._logged[kind] = (at, left_out + 1)
            return
        if len(self._logged) >= KINDS_MAX:
            self._logged.clear()
        self._logged[kind] = (now, 0)
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            _log.warning("http_bad_request", error=_first_line(str(error)), more=left_out)
        else:
            _log.error("http_failed", error=record.getMessage(), more=left_out, exc_info=error)


def _first_line(text: str) -> str:
    """Without what the client sent: it follows on the next lines."""
    return text.strip().partition("\n")[0][:200]


def server_logger(clock: Clock) -> logging.Logger:
    """For one :class:`aiohttp.web.AppRunner`."""
    logger = logging.Logger("tidelog.http")
    logger.addHandler(FailureLines(clock))
    return logger
