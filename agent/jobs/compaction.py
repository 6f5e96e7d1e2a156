"""Jobs that compact segments (RFC 7): rewrite, then swap, one output segment after the other.

What was swapped stays when a job ends early; the rest is planned anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import structlog

from agent.jobs.swapping import Swapper, in_parts
from ingest.compaction.rewrite import Rewriter
from metadata.client import MetadataClient
from metadata.compaction import CompactionJob, SegmentSummary
from metadata.job_model import COMPACT_SEGMENTS
from metadata.model import EXTENTS_FOUND_MAX, Extent
from runtime.clock import Clock

_log = structlog.get_logger("tidelog.compaction")
_decode_job = msgspec.msgpack.Decoder(CompactionJob).decode


class CompactSegments:
    """One job at a time, so that memory is bounded. ``agent_epoch()`` is the current one."""

    kind = COMPACT_SEGMENTS

    def __init__(
        self,
        metadata: MetadataClient,
        rewriter: Rewriter,
        swapper: Swapper,
        agent_epoch: Callable[[], int],
        clock: Clock,
        turn: asyncio.Lock,
    ) -> None:
        """``turn``: shared by all that hold so much memory."""
        self._metadata = metadata
        self._rewriter = rewriter
        self._agent_epoch = agent_epoch
        self._clock = clock
        self._swapper = swapper
        self._turn = turn

    async def run(self, payload: bytes) -> bytes:
        job = _decode_job(payload)
        async with self._turn:
            agent_epoch = self._agent_epoch()
            extents = await self._find_extents(job.segments)
            began = self._clock.monotonic()
            replaced = made = 0
            inputs = frozenset(segment.segment_key for segment in job.segments)
            commit_ms = min(segment.commit_ms for segment in job.segments)
            rewriting = self._rewriter.rewrite(extents, job.level, agent_epoch)
            try:
                async for written in rewriting:
                    counts = await self._swapper.swap_in(agent_epoch, written, inputs, commit_ms)
                    replaced, made = replaced + counts[0], made + counts[1]
            finally:
                await rewriting.aclose()
            _log.info(
                "segments_compacted",
                from_level=job.level,
                segments=len(job.segments),
                extents=len(extents),
                replaced=replaced,
                made=made,
                seconds=round(self._clock.monotonic() - began, 2),
            )
        return b""

    async def _find_extents(self, segments: Sequence[SegmentSummary]) -> list[Extent]:
        extents: list[Extent] = []
        for part in in_parts(segments, [segment.live_extents for segment in segments], EXTENTS_FOUND_MAX):
            extents += await self._metadata.find_segment_extents([segment.name for segment in segments[part]])
        return extents
