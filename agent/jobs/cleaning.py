"""Jobs that compact a partition by key (``cleanup.policy=compact``), as Kafka's log cleaner does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from agent.jobs.swapping import Swapper
from ingest.compaction.cleaner import Cleaner, cleanable
from metadata.client import MetadataClient
from metadata.compaction import CleanJob
from metadata.job_model import CLEAN_PARTITION
from metadata.model import Extent, ExtentsQuery
from runtime.clock import Clock

EXTENTS_MAX = 50_000
"""Of a partition, looked at in one job; the rest comes when these have become fewer."""
QUERY_BYTES = 1 << 40

_log = structlog.get_logger("tidelog.compaction")
_decode = msgspec.msgpack.Decoder(CleanJob).decode


class CleanPartitions:
    """One job at a time: ``turn`` is shared by all that hold so much memory. ``agent_epoch()`` is the current one."""

    kind = CLEAN_PARTITION

    def __init__(
        self,
        metadata: MetadataClient,
        cleaner: Cleaner,
        swapper: Swapper,
        agent_epoch: Callable[[], int],
        clock: Clock,
        turn: asyncio.Lock,
    ) -> None:
        self._metadata = metadata
        self._cleaner = cleaner
        self._swapper = swapper
        self._agent_epoch = agent_epoch
        self._clock = clock
        self._turn = turn

    async def run(self, payload: bytes) -> bytes:
        job = _decode(payload)
        async with self._turn:
            agent_epoch = self._agent_epoch()
            extents = cleanable(await self._find_extents(job), job, self._clock.now_ms())
            if not extents:
                return b""
            replaced = made = bytes_after = 0
            cleaning = self._cleaner.clean(extents, job, agent_epoch)
            try:
                async for written in cleaning:
                    inputs = frozenset(each.segment_key for source in written.replaces for each in source)
                    commit_ms = min(each.commit_ms for source in written.replaces for each in source)
                    counts = await self._swapper.swap_in(agent_epoch, written, inputs, commit_ms, in_order=True)
                    replaced, made = replaced + counts[0], made + counts[1]
                    bytes_after += sum(each.byte_length for each in written.extents)
            finally:
                await cleaning.aclose()
            _log.info(
                "partition_cleaned",
                topic_id=job.topic_id.hex(),
                partition=job.partition,
                replaced=replaced,
                made=made,
                bytes_before=sum(extent.byte_length for extent in extents),
                bytes_after=bytes_after,
            )
        return b""

    async def _find_extents(self, job: CleanJob) -> list[Extent]:
        """From the log start on, as one look after the other finds them: a swap in between ends it there."""
        (offsets,) = await self._metadata.partition_offsets([(job.topic_id, job.partition)])
        extents: list[Extent] = []
        offset = -1 if offsets is None else offsets.log_start_offset
        while offsets is not None and offset < offsets.high_watermark and len(extents) < EXTENTS_MAX:
            query = ExtentsQuery(job.topic_id, job.partition, offset, QUERY_BYTES)
            (found,) = await self._metadata.find_extents([query])
            if found.refusal is not None or not found.extents:
                break
            if extents and found.extents[0].base_offset != offset:
                break
            extents += found.extents
            offset = extents[-1].last_offset + 1
        return extents
