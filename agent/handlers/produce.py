"""Produce (key 0), versions 3-12: KIP-98, 110 (zstd), 467 (record errors), 482, 951. Advertised from 0.

No task and no future per request: a request is decoded, validated and appended while its bytes are being received, and
answered when its ticket settles, each batch with its own base offset.

- ``acks`` 1 waits like ``all``: there are no followers, a batch is durable or it is not acknowledged. ``acks`` 0 gets
  no answer, and an error closes its connection, as in Kafka. ``timeout_ms`` is not used: the writer has a deadline.
- Producing does not create topics; Metadata does, as in Kafka.
- Topics that store something else than was sent (``compression.type``, LogAppendTime) take a slower path, in which the
  connection's later requests wait so that the order of a partition stays the order of the requests.

An agent that leaves sends producers to another (NOT_LEADER_OR_FOLLOWER, with its address from version 10 on), but for
acks 0: these it takes in, and closes the connection, since it has no other way to say so.

Leaves out: transactions (error 53, which clients do not retry), throttling, version 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kio.schema.errors import ErrorCode

from agent.context import Agent
from agent.errors import error_code, failure_code
from agent.handlers.moved import NOT_LEADER, produce_refusals
from agent.routing import Route
from agent.slots import Slot, SlotOwner
from agent.topics import TopicView
from agent.wire.apis import PRODUCE
from agent.wire.frames import Block
from agent.wire.produce_codec import (
    NO_RECORDS,
    PartitionAck,
    PartitionRefusal,
    PartitionSpan,
    ProduceRequest,
    RecordError,
    TopicResults,
    encode_produce_response,
)
from ingest.batch_header import BatchHeader
from ingest.records import BatchFault, validate
from ingest.rewrite import needs_rewrite, rewrite
from ingest.ticket import IngestFailed, PendingBatch, ProduceTicket
from metadata.model import BatchCommitted, BatchDraft, Refusal
from metadata.topic_configs import TopicPolicy
from storage.store import Chunk

NO_LOG_APPEND_TIME: Final = -1
ACKS_ERROR: Final = "acks_0_error"
"""Why a connection is closed that asked for no answers and made an error."""

_FAULT_CODES: Final = {name: int(code) for name, code in ErrorCode.__members__.items()}
_UNKNOWN_TOPIC: Final = PartitionRefusal(ErrorCode.unknown_topic_or_partition)
_NO_TRANSACTIONS: Final = PartitionRefusal(
    ErrorCode.transactional_id_authorization_failed, "Transactions are not supported"
)
_MESSAGE_CHARACTERS_MAX: Final = 1_000
_INVALID_ACKS: Final = PartitionRefusal(ErrorCode.invalid_required_acks)

_Row = tuple[int, PartitionRefusal] | tuple[int, int, int]
"""(partition, why not), or (partition, index of its batch in the ticket, log append time in ms or -1)."""


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """A valid batch whose topic wants more than to store it."""

    batch_index: int
    payload: Chunk
    header: BatchHeader
    policy: TopicPolicy


class ProduceCall(Slot):
    """One Produce request on its way: :meth:`take_in`, :meth:`rewrite` if there is something to, :meth:`append`.

    Tens of thousands of these wait for their commit at a time, so it keeps little.
    """

    __slots__ = (
        "_acks",
        "_agent",
        "_api_version",
        "_batches",
        "_correlation_id",
        "_rewrites",
        "_rewritten_bytes",
        "_topics",
    )

    def __init__(self, owner: SlotOwner, block: Block, agent: Agent) -> None:
        super().__init__(owner, block, agent.metrics.apis[PRODUCE])
        self._agent = agent
        self._acks = 0
        self._api_version = 0
        self._correlation_id = 0
        self._batches: list[PendingBatch] = []
        self._rewrites: list[_Rewrite] | None = None
        self._rewritten_bytes = 0
        self._topics: list[tuple[str, list[_Row]]] = []

    def take_in(self, request: ProduceRequest, now_ms: int) -> bool:
        """Validate every batch. True: :meth:`append` is next; False: :meth:`rewrite` comes before it."""
        self._acks = request.acks
        self._api_version = request.api_version
        self._correlation_id = request.correlation_id
        if request.acks not in (1, -1, 0):
            self._topics = self._all_refused(request.topics, _INVALID_ACKS)
            return True
        if request.transactional_id is not None:
            self._topics = self._all_refused(request.topics, _NO_TRANSACTIONS)
            return True
        for name, spans in request.topics:
            view = self._agent.topics.by_name(name)
            if view is None:
                rows: list[_Row] = [self._refused(partition, _UNKNOWN_TOPIC) for partition, _, _ in spans]
            else:
                rows = self._take_in_topic(view, spans, now_ms)
            self._topics.append((name, rows))
        return self._rewrites is None

    def send_away(self, request: ProduceRequest, route: Route) -> None:
        """Answer every partition with where to produce it instead: this agent is leaving."""
        topics, endpoints = produce_refusals(request, route, self._agent)
        self._agent.metrics.refused_batches[NOT_LEADER.name] += request.partition_count
        assert self.api is not None
        self.api.error += 1
        self.answer = encode_produce_response(request.api_version, request.correlation_id, topics, endpoints)
        self._complete()

    def _take_in_topic(self, view: TopicView, spans: list[PartitionSpan], now_ms: int) -> list[_Row]:
        """Validate the batches of one topic; keeps each or says why not."""
        assert self.block is not None
        payloads = self.block.view
        policy = view.policy
        as_sent = view.stores_as_sent
        batches = self._batches
        rows: list[_Row] = []
        for partition, start, end in spans:
            if not 0 <= partition < view.partition_count:
                rows.append(self._refused(partition, _UNKNOWN_TOPIC))
                continue
            payload = None if start == NO_RECORDS else payloads[start:end]
            draft = validate(payload, policy, now_ms, self._api_version)
            if type(draft) is not BatchDraft:
                assert type(draft) is BatchFault
                rows.append(self._refused(partition, _refusal(draft)))
                continue
            assert payload is not None
            index = len(batches)
            if not as_sent:
                self._note_rewrite(index, payload, policy)
            batches.append(PendingBatch(view.topic_id, partition, payload, draft))
            rows.append((partition, index, NO_LOG_APPEND_TIME))
        return rows

    def _note_rewrite(self, index: int, payload: Chunk, policy: TopicPolicy) -> None:
        header = BatchHeader.parse(payload)
        if needs_rewrite(header, policy):
            if self._rewrites is None:
                self._rewrites = []
            self._rewrites.append(_Rewrite(index, payload, header, policy))

    def _refused(self, partition: int, refusal: PartitionRefusal) -> _Row:
        self._agent.metrics.refused_batches[ErrorCode(refusal.error_code).name] += 1
        return (partition, refusal)

    def refuse(self, refusal: PartitionRefusal) -> None:
        """Answer every partition with ``refusal`` when it comes to :meth:`append`."""
        self._batches.clear()
        self._topics = self._all_refused(self._topics, refusal)

    def _all_refused(
        self, topics: Sequence[tuple[str, Sequence[_Row]]], refusal: PartitionRefusal
    ) -> list[tuple[str, list[_Row]]]:
        return [(name, [self._refused(row[0], refusal) for row in rows]) for name, rows in topics]

    async def rewrite(self, now_ms: int) -> None:
        """Check, recompress and stamp the batches that need it (what takes long runs in a thread)."""
        refusals: dict[int, PartitionRefusal] = {}
        stamped: set[int] = set()
        assert self._rewrites is not None
        for task in self._rewrites:
            index = task.batch_index
            rewritten = await rewrite(task.payload, task.header, task.policy, now_ms)
            if isinstance(rewritten, BatchFault):
                refusals[index] = _refusal(rewritten)
                continue
            if rewritten is not task.payload:
                self._hold(len(rewritten))
                batch = self._batches[index]
                draft = BatchHeader.parse(rewritten).draft()
                self._batches[index] = PendingBatch(batch.topic_id, batch.partition, rewritten, draft)
            if task.policy.log_append_time:
                stamped.add(index)
        kept = [index for index in range(len(self._batches)) if index not in refusals]
        numbers = {old: new for new, old in enumerate(kept)}
        self._batches = [self._batches[index] for index in kept]

        def row_after(row: _Row) -> _Row:
            if len(row) == 2:
                return row
            partition, index, _ = row
            if index in refusals:
                return self._refused(partition, refusals[index])
            return (partition, numbers[index], now_ms if index in stamped else NO_LOG_APPEND_TIME)

        self._topics = [(name, [row_after(row) for row in rows]) for name, rows in self._topics]

    def _hold(self, byte_length: int) -> None:
        """Rewritten bytes are held beside the request's own until it is answered."""
        self._rewritten_bytes += byte_length
        self._agent.budget.take("request", byte_length)

    def append(self) -> None:
        """Hand the valid batches to the writer; the request is answered when they have settled."""
        batches = self._batches
        if not batches:
            self._answer(None)
            return
        metrics = self._agent.metrics
        ticket = ProduceTicket(len(batches), self._settled)
        for batch in batches:
            metrics.received_records += batch.draft.record_count
        metrics.received_batches += len(batches)
        self._agent.writer.append(ticket, batches)
        batches.clear()

    def _settled(self, ticket: ProduceTicket) -> None:
        """Every batch has its outcome."""
        self._answer(ticket)

    def _answer(self, ticket: ProduceTicket | None) -> None:
        has_error = False
        topics: list[TopicResults] = []
        for name, rows in self._topics:
            results: list[PartitionAck | tuple[int, PartitionRefusal]] = []
            for row in rows:
                if len(row) == 2:
                    has_error = True
                    results.append(row)
                    continue
                partition, index, log_append_time_ms = row
                assert ticket is not None
                outcome = ticket.outcomes[index]
                if type(outcome) is BatchCommitted and outcome.refusal is None:
                    results.append((partition, outcome.base_offset, log_append_time_ms, outcome.log_start_offset))
                else:
                    has_error = True
                    results.append((partition, commit_refusal(outcome)))
            topics.append((name, results))
        assert self.api is not None
        if has_error:
            self.api.error += 1
        else:
            self.api.ok += 1
        if self._acks != 0:
            self.answer = encode_produce_response(self._api_version, self._correlation_id, topics)
        elif has_error:
            self.closes = ACKS_ERROR
        else:
            self.answer = b""
        self._complete()

    def _complete(self) -> None:
        if self._rewritten_bytes:
            self._agent.budget.give("request", self._rewritten_bytes)
        self.owner.completed(self)


def _refusal(fault: BatchFault) -> PartitionRefusal:
    return PartitionRefusal(
        _FAULT_CODES[fault.code],
        fault.message,
        tuple(RecordError(error.batch_index, error.message) for error in fault.record_errors),
    )


def commit_refusal(outcome: BatchCommitted | IngestFailed | None) -> PartitionRefusal:
    """Why a batch that was taken in is not acknowledged. Versions below 13 know no error about topic ids."""
    if isinstance(outcome, BatchCommitted):
        assert outcome.refusal is not None
        if outcome.refusal is Refusal.UNKNOWN_TOPIC_ID:
            return _UNKNOWN_TOPIC
        return PartitionRefusal(error_code(outcome.refusal), log_start_offset=outcome.log_start_offset)
    assert outcome is not None, "a ticket settles with every outcome filled in"
    return PartitionRefusal(failure_code(outcome), str(outcome)[:_MESSAGE_CHARACTERS_MAX])
