"""InitProducerId (key 22), versions 0-5: KIP-98, KIP-360 (bump the epoch of a known id, version 3+), KIP-588.

For idempotent producers only. A producer whose id or epoch is no longer known gets a new id, as from Kafka: its
sequences start afresh.

Left out: transactions. A transactional id is TRANSACTIONAL_ID_AUTHORIZATION_FAILED, the one error that makes every
client stop instead of asking again without end.
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from metadata.model import NO_PRODUCER_ID, MetadataError, ProducerIdGranted, Refusal, Refused

NO_EPOCH = -1


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Grant a producer id, or the next epoch of the one the client has."""
    if request.transactional_id is not None:
        return _refused(ErrorCode.transactional_id_authorization_failed)
    producer_id = getattr(request, "producer_id", NO_PRODUCER_ID)
    producer_epoch = getattr(request, "producer_epoch", NO_EPOCH)
    if (producer_id == NO_PRODUCER_ID) != (producer_epoch == NO_EPOCH) or producer_id < -1 or producer_epoch < -1:
        return _refused(ErrorCode.invalid_request)
    try:
        granted = await _grant(producer_id, producer_epoch, agent)
    except MetadataError:
        # The one code that all clients answer by asking the same broker again. An id that was granted but
        # never arrived is lost, which harms nobody.
        return _refused(ErrorCode.coordinator_load_in_progress)
    return {
        "throttle_time": 0,
        "error_code": ErrorCode.none,
        "producer_id": granted.producer_id,
        "producer_epoch": granted.producer_epoch,
    }


async def _grant(producer_id: int, producer_epoch: int, agent: Agent) -> ProducerIdGranted:
    try:
        return await agent.metadata.grant_producer_id(producer_id, producer_epoch)
    except Refused as refused:
        if refused.refusal is not Refusal.INVALID_PRODUCER_EPOCH:
            raise
        return await agent.metadata.grant_producer_id(NO_PRODUCER_ID, NO_EPOCH)


def _refused(code: ErrorCode) -> Body:
    return {"throttle_time": 0, "error_code": code, "producer_id": NO_PRODUCER_ID, "producer_epoch": NO_EPOCH}
