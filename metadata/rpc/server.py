"""The leader's end of the calls: aiohttp routes over one :class:`metadata.service.MetadataService` at a time.

A process serves from its start; without a term it says 503 to everything, and so it does once the term's lease is in
doubt, before a call is executed and again before it is answered. Nothing in a request can take the process down, and
no address can use all that there is for everybody (:mod:`runtime.shares`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import structlog
from aiohttp import web

from metadata.model import MetadataError
from metadata.rpc.answers import AnswerMemory, Encoded, Overloaded, Settled
from metadata.rpc.members import Members
from metadata.rpc.methods import HEARTBEAT_AGENT, METHODS, Method, Pace
from metadata.rpc.metrics import RpcServerMetrics
from metadata.rpc.watch import TooMany, WatchHub
from metadata.rpc.wire import (
    BEAT_SECONDS,
    REQUEST_BYTES_MAX,
    Answer,
    Head,
    Outcome,
    Presence,
    Step,
    encode_error,
    is_authorized,
)
from metadata.service import MetadataService
from runtime.clock import Clock
from runtime.shares import FairShare, peer_of
from runtime.tasks import Supervisor

CALLS_MAX = 5_000
"""Calls in flight; parked ones are counted by themselves. Of all three, one address alone may have four fifths."""
PARKED_MAX = 15_000
BODY_BYTES_MAX = 256 * 1024 * 1024
"""Bodies of all calls in flight."""
BODY_SECONDS = 10.0
"""A body that takes longer to arrive is given up."""
WAIT_MS_MAX = 60_000
LOG_SECONDS = 10.0
"""Refused secrets, malformed requests and watches that were cut off are logged at most so often."""

_MALFORMED = (ValueError, RecursionError, TimeoutError, ConnectionError, asyncio.IncompleteReadError)
_NOTHING = msgspec.Raw(msgspec.msgpack.encode(""))
_PACKED = "application/msgpack"
_encoder = msgspec.msgpack.Encoder()
_step_decoder = msgspec.msgpack.Decoder(Step)
_log = structlog.get_logger("tidelog.metadata.rpc")


class Term:
    """What one leadership serves with. ``valid`` says, at any moment, whether the lease is beyond doubt."""

    def __init__(
        self,
        service: MetadataService,
        generation: int,
        valid: Callable[[], bool],
        supervisor: Supervisor,
        clock: Clock,
        metrics: RpcServerMetrics,
    ) -> None:
        self.service = service
        self.generation = generation
        self.valid = valid
        self.members = Members()
        self.answers = AnswerMemory(clock, supervisor, self.members.__contains__)
        self.hub = WatchHub(generation, metrics, self.members.__contains__)
        self._clock = clock

    async def beat(self) -> None:
        """Let the watches know that this process lives and leads."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            if self.valid():
                self.hub.beat()


