"""The commonest Produce request, in few steps and few objects: one batch for one partition, stored as it was sent.

Clients that do not gather partitions into a request send tens of thousands of these a second, and as many wait for
their commit at a time. Each is one object that is its own ticket, so that the garbage collector has little to visit.
Whatever is special about a request (several partitions, a refusal, acks 0, a rewrite, an agent that leaves) takes
:mod:`agent.handlers.produce`'s way; what both answer is the same, byte for byte.
"""

from __future__ import annotations

from typing import Final

from agent.handlers.produce import NO_LOG_APPEND_TIME, commit_refusal
from agent.metrics import ApiMetrics
from agent.slots import Slot, SlotOwner
from agent.topics import TopicView
from agent.wire.frames import Block
from agent.wire.produce_codec import ProduceRequest, encode_produce_response, encode_single_ack
from ingest.records import validate
from ingest.ticket import IngestFailed, PendingBatch
from metadata.model import BatchCommitted, BatchDraft

_ANSWERED: Final = (-1, 1)


def is_single(request: ProduceRequest) -> bool:
    """Whether :func:`single_batch` should be asked."""
    return (
        request.partition_count == 1
        and len(request.topics) == 1
        and request.acks in _ANSWERED
        and request.transactional_id is None
    )


def single_batch(request: ProduceRequest, view: TopicView | None, block: Block, now_ms: int) -> PendingBatch | None:
    """The batch of a request that :class:`SingleProduce` can answer; None: go the general way, nothing was done."""
    if view is None or not view.stores_as_sent:
        return None
    partition, start, end = request.topics[0][1][0]
    if start < 0 or not 0 <= partition < view.partition_count:
        return None
    payload = block.view[start:end]
    draft = validate(payload, view.policy, now_ms, request.api_version)
    return PendingBatch(view.topic_id, partition, payload, draft) if type(draft) is BatchDraft else None


class SingleProduce(Slot):
    """A request of one valid batch, from append to answer; ``settle`` is its ticket's."""

    __slots__ = ("_api_version", "_correlation_id", "_partition", "_topic_name")

    def __init__(
        self, owner: SlotOwner, block: Block, api: ApiMetrics, request: ProduceRequest, partition: int
    ) -> None:
        super().__init__(owner, block, api)
        self._api_version = request.api_version
        self._correlation_id = request.correlation_id
        self._topic_name = request.topics[0][0]
        self._partition = partition

    def settle(self, _index: int, outcome: BatchCommitted | IngestFailed) -> None:
        """The batch has its outcome: answer."""
        api = self.api
        assert api is not None and self.answer is None, "a batch settles once"
        if type(outcome) is BatchCommitted and outcome.refusal is None:
            api.ok += 1
            ack = (self._partition, outcome.base_offset, NO_LOG_APPEND_TIME, outcome.log_start_offset)
            self.answer = encode_single_ack(self._api_version, self._correlation_id, self._topic_name, ack)
        else:
            api.error += 1
            topics = [(self._topic_name, [(self._partition, commit_refusal(outcome))])]
            self.answer = encode_produce_response(self._api_version, self._correlation_id, topics)
        self.owner.completed(self)
