"""Putting a compacted segment in the place of what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.write import WrittenSegment
from metadata.client import MetadataClient
from metadata.compaction import SWAPPED_EXTENTS_MAX, ExtentSwap
from metadata.model import MetadataUnavailable, Refused
from runtime.clock import Clock
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.compaction")

SWAP_ATTEMPTS = 5
SWAP_PAUSE_SECONDS = 2.0
"""Before a swap is asked for again that nobody answered: within the job's lease, so that its object finds its place."""


class Swapper:
    """An object whose swap has an unknown outcome is left alone: the orphan sweep looks at it when this agent's epoch
    has ended. One that was refused goes at once."""

    def __init__(self, store: ObjectStore, metadata: MetadataClient, clock: Clock, metrics: CompactionMetrics) -> None:
        self._store = store
        self._metadata = metadata
        self._clock = clock
        self._metrics = metrics

    async def swap_in(
        self, agent_epoch: int, written: WrittenSegment, inputs: frozenset[str], commit_ms: int, in_order: bool = False
    ) -> tuple[int, int]:
        """How many extents were replaced, by how many. Those that are not there any more as they were read are not.

        ``in_order``: nothing is swapped behind one that was refused.

        :raises metadata.model.Refused: only ``in_order``.
        :raises metadata.model.Fenced: :raises metadata.model.MetadataUnavailable: :raises storage.store.StorageError:
        """
        counts = [len(replaced) for replaced in written.replaces]
        replaced = made = 0
        for part in in_parts(written.extents, counts, SWAPPED_EXTENTS_MAX):
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
                    if in_order:
                        if not made:
                            await self._store.delete([written.segment_key])
                        raise
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


def in_parts(items: Sequence[object], weights: Sequence[int], weight_max: int) -> Iterator[slice]:
    """Neighbours that weigh no more than ``weight_max`` together, but for single ones."""
    start = weight = 0
    for index in range(len(items)):
        if index > start and weight + weights[index] > weight_max:
            yield slice(start, index)
            start, weight = index, 0
        weight += weights[index]
    if items:
        yield slice(start, len(items))
