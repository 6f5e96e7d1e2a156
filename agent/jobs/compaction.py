"""Jobs that compact segments (RFC 7): rewrite, then swap, one output segment after the other.

What was swapped stays when a job ends early; the rest is planned anew. An object whose swap has an unknown outcome is
left alone: the orphan sweep looks at it when this agent's epoch has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import msgspec
import structlog

from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.rewrite import Rewriter, WrittenSegment
from metadata.client import MetadataClient
from metadata.compaction import SWAPPED_EXTENTS_MAX, CompactionJob, ExtentSwap, SegmentSummary
from metadata.job_model import COMPACT_SEGMENTS
from metadata.model import EXTENTS_FOUND_MAX, Extent, MetadataUnavailable, Refused
from runtime.clock import Clock
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.compaction")
_decode_job = msgspec.msgpack.Decoder(CompactionJob).decode

SWAP_ATTEMPTS = 5
SWAP_PAUSE_SECONDS = 2.0
"""Before a swap is asked for again that nobody answered: within the job's lease, so that its object finds its place."""


class CompactSegments:
    """One job at a time, so that memory is bounded. ``agent_epoch()`` is the current one."""

    kind = COMPACT_SEGMENTS

    def __init__(
        self,
        store: ObjectStore,
        metadata: MetadataClient,
        rewriter: Rewriter,
        agent_epoch: Callable[[], int],
        clock: Clock,
        metrics: CompactionMetrics,
    ) -> None:
        self._store = store
        self._metadata = metadata
        self._rewriter = rewriter
        self._agent_epoch = agent_epoch
        self._clock = clock
        self._metrics = metrics
        self._turn = asyncio.Lock()

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
                    counts = await self._swap_in(agent_epoch, written, inputs, commit_ms)
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
        for part in _parts(segments, [segment.live_extents for segment in segments], EXTENTS_FOUND_MAX):
            extents += await self._metadata.find_segment_extents([segment.name for segment in segments[part]])
        return extents

    async def _swap_in(
        self, agent_epoch: int, written: WrittenSegment, inputs: frozenset[str], commit_ms: int
    ) -> tuple[int, int]:
        """How many extents were replaced, by how many."""
        counts = [len(replaced) for replaced in written.replaces]
        replaced = made = 0
        for part in _parts(written.extents, counts, SWAPPED_EXTENTS_MAX):
            todo = [part]
            while todo:
                now = todo.pop()
                swap = ExtentSwap(
                    written.sequence,
                    written.segment_key,
                    written.byte_length,
                    written.level,
                    commit_ms,
                    inputs,
                    written.extents[now],
                )
                try:
                    await self._swap(agent_epoch, swap)
                except Refused as error:
                    middle = (now.start + now.stop) // 2
                    if middle > now.start:  # one that is gone must not keep the others from it
                        todo += [slice(middle, now.stop), slice(now.start, middle)]
                        continue
                    self._metrics.swaps_refused.inc()
                    _log.info("compaction_swap_refused", segment=written.segment_key, reason=str(error))
                    continue
                replaced += sum(counts[now])
                made += now.stop - now.start
        self._metrics.extents_replaced.inc(replaced)
        self._metrics.extents_made.inc(made)
        if not made:
            await self._store.delete([written.segment_key])  # every call was refused: nothing refers to it
        return replaced, made

    async def _swap(self, agent_epoch: int, swap: ExtentSwap) -> None:
        for _ in range(SWAP_ATTEMPTS - 1):
            try:
                await self._metadata.swap_extents(agent_epoch, swap)
            except MetadataUnavailable:
                await self._clock.sleep(SWAP_PAUSE_SECONDS)
            else:
                return
        await self._metadata.swap_extents(agent_epoch, swap)


def _parts(items: Sequence[object], weights: Sequence[int], weight_max: int) -> Iterator[slice]:
    """Neighbours that weigh no more than ``weight_max`` together, but for single ones."""
    start = weight = 0
    for index in range(len(items)):
        if index > start and weight + weights[index] > weight_max:
            yield slice(start, index)
            start, weight = index, 0
        weight += weights[index]
    if items:
        yield slice(start, len(items))