class RpcServer:
    """Serves calls and watches of the current term. ``secret``: callers must know it."""

    def __init__(self, clock: Clock, metrics: RpcServerMetrics, secret: str | None = None) -> None:
        self._clock = clock
        self._metrics = metrics
        self._secret = secret
        self._term: Term | None = None
        self._generation = -1
        self._in_flight = FairShare(CALLS_MAX)
        self._parked = FairShare(PARKED_MAX)
        self._body_bytes = FairShare(BODY_BYTES_MAX)
        self._logged_at: dict[str, float] = {}
        metrics.calls_in_flight.set_function(lambda: self._in_flight.held + self._parked.held)
        metrics.answer_bytes.set_function(lambda: 0 if self._term is None else self._term.answers.answer_bytes)

    def add_routes(self, app: web.Application) -> None:
        """Before the application starts."""
        app.router.add_get("/rpc", self._presence)
        app.router.add_post("/rpc/{method}", self._call)
        app.router.add_get("/watch", self._watch)
        app.router.add_post("/watch/{watch}/follow", self._follow)

    @property
    def term(self) -> Term | None:
        """The current one, None while this process does not lead or cannot be sure that it does."""
        return self._term if self._term is not None and self._term.valid() else None

    @property
    def generation(self) -> int:
        """Of the current or latest term, -1 before the first."""
        return self._generation

    async def begin_term(
        self, service: MetadataService, generation: int, valid: Callable[[], bool], supervisor: Supervisor
    ) -> None:
        """Answer from ``service``, which has started, while ``valid()``. Calls run under ``supervisor``, which the
        caller stops after :meth:`end_term` and the service's own stop."""
        assert self._term is None, "one term at a time"
        term = Term(service, generation, valid, supervisor, self._clock, self._metrics)
        term.hub.start(await service.subscribe(term.hub))
        supervisor.start("metadata-beat", term.beat())
        self._term = term
        self._generation = generation
        self._metrics.generation.set(generation)
        self._metrics.is_leader.set(1)

    def end_term(self) -> None:
        """Take no call and let no watch go on from now on. Calls under way are still answered, but for parked ones,
        which are sent elsewhere. Idempotent."""
        term, self._term = self._term, None
        self._metrics.is_leader.set(0)
        if term is not None:
            term.hub.end()
            term.answers.cancel_parked()

    # --- calls ------------------------------------------------------------------------------------------

    async def _presence(self, request: web.Request) -> web.Response:
        refusal = self.refuse_unauthorized(request)
        if refusal is not None:
            return refusal
        term = self.term
        presence = Presence(term is not None, self._generation, "" if term is None else term.service.cluster_id)
        return web.json_response(msgspec.to_builtins(presence), status=200 if presence.leader else 503)

    async def _call(self, request: web.Request) -> web.Response:
        name = request.match_info["method"]
        method = METHODS.get(name)
        refusal = self.refuse_unauthorized(request)
        if refusal is not None:
            return refusal
        if method is None:
            return web.Response(status=404, text=f"there is no call {name!r}")
        if self.term is None:
            return self._not_leader(method)
        length = request.content_length
        if length is None:
            return web.Response(status=411, text="calls have a Content-Length")
        if length > REQUEST_BYTES_MAX:
            return web.Response(status=413, text=f"{length} bytes are more than {REQUEST_BYTES_MAX}")
        peer = peer_of(request.remote)
        calls = self._parked if method.pace is Pace.PARKED else self._in_flight
        if not calls.take(peer):
            return self._overloaded(method)
        try:
            if not self._body_bytes.take(peer, length):
                return self._overloaded(method)
            try:
                return await self._decode_and_answer(request, method, length, peer)
            finally:
                self._body_bytes.give(peer, length)
        finally:
            calls.give(peer)

    async def _decode_and_answer(
        self, request: web.Request, method: Method[Any], length: int, peer: str
    ) -> web.Response:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.content.readexactly(length)
            head, arguments = method.decode_request(body)
        except _MALFORMED as error:
            return self._malformed(request, method.name, error)
        started = self._clock.monotonic()
        term = self.term
        if term is None or head.generation > term.generation:
            return self._not_leader(method)
        try:
            outcome, value = await self._outcome(term, method, head, arguments, peer)
        except Overloaded:
            return self._overloaded(method)
        if not term.valid():
            return self._not_leader(method)
        self._metrics.calls.labels(method.name, outcome.name.lower()).inc()
        self._metrics.call_seconds.labels(method.name).observe(self._clock.monotonic() - started)
        answer = Answer(term.generation, outcome, msgspec.Raw(value) if value else _NOTHING)
        return web.Response(body=_encoder.encode(answer), content_type=_PACKED)

    async def _outcome(
        self, term: Term, method: Method[Any], head: Head, arguments: tuple[Any, ...], peer: str
    ) -> Encoded:
        """:raises Overloaded:"""
        wait_seconds = min(head.wait_ms, WAIT_MS_MAX) / 1000
        work = partial(_execute, term.service, method, arguments, head.call_id)
        if not method.mutating:
            try:
                async with asyncio.timeout(wait_seconds):
                    return await work()
            except TimeoutError:
                return Outcome.PENDING, b""
        if head.generation != term.generation:
            return Outcome.OTHER_GENERATION, b""
        try:
            answered = term.answers.ask(method.name, head, work, method.pace is Pace.PARKED, peer)
        except Settled as error:
            return Outcome.SETTLED, _encoder.encode(str(error))
        await asyncio.wait((answered,), timeout=wait_seconds)
        if not answered.done():
            return Outcome.PENDING, b""
        if answered.cancelled():
            return Outcome.UNAVAILABLE, _encoder.encode("the call was given up")
        if method is HEARTBEAT_AGENT and answered.result()[0] is Outcome.VALUE:
            term.members.heard(arguments[0].agent_epoch, head.client)
        return answered.result()

    # --- watches ----------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        refusal = self.refuse_unauthorized(request)
        if refusal is not None:
            return refusal
        term = self.term
        if term is None:
            return web.Response(status=503, text="this process does not lead")
        try:
            asked = request.query
            watcher = term.hub.open(
                asked.get("client", ""), asked.get("watch", ""), asked.get("member", ""), peer_of(request.remote)
            )
        except TooMany as error:
            return web.Response(status=429, text=str(error))
        response = web.StreamResponse(headers={"Content-Type": _PACKED})
        try:
            await response.prepare(request)
            await watcher.run(response.write, partial(_abort, request), self._metrics.events_sent.inc)
        except OSError:
            pass  # the agent is gone, or its watch was aborted; it will be back
        finally:
            term.hub.close(watcher)
            if term.hub.was_cut_off(watcher):
                self._log_now_and_then(
                    "watch_cut_off", peer=request.remote, client=watcher.client, reason=watcher.ended
                )
        return response

    async def _follow(self, request: web.Request) -> web.Response:
        refusal = self.refuse_unauthorized(request)
        if refusal is not None:
            return refusal
        length = request.content_length
        if length is None or length > REQUEST_BYTES_MAX:
            return web.Response(status=413, text=f"a step has a Content-Length of at most {REQUEST_BYTES_MAX}")
        peer = peer_of(request.remote)
        if not self._body_bytes.take(peer, length):
            return web.Response(status=429, text="too much is in flight")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                step = _step_decoder.decode(await request.content.readexactly(length))
        except _MALFORMED as error:
            return self._malformed(request, "follow", error)
        finally:
            self._body_bytes.give(peer, length)
        term = self.term
        if term is None:
            return web.Response(status=503, text="this process does not lead")
        try:
            known = term.hub.follow(request.match_info["watch"], step)
        except TooMany as error:
            return web.Response(status=429, text=str(error))
        return web.Response(status=200) if known else web.Response(status=404, text="there is no such watch")

    # --- what is not answered -----------------------------------------------------------------------------

    def refuse_unauthorized(self, request: web.Request) -> web.Response | None:
        """None when ``request`` may go on, else what to answer it; counted and logged."""
        if self._secret is None or is_authorized(request.headers.get("Authorization", ""), self._secret):
            return None
        self._metrics.unauthorized.inc()
        self._log_now_and_then(
            "rpc_unauthorized",
            peer=request.remote,
            path=request.path,
            hint="give every process of the cluster the same `secret`",
        )
        headers = {"WWW-Authenticate": "Bearer"}
        return web.Response(status=401, text="the secret is missing or wrong", headers=headers)

    def _not_leader(self, method: Method[Any]) -> web.Response:
        self._metrics.calls.labels(method.name, "not_leader").inc()
        return web.Response(status=503, text="this process does not lead")

    def _overloaded(self, method: Method[Any]) -> web.Response:
        self._metrics.calls.labels(method.name, "overloaded").inc()
        return web.Response(status=429, text="too many calls are in flight")

    def _malformed(self, request: web.Request, name: str, error: Exception) -> web.Response:
        self._metrics.calls.labels(name, "malformed").inc()
        if not isinstance(error, ConnectionError):  # it broke off, which is no mistake
            self._log_now_and_then("rpc_malformed", peer=request.remote, method=name, error=repr(error))
        return web.Response(status=400, text=f"not a request of {name!r}: {error!r}")

    def _log_now_and_then(self, event: str, **fields: object) -> None:
        now = self._clock.monotonic()
        if now - self._logged_at.get(event, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[event] = now
            _log.warning(event, **fields)


async def _execute(service: MetadataService, method: Method[Any], arguments: tuple[Any, ...], call_id: str) -> Encoded:
    """The call itself; its errors are outcomes."""
    known_as = {"call_id": call_id} if method.remembered else {}
    try:
        return Outcome.VALUE, _encoder.encode(await getattr(service, method.name)(*arguments, **known_as))
    except MetadataError as error:
        return encode_error(error)
    except Exception as error:
        _log.error("rpc_failed", method=method.name, error=repr(error), exc_info=error)
        return Outcome.FAILED, _encoder.encode(f"the metadata service failed in {method.name}: {error!r}")


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
