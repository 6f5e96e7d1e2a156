"""Turning a valid batch into what its topic stores, for topics whose configs ask for something else than was sent."""

from __future__ import annotations

from ingest.batch_header import BatchHeader, ExpansionLimit, MalformedRecords
from ingest.compression import CODEC_OF_TYPE, recompress_off_loop, stamp_log_append_time
from ingest.records import BatchFault, FaultCode, too_large
from metadata.topic_configs import TopicPolicy
from storage.store import Chunk


def needs_rewrite(header: BatchHeader, policy: TopicPolicy) -> bool:
    """Whether this topic stores something else than was sent; then :func:`rewrite` it."""
    return policy.log_append_time or _needs_recompression(header, policy)


async def rewrite(payload: Chunk, header: BatchHeader, policy: TopicPolicy, now_ms: int) -> Chunk | BatchFault:
    """What the topic stores for a valid batch: in the topic's codec (in a thread), stamped with ``now_ms``.

    The result is a new buffer, or ``payload`` itself when nothing changes; parse its header anew. As in Kafka's
    ``UnifiedLog``, ``max.message.bytes`` holds for the result too.
    """
    rewritten: Chunk = payload
    if _needs_recompression(header, policy):
        try:
            rewritten = await recompress_off_loop(payload, CODEC_OF_TYPE[policy.compression_type])
        except ExpansionLimit as error:
            return BatchFault(FaultCode.MESSAGE_TOO_LARGE, str(error))
        except MalformedRecords as error:
            return BatchFault(FaultCode.INVALID_RECORD, str(error))
        if len(rewritten) > policy.max_message_bytes:
            return too_large(len(rewritten), policy)
    if policy.log_append_time:
        rewritten = stamp_log_append_time(rewritten, now_ms)
    return rewritten


def _needs_recompression(header: BatchHeader, policy: TopicPolicy) -> bool:
    return policy.compression_type != "producer" and CODEC_OF_TYPE[policy.compression_type] != header.codec
