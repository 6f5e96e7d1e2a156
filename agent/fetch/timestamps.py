"""From a timestamp to an offset, for ListOffsets.

The metadata service knows the largest timestamp of each extent, batch headers that of each batch; the record is
found by walking the one batch that can hold it. Timestamps may be out of order and headers may overstate: the search
then goes on behind (Kafka: ``UnifiedLog.fetchOffsetByTimestamp``).

Whoever writes a batch decides how much work it is to walk. So searches take turns, walk a bounded number of records
between two turns of the event loop, and answer a batch that is too large for them by its header: what is asked for
is not before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from agent.fetch.patch import Run
from agent.fetch.reader import RunReader
from ingest.batch_header import LOG_APPEND_TIME_BIT, BatchHeader, MalformedRecords
from ingest.compression import Record, iterate_records
from metadata.client import MetadataClient
from metadata.model import Extent, ExtentsQuery, TopicId
from runtime.budget import Budget
from storage.store import ObjectNotFound

STEPS_MAX = 100
"""Extents read and questions asked per search. Only headers that overstate their timestamps need more than a few."""
_AHEAD_BYTES = 64 * 1024 * 1024
SEARCHED_RECORDS_MAX = 50_000
"""Records of a batch that is walked; Kafka's producers put a few thousand into their largest."""
SEARCHED_BYTES_MAX = 8 * 1024 * 1024
"""Bytes of a batch that is walked, decompressed."""
RECORDS_AT_ONCE = 250
"""Half a millisecond: threads that share one interpreter have to let go of it early, or the event loop waits."""
HEADERS_AT_ONCE = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OffsetFound:
    offset: int
    timestamp_ms: int


class TimestampSearch:
    """Finds records by time, one batch at a time. Reads through the fetch path's caches.

    What a batch is decompressed to counts as "request" bytes. Cancelling ends a search at its next pause.
    """

    def __init__(self, metadata: MetadataClient, runs: RunReader, budget: Budget) -> None:
        self._metadata = metadata
        self._runs = runs
        self._budget = budget
        self._turn = asyncio.Lock()

    async def first_at_or_after(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> OffsetFound | None:
        """The first record by offset whose timestamp is ``timestamp_ms`` or later; None when there is none.

        After :data:`STEPS_MAX` steps in vain it answers the first place the headers pointed at: a consumer that
        starts there misses nothing.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID.
        :raises metadata.model.MetadataUnavailable:
        :raises storage.store.StorageError:
        :raises agent.fetch.patch.CorruptSegment:
        """
        extent = await self._metadata.find_extent_by_timestamp(topic_id, partition, timestamp_ms)
        if extent is None:
            return None
        try:
            found = await self._look_in(extent, timestamp_ms)
        except ObjectNotFound:
            extent = await self._metadata.find_extent_by_timestamp(topic_id, partition, timestamp_ms)
            if extent is None:
                return None
            found = await self._look_in(extent, timestamp_ms)
        if found is not None:
            return found
        fallback = OffsetFound(extent.base_offset, extent.max_timestamp_ms)
        return await self._look_behind(extent, timestamp_ms, fallback)

    async def _look_behind(self, extent: Extent, timestamp_ms: int, fallback: OffsetFound) -> OffsetFound | None:
        offset = extent.last_offset + 1
        steps = 0
        while steps < STEPS_MAX:
            query = ExtentsQuery(extent.topic_id, extent.partition, offset, _AHEAD_BYTES)
            (answer,) = await self._metadata.find_extents([query])
            steps += 1
            if answer.refusal is not None or not answer.extents:
                return None
            for candidate in answer.extents:
                if candidate.max_timestamp_ms < timestamp_ms or candidate.base_offset < offset:
                    continue
                found = await self._look_in(candidate, timestamp_ms)
                steps += 1
                if found is not None:
                    return found
            offset = answer.extents[-1].last_offset + 1
        return fallback

    async def _look_in(self, extent: Extent, timestamp_ms: int) -> OffsetFound | None:
        entry = await self._runs.read(extent, hot=False)
        try:
            return await self._search_run(entry.value, timestamp_ms)
        finally:
            entry.unpin()

    async def _search_run(self, run: Run, timestamp_ms: int) -> OffsetFound | None:
        """The first record of ``run`` at or after ``timestamp_ms``."""
        for index in range(run.batch_count):
            if index % HEADERS_AT_ONCE == HEADERS_AT_ONCE - 1:
                await asyncio.sleep(0)
            header = BatchHeader.parse(run.header(index))
            if header.max_timestamp_ms < timestamp_ms:
                continue
            found = await self._search_batch(run, index, header, timestamp_ms)
            if found is not None:
                return found
        return None

    async def _search_batch(self, run: Run, index: int, header: BatchHeader, timestamp_ms: int) -> OffsetFound | None:
        """The first record of one batch at or after ``timestamp_ms``.

        A batch whose inside makes no sense is answered by its header: its producer wrote it, its consumers will say so.
        """
        by_header = OffsetFound(header.base_offset, header.max_timestamp_ms)
        if header.attributes & LOG_APPEND_TIME_BIT or header.record_count > SEARCHED_RECORDS_MAX:
            return by_header
        async with self._turn:
            self._budget.take("request", SEARCHED_BYTES_MAX)
            try:
                walk = _walk(iterate_records(run.batch(index), SEARCHED_BYTES_MAX, dense=False), timestamp_ms)
                while (found := await _in_thread(walk)) is None:
                    pass
            except MalformedRecords:
                return by_header
            finally:
                self._budget.give("request", SEARCHED_BYTES_MAX)
        if isinstance(found, Record):
            return OffsetFound(header.base_offset + found.offset_delta, found.timestamp_ms)
        return None


def _walk(records: Iterator[Record], timestamp_ms: int) -> Iterator[Record | bool | None]:
    """None after every :data:`RECORDS_AT_ONCE` records in vain; at the end the record looked for, or False."""
    for number, record in enumerate(records, 1):
        if record.timestamp_ms >= timestamp_ms:
            yield record
            return
        if number % RECORDS_AT_ONCE == 0:
            yield None
    yield False


async def _in_thread(walk: Iterator[T]) -> T:
    """The next of ``walk``, whose work is done off the loop. When cancelled, it returns when that has ended."""
    step = asyncio.get_running_loop().run_in_executor(None, next, walk)
    try:
        return await asyncio.shield(step)
    finally:
        await asyncio.wait([step])
