"""One client's connection: requests taken in and answered in order, within limits, without tasks or timers of its own.

Reading, producing and answering all happen in the receive path. A Produce is appended while earlier ones still wait for
their commit; any other request starts when the earlier ones that are not Produce are done, as the connection's only
task; answers leave in the order of the requests. The connection stops reading when requests pile up, when its client
does not take its answers, and (:mod:`agent.intake`) when the agent is short of memory.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from kio.schema.errors import ErrorCode

from agent.context import Call
from agent.departure import Departure
from agent.handlers import api_versions
from agent.handlers.produce import ProduceCall
from agent.handlers.produce_single import SingleProduce, is_single, single_batch
from agent.intake import Intake
from agent.outgoing import Outgoing
from agent.slots import Slot
from agent.wire.apis import API_BY_KEY, API_VERSIONS, FETCH, JOIN_GROUP, OFFSET_COMMIT, PRODUCE, SYNC_GROUP, Api
from agent.wire.codec import BODY_BYTES_MAX, client_id_of, decode_header, decode_request
from agent.wire.errors import DecodeError
from agent.wire.frames import Block
from agent.wire.produce_codec import PartitionRefusal, ProduceRequest, decode_produce
from agent.zone_traffic import ClientPlace

if TYPE_CHECKING:
    from agent.dispatch import Answer
    from agent.server import KafkaServer

# Why connections are closed: the values of a metric's label, with those in agent.intake and agent.handlers.produce.
CLIENT_CLOSED: Final = "client"
BROKEN: Final = "broken"
BAD_FRAME: Final = "bad_frame"
BAD_REQUEST: Final = "bad_request"
UNKNOWN_API: Final = "unknown_api"
UNSUPPORTED_VERSION: Final = "unsupported_version"
HANDLER_FAILED: Final = "handler_failed"
FAILED: Final = "failed"
CUT_OFF: Final = "cut_off"
IDLE: Final = "idle"
WRITE_STALL: Final = "write_stall"
LIMIT: Final = "limit"
SHUTDOWN: Final = "shutdown"
MOVED: Final = "moved"
_UNREMARKABLE: Final = frozenset({CLIENT_CLOSED, IDLE, SHUTDOWN, CUT_OFF, MOVED})

_KEY_AND_VERSION: Final = struct.Struct(">hhi")
_PRODUCE_MIN: Final = API_BY_KEY[PRODUCE].served_min
_PRODUCE_MAX: Final = API_BY_KEY[PRODUCE].max_version
UNSENT_BYTES_MAX: Final = 1024 * 1024
"""Answers that wait for an earlier one (a Produce's commit); beyond so many bytes no more requests are taken in."""
_LONG_WAITS: Final = frozenset({FETCH, JOIN_GROUP, SYNC_GROUP})
"""What may wait for long, and is cut off when the agent leaves."""
_GIVEN_UP: Final = frozenset({FETCH, OFFSET_COMMIT})
"""What is cut off when its client is gone. A commit of offsets that meets a metadata service in trouble is repeated for
many seconds: its client commits further on over another connection meanwhile, and must not be overtaken."""


class Connection(asyncio.BufferedProtocol):
    """See the module's text. One per accepted socket; ``server`` is what all connections of the process share.
    ``principals``: the names in the client's certificate."""

    __slots__ = (
        "_blocks",
        "_busy_at",
        "_call",
        "_client_host",
        "_close_reason",
        "_departure",
        "_ending",
        "_flush_is_due",
        "_intake",
        "_outgoing",
        "_place",
        "_principals",
        "_produces",
        "_pumping",
        "_sent_away",
        "_server",
        "_slots",
        "_task",
        "_transport",
        "_unsent_bytes",
        "_write_paused",
    )

    def __init__(self, server: KafkaServer, principals: tuple[str, ...] = ()) -> None:
        self._server = server
        self._principals = principals
        self._blocks: deque[Block] = deque()
        self._slots: deque[Slot] = deque()
        self._transport: asyncio.Transport | None = None
        self._intake: Intake | None = None
        self._outgoing: Outgoing | None = None
        self._task: asyncio.Task[None] | None = None
        self._call: Call | None = None
        self._client_host = ""
        self._place = ClientPlace(server.metrics.cross_zone)
        self._close_reason: str | None = None
        self._ending = False
        self._pumping = False
        self._produces = False
        self._write_paused = False
        self._busy_at = server.coarse_now
        self._departure = Departure(server.coarse_now) if server.agent.moving else None
        self._sent_away = False
        """The request under way was cancelled to be answered with where to go."""
        self._unsent_bytes = 0
        self._flush_is_due = False

    # --- the transport's callbacks ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own class is not a subclass
        self._transport = transport
        server = self._server
        budget = server.agent.budget
        self._intake = Intake(
            transport,
            budget,
            server.large_frames,
            server.scratch,
            server.limits.request_bytes_max,
            server.coarse_now,
        )
        self._outgoing = Outgoing(transport, budget)
        peer = transport.get_extra_info("peername")
        if peer:
            self._place.host = peer[0]
        self._client_host = f"/{self._place.host}"
        if not server.admit(self):
            self._close_reason = LIMIT
            self._ending = True
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        assert self._outgoing is not None and self._intake is not None
        self._ending = True
        if self._close_reason is None:
            self._close_reason = CLIENT_CLOSED if error is None else BROKEN
        self._transport = None
        self._outgoing.lost()
        self._intake.lost()
        self._discard_pending()
        for slot in self._slots:
            self._let_go(slot)
            if slot.payload is not None and slot.payload.release is not None:
                slot.payload.release()
        self._slots.clear()
        if self._task is not None and self._call is not None and self._call.api_key in _GIVEN_UP:
            self._task.cancel()
        self._server.gone(self, self._close_reason)

    def eof_received(self) -> bool:
        """A client that has finished sending is done with us: Kafka's clients never half-close."""
        return False

    def get_buffer(self, _sizehint: int) -> memoryview:
        assert self._intake is not None
        return self._intake.buffer()

    def buffer_updated(self, count: int) -> None:
        intake, server = self._intake, self._server
        assert intake is not None
        server.metrics.received_bytes += count
        self._place.received(count)
        block = intake.received(count, server.coarse_now)
        if block is not None:
            block.arrived_at = server.clock.monotonic()
            self._blocks.append(block)
            self._pump()
        if intake.failure is not None and not self._ending:
            self._refuse(Slot(self, None, None), BAD_FRAME, intake.failure)
            self._pump()
        elif self._produces and server.agent.budget.exhausted:
            intake.wait_for_memory()

    def pause_writing(self) -> None:
        self._write_paused = True
        assert self._outgoing is not None
        self._outgoing.settle()
        self._hold_back()

    def resume_writing(self) -> None:
        self._write_paused = False
        assert self._outgoing is not None
        self._outgoing.settle()
        self._pump()

    def _hold_back(self) -> None:
        """Let the intake know whether more requests are wanted."""
        assert self._intake is not None
        held_back = self._write_paused or self._ending or bool(self._blocks)
        self._intake.hold_back(held_back, self._server.coarse_now)

    # --- taking requests in -------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Take in what may be taken in, and write what is ready. A fault of ours ends this connection and no other."""
        if self._pumping:
            return
        self._pumping = True
        try:
            self._take_in_pending()
            self._pumping = False
            self._flush()
            self._hold_back()
        except Exception as error:
            self._server.failures.report("connection_failed", error, client=self._client_host)
            self.abort(FAILED)
        finally:
            self._pumping = False

    def _take_in_pending(self) -> None:
        blocks, slots = self._blocks, self._slots
        in_flight_max = self._server.limits.requests_in_flight_max
        while blocks and self._task is None and not self._write_paused and not self._ending:
            if len(slots) >= in_flight_max or self._unsent_bytes > UNSENT_BYTES_MAX:
                self._flush()
                if len(slots) >= in_flight_max or self._unsent_bytes > UNSENT_BYTES_MAX:
                    return
            block = blocks[0]
            start, end = block.take()
            if block.pending == 0:
                blocks.popleft()
            self._take_in(block, start, end)

    def _take_in(self, block: Block, start: int, end: int) -> None:
        api_key, api_version, correlation_id = _KEY_AND_VERSION.unpack_from(block.buffer, start)
        if self._departure is not None:
            self._departure.asked(api_key, self._server.coarse_now)
        if api_key == PRODUCE and _PRODUCE_MIN <= api_version <= _PRODUCE_MAX:
            self._take_in_produce(block, start, end)
            return
        api = API_BY_KEY.get(api_key)
        if api is None:
            self._server.metrics.unknown_api_requests += 1
            self._refuse(Slot(self, block, None), UNKNOWN_API, f"API key {api_key} version {api_version}")
        elif not api.serves(api_version):
            slot = Slot(self, block, self._server.metrics.apis[api_key])
            if api_key == API_VERSIONS:
                self._slots.append(slot)
                self._server.metrics.apis[api_key].error += 1
                slot.answer = api_versions.unsupported_version(correlation_id)
                self.completed(slot)
            else:
                self._refuse(slot, UNSUPPORTED_VERSION, f"{api.name} version {api_version}")
        else:
            self._take_in_other(api, block, start, end)

    def _take_in_produce(self, block: Block, start: int, end: int) -> None:
        server = self._server
        try:
            request = decode_produce(block.buffer, start, end)
        except DecodeError as error:
            self._refuse(Slot(self, block, server.metrics.apis[PRODUCE]), BAD_REQUEST, str(error))
            return
        self._produces = True
        if not self._place.zone:
            self._place.meet(client_id_of(block.buffer, start, end), server.agent.roster)
        if is_single(request) and self._departure is None and self._take_in_single(block, request):
            return
        call = ProduceCall(self, block, server.agent)
        self._slots.append(call)
        if self._departure is not None:
            if request.acks in (1, -1):
                place = self._place
                call.send_away(request, server.agent.roster.route(place.zone, place.client_id, place.host))
                self._departure.told = True
                return
            self._departure.unanswered = True
        if call.take_in(request, server.clock.now_ms()):
            call.append()
        else:
            self._call = None
            self._task = server.supervisor.start("kafka-produce-rewrite", self._rewrite(call))

    def _take_in_single(self, block: Block, request: ProduceRequest) -> bool:
        """Whether ``request`` was one of those that take the short way, and is on it."""
        server = self._server
        agent = server.agent
        batch = single_batch(request, agent.topics.by_name(request.topics[0][0]), block, server.clock.now_ms())
        if batch is None:
            return False
        metrics = agent.metrics
        slot = SingleProduce(self, block, metrics.apis[PRODUCE], request, batch.partition)
        self._slots.append(slot)
        metrics.received_records += batch.draft.record_count
        metrics.received_batches += 1
        agent.writer.append_one(slot, batch)
        return True

    async def _rewrite(self, call: ProduceCall) -> None:
        """The slow path of a Produce. Later requests wait for it, so that batches keep their order."""
        server = self._server
        try:
            await call.rewrite(server.clock.now_ms())
        except Exception as error:
            server.metrics.apis[PRODUCE].failed += 1
            server.failures.report("handler_failed", error, api="Produce", client=self._client_host)
            call.refuse(PartitionRefusal(ErrorCode.unknown_server_error))
        finally:
            self._task = None
        call.append()
        self._pump()

    def _take_in_other(self, api: Api, block: Block, start: int, end: int) -> None:
        server = self._server
        slot = Slot(self, block, server.metrics.apis[api.key])
        try:
            header = decode_header(block.buffer, start, end)
            if end - header.body_start > BODY_BYTES_MAX:
                raise DecodeError(f"a {api.name} request of {end - start} bytes")
            request = decode_request(api.key, header.api_version, bytes(block.buffer[header.body_start : end]))
        except DecodeError as error:
            self._refuse(slot, BAD_REQUEST, str(error))
            return
        self._slots.append(slot)
        place = self._place
        if header.client_id != place.client_id or not place.zone:
            place.meet(header.client_id, server.agent.roster)
        call = Call(
            api.key,
            header.api_version,
            header.correlation_id,
            header.client_id,
            self._client_host,
            place.zone,
            self._principals,
        )
        self._call = call
        self._task = server.supervisor.start(f"kafka-{api.name}", self._answer(slot, call, request))

    async def _answer(self, slot: Slot, call: Call, request: Any) -> None:
        dispatcher = self._server.dispatcher
        try:
            try:
                answer = await dispatcher.answer(call, request)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                if not self._sent_away or task.uncancel() > 0:
                    raise
                answer = dispatcher.sent_away(call, request)
        except asyncio.CancelledError:
            slot.closes = CUT_OFF
            raise
        else:
            if answer is None:
                slot.closes = HANDLER_FAILED
            else:
                slot.answer, slot.payload = answer.head, answer.payload
                self._hold_answer(slot, answer)
                if self._departure is not None:
                    self._departure.answered(call.api_key)
        finally:
            self._sent_away = False
            self._task = None
            self._call = None
            self.completed(slot)
            self._pump()

    def _hold_answer(self, slot: Slot, answer: Answer) -> None:
        """An answer that has to wait for earlier ones is memory too (a Produce's is small beside its request)."""
        payload = answer.payload
        slot.held_bytes = len(answer.head)
        slot.unsent_bytes = slot.held_bytes + (0 if payload is None else payload.byte_length)
        if payload is not None and payload.release is None:
            slot.held_bytes = slot.unsent_bytes
        self._unsent_bytes += slot.unsent_bytes
        self._server.agent.budget.take("response", slot.held_bytes)

    def _let_go(self, slot: Slot) -> None:
        """``slot``'s answer is not the connection's any more."""
        self._unsent_bytes -= slot.unsent_bytes
        self._server.agent.budget.give("response", slot.held_bytes)
        slot.unsent_bytes = slot.held_bytes = 0

    def _refuse(self, slot: Slot, reason: str, detail: str) -> None:
        """A request that cannot be answered: earlier ones are, then the connection is closed."""
        if slot.api is not None:
            slot.api.refused += 1
        self._report(reason, detail)
        slot.closes = reason
        self._slots.append(slot)
        self._ending = True
        self.completed(slot)
        self._discard_pending()

    def _discard_pending(self) -> None:
        for block in self._blocks:
            for _ in range(block.pending):
                self._release(block)
        self._blocks.clear()

    def _release(self, block: Block) -> None:
        """One request of ``block`` needs its bytes no more."""
        block.open_requests -= 1
        if block.open_requests == 0:
            self._server.agent.budget.give("request", block.byte_length)

    # --- answering ----------------------------------------------------------------------------------------

    def completed(self, slot: Slot) -> None:
        if slot.block is not None:
            self._release(slot.block)
            if slot.api is not None:
                slot.api.observe(self._server.clock.monotonic() - slot.block.arrived_at)
        if self._transport is None:
            self._let_go(slot)
            if slot.payload is not None and slot.payload.release is not None:
                slot.payload.release()
        elif not self._pumping and not self._flush_is_due:
            self._flush_is_due = True
            self._server.soon(self)

    def run_due(self) -> None:
        """What ``server.soon`` was asked for: write what has become ready, take in what that allows."""
        self._flush_is_due = False
        if self._transport is None:
            return
        assert self._outgoing is not None
        self._pump()
        self._outgoing.settle()

    def _flush(self) -> None:
        slots, outgoing = self._slots, self._outgoing
        if self._close_reason is not None:
            return
        assert outgoing is not None
        frames: list[bytes] = []
        sent_bytes = 0
        while slots:
            slot = slots[0]
            if slot.closes is not None:
                break
            answer = slot.answer
            if answer is None:
                break
            slots.popleft()
            if slot.held_bytes:
                self._let_go(slot)
            sent_bytes += len(answer)
            payload = slot.payload
            if payload is None:
                frames.append(answer)
                continue
            slot.payload = None
            sent_bytes += payload.byte_length
            if frames:
                outgoing.write(b"".join(frames))
                frames = []
            outgoing.write_payload(answer, payload)
            if not self._flush_is_due:
                self._flush_is_due = True
                self._server.soon(self)
        if frames and sent_bytes:
            outgoing.write(frames[0] if len(frames) == 1 else b"".join(frames))
        if sent_bytes:
            self._server.metrics.sent_bytes += sent_bytes
            self._place.sent(sent_bytes)
        if slots and slots[0].closes is not None:
            self.close(slots[0].closes)
        elif self._ending and not slots and self._close_reason is None:
            self.close(SHUTDOWN)

    # --- the end ------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close after what is already written has left. Idempotent."""
        self._ending = True
        if self._close_reason is None:
            self._close_reason = reason
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close now. Idempotent."""
        self._ending = True
        if self._close_reason is None:
            self._close_reason = reason
        if self._transport is not None:
            self._transport.abort()

    def leave(self) -> None:
        """The agent is leaving: read no more, cut off long waits, close once what is in flight is answered."""
        self._ending = True
        self._discard_pending()
        if self._task is not None and self._call is not None and self._call.api_key in _LONG_WAITS:
            self._task.cancel()
        self._hold_back()
        self._flush()

    def send_away(self) -> None:
        """The agent sends its clients to others from now on: whoever waits here for long is told at once."""
        self._departure = Departure(self._server.coarse_now)
        if self._task is not None and self._call is not None and self._call.api_key in _LONG_WAITS:
            self._sent_away = True
            self._task.cancel()

    @property
    def was_told(self) -> bool:
        """Its client has heard where to go instead."""
        return self._departure is not None and self._departure.told

    def has_moved(self, now: float) -> bool:
        """Nothing of its client is under way, and it asked for nothing but where to go for a while."""
        assert self._intake is not None and self._outgoing is not None and self._departure is not None
        if self._departure.unanswered:
            self._departure.told = True  # closing is all it will notice; what it sent is stored first
            self.leave()
            return False
        if self._slots or self._blocks or self._intake.mid_frame or self._outgoing.settle():
            return False
        return self._departure.is_quiet(now)

    def sweep(self, now: float) -> None:
        """Look at this connection's clocks; ``now`` is :attr:`KafkaServer.coarse_now`. Called about once a second."""
        intake, outgoing, limits = self._intake, self._outgoing, self._server.limits
        if self._transport is None or intake is None or outgoing is None:
            return
        too_slow = outgoing.too_slow(now, limits.write_stall_ms / 1000)
        if too_slow is not None:
            self._cut(WRITE_STALL, too_slow)
        if self._ending:
            return
        overdue = intake.overdue(now, limits.frame_ms / 1000)
        if overdue is not None:
            self._cut(overdue.reason, overdue.detail)
        elif self._slots or self._blocks:
            self._busy_at = now
        elif not intake.mid_frame and now - max(intake.active_at, self._busy_at) > limits.idle_ms / 1000:
            self.close(IDLE)

    def large_frame_bytes(self, now: float) -> int:
        """What giving this connection's unfinished frame up (:meth:`give_frame_up`) would free; 0 when it is young."""
        return 0 if self._ending or self._intake is None else self._intake.large_frame_bytes(now)

    def give_frame_up(self) -> None:
        """Large unfinished frames hold all that they may, and this one is the largest."""
        assert self._intake is not None
        overdue = self._intake.gives_way()
        self._cut(overdue.reason, overdue.detail)

    def broken(self, reason: str, detail: str) -> None:
        """The transport can make nothing of what the client sends."""
        self._cut(reason, detail)

    def _cut(self, reason: str, detail: str) -> None:
        self._report(reason, detail)
        self.abort(reason)

    def _report(self, reason: str, detail: str) -> None:
        if reason not in _UNREMARKABLE:
            self._server.failures.report(f"connection_closed_{reason}", client=self._client_host, reason=detail)
