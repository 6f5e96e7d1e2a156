"""Valid batches whose topic wants more than to store them: a look at every record, another codec, another timestamp.

What takes longer than the event loop can wait is done in two threads, which also bounds the memory that decompressed
batches take at a time.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor

from ingest.batch_header import BatchHeader, ExpansionLimit, MalformedRecords
from ingest.compression import CODEC_OF_TYPE, EXPANDED_BYTES_MAX, recompress, stamp_log_append_time
from ingest.records import BatchFault, FaultCode, needs_walk, too_large, validate_records
from metadata.topic_configs import TopicPolicy
from storage.store import Chunk

_THREADS = 2
_EXPANSION_OF_LARGE = 4
"""Where an operator has raised ``max.message.bytes``, batches may grow to so many times that when decompressed."""


def stores_as_sent(policy: TopicPolicy) -> bool:
    """Whether this topic takes every valid batch as it was sent: :func:`needs_rewrite` need not be asked."""
    return policy.compression_type == "producer" and not policy.log_append_time and not needs_walk(policy)


def needs_rewrite(header: BatchHeader, policy: TopicPolicy) -> bool:
    """Whether this topic may not take the batch as it was sent; then :func:`rewrite` it."""
    return policy.log_append_time or _needs_thread(header, policy)


async def rewrite(payload: Chunk, header: BatchHeader, policy: TopicPolicy, now_ms: int) -> Chunk | BatchFault:
    """What the topic stores for a batch that passed :func:`ingest.records.validate`: its records checked one by one
    where the topic has rules for them, in the topic's codec, stamped with ``now_ms`` where the topic wants that.

    The result is a new buffer, or ``payload`` itself when nothing changes; parse its header anew. As in Kafka's
    ``UnifiedLog``, ``max.message.bytes`` holds for the result too. Cancelling leaves the thread to finish unobserved.
    """
    rewritten: Chunk | BatchFault = payload
    if _needs_thread(header, policy):
        loop = asyncio.get_running_loop()
        rewritten = await loop.run_in_executor(_threads(), _checked_and_recompressed, payload, header, policy, now_ms)
    if policy.log_append_time and not isinstance(rewritten, BatchFault):
        rewritten = stamp_log_append_time(rewritten, now_ms)
    return rewritten


def _needs_recompression(header: BatchHeader, policy: TopicPolicy) -> bool:
    return policy.compression_type != "producer" and CODEC_OF_TYPE[policy.compression_type] != header.codec


def _needs_thread(header: BatchHeader, policy: TopicPolicy) -> bool:
    return needs_walk(policy) or _needs_recompression(header, policy)


def _checked_and_recompressed(
    payload: Chunk, header: BatchHeader, policy: TopicPolicy, now_ms: int
) -> Chunk | BatchFault:
    bytes_max = max(EXPANDED_BYTES_MAX, _EXPANSION_OF_LARGE * policy.max_message_bytes)
    if needs_walk(policy):
        fault = validate_records(payload, header, policy, now_ms, bytes_max)
        if fault is not None:
            return fault
    if not _needs_recompression(header, policy):
        return payload
    try:
        recompressed = recompress(payload, CODEC_OF_TYPE[policy.compression_type], bytes_max)
    except ExpansionLimit as error:
        return BatchFault(FaultCode.MESSAGE_TOO_LARGE, str(error))
    except MalformedRecords as error:
        return BatchFault(FaultCode.INVALID_RECORD, str(error))
    if len(recompressed) > policy.max_message_bytes:
        return too_large(len(recompressed), policy)
    return recompressed


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """Made when the first topic needs it; its threads end with the process."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="ingest-rewrite")
