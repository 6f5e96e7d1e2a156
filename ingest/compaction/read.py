"""Reading the extents of a job: ranges of objects, some at a time, at the pace that compaction is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ingest.compaction.layout import ReadRange
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.throttle import Throttle
from storage.store import ObjectStore

READS_AT_ONCE = 4

ExtentBytes = dict[tuple[str, int], memoryview]
"""By segment key and byte position; too few bytes where an object ends early."""


class ExtentReader:
    def __init__(self, store: ObjectStore, throttle: Throttle, metrics: CompactionMetrics) -> None:
        self._store = store
        self._throttle = throttle
        self._metrics = metrics

    async def read(self, ranges: Sequence[ReadRange]) -> ExtentBytes:
        """The bytes of every extent of ``ranges``. :raises storage.store.StorageError:"""
        turns = asyncio.Semaphore(READS_AT_ONCE)
        found: ExtentBytes = {}

        async def read(wanted: ReadRange) -> None:
            async with turns:
                await self._throttle.spend(wanted.length)
                view = memoryview(await self._store.get(wanted.segment_key, wanted.start, wanted.length))
            self._metrics.reads.inc()
            self._metrics.bytes_read.inc(len(view))
            for extent in wanted.extents:
                begin = extent.byte_position - wanted.start
                found[wanted.segment_key, extent.byte_position] = view[begin : begin + extent.byte_length]

        for outcome in await asyncio.gather(*map(read, ranges), return_exceptions=True):
            if outcome is not None:
                raise outcome
        return found
