"""Loading the runs that an answer was planned to be made of."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agent.failure_log import FailureLog
from agent.fetch.locate import Locator, PartitionRead
from agent.fetch.metrics import FetchMetrics
from agent.fetch.patch import CorruptSegment, Run
from agent.fetch.pool import Entry
from agent.fetch.reader import RunReader
from metadata.model import Extent, MetadataUnavailable
from runtime.budget import Budget
from storage.store import ObjectNotFound, StorageError


class Loader:
    """Fills in ``PartitionRead.runs`` (or ``problem``) for whole answers.

    Answers that read old data take turns (``cold_loads_max`` at a time), so that however many consumers replay,
    only so many runs are being built and held beyond what the caches may keep.
    """

    def __init__(
        self,
        runs: RunReader,
        locator: Locator,
        budget: Budget,
        metrics: FetchMetrics,
        cold_loads_max: int,
        failures: FailureLog,
    ) -> None:
        self._runs = runs
        self._locator = locator
        self._budget = budget
        self._metrics = metrics
        self._failures = failures
        self._cold_loads = asyncio.Semaphore(cold_loads_max)

    async def load(self, planned: Sequence[tuple[PartitionRead, int]], pins: list[Entry[Any]]) -> bool:
        """Load the first ``count`` extents of each read; True when not all of them were in memory.

        Every entry loaded is pinned once and appended to ``pins``, even when this is cancelled.
        """
        incomplete: list[tuple[PartitionRead, int]] = []
        cold = False
        for read, count in planned:
            missing = self._load_now(read, count, pins)
            if missing:
                incomplete.append((read, count))
                cold = cold or not all(map(read.is_hot, range(len(read.runs), count)))
        if not incomplete:
            return False
        if not cold:
            await asyncio.gather(*(self._load(read, count, pins) for read, count in incomplete))
            return True
        async with self._cold_loads:
            if self._budget.exhausted:
                # No memory to spare: what there is already, else the first extent alone.
                del incomplete[0 if pins else 1 :]
                incomplete = [(read, len(read.runs) + 1) for read, _ in incomplete]
            await asyncio.gather(*(self._load(read, count, pins) for read, count in incomplete))
        return True

    def read_ahead(self, read: PartitionRead) -> None:
        """Start reading what a catching-up consumer will ask for next; bounded, and never waited for."""
        for extent in self._locator.after(read):
            if not self._runs.read_ahead(extent):
                return

    def _load_now(self, read: PartitionRead, count: int, pins: list[Entry[Any]]) -> bool:
        """Load extents that need no waiting, up to the first that does; True when there is one."""
        try:
            for extent in read.extents[:count]:
                entry = self._runs.read_now(extent)
                if entry is None:
                    return True
                pins.append(entry)
                read.runs.append(entry)
        except CorruptSegment as error:
            self._failed(read, error)
        return False

    async def _load(self, read: PartitionRead, count: int, pins: list[Entry[Any]]) -> None:
        try:
            try:
                await self._load_rest(read, count, pins)
            except ObjectNotFound as error:
                self._metrics.missing_objects += 1
                self._failures.report("extent_missing", object=str(error), resolved="again")
                await self._load_again(read, count, pins)
        except Exception as error:  # whatever it is, the other partitions of the answer are none the worse
            self._failed(read, error)

    async def _load_again(self, read: PartitionRead, count: int, pins: list[Entry[Any]]) -> None:
        """The extents we knew are out of date (compacted, expired): resolve them once more."""
        found = await self._locator.again(read.fetch)
        if isinstance(found, MetadataUnavailable):
            raise found
        read.runs.clear()
        read.extents = list(found.extents)
        read.hot = 0
        if found.refusal is not None:
            read.problem = found.refusal
            return
        # More may have been committed since the answer was begun: no record is given out beyond its high watermark.
        read.answer.high_watermark, read.answer.log_start_offset = found.high_watermark, found.log_start_offset
        await self._load_rest(read, count, pins)

    async def _load_rest(self, read: PartitionRead, count: int, pins: list[Entry[Any]]) -> None:
        begin = len(read.runs)
        entries: dict[int, Entry[Run]] = {}

        async def load(index: int, extent: Extent) -> None:
            entry = await self._runs.read(extent, read.is_hot(index))
            pins.append(entry)
            entries[index] = entry

        indexes = range(begin, min(count, len(read.extents)))
        outcomes = await asyncio.gather(
            *(load(index, read.extents[index]) for index in indexes), return_exceptions=True
        )
        for index, outcome in zip(indexes, outcomes, strict=True):
            if outcome is not None:
                if index > 0 and not isinstance(outcome, ObjectNotFound | asyncio.CancelledError):
                    return  # what lies before it can be sent; the next fetch begins here and tells
                raise outcome
            read.runs.append(entries[index])

    def _failed(self, read: PartitionRead, error: Exception) -> None:
        where: dict[str, Any] = {
            "topic_id": read.fetch.topic_id.hex(),
            "partition": read.fetch.partition,
            "reason": str(error),
        }
        if isinstance(error, CorruptSegment):
            self._metrics.corrupt_extents += 1
            self._failures.report("extent_corrupt", error, **where)
        elif isinstance(error, StorageError | MetadataUnavailable):
            self._failures.report("fetch_failed", **where)
        else:
            self._failures.report("fetch_broken", error, **where)
        if not read.runs:
            read.problem = error
