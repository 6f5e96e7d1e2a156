"""From a timestamp to an offset, for ListOffsets.

The metadata service knows the largest timestamp of each extent, batch headers that of each batch; the record is
found by walking the one batch that can hold it. Timestamps may be out of order and headers may overstate: the search
then goes on behind (Kafka: ``UnifiedLog.fetchOffsetByTimestamp``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.fetch.patch import Run
from agent.fetch.reader import RunReader
from ingest.batch_header import LOG_APPEND_TIME_BIT, BatchHeader, MalformedRecords
from ingest.compression import iterate_records
from metadata.client import MetadataClient
from metadata.model import Extent, ExtentsQuery, TopicId
from storage.store import ObjectNotFound

STEPS_MAX = 100
"""Extents read and questions asked per search. Only headers that overstate their timestamps need more than a few."""
_AHEAD_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class OffsetFound:
    offset: int
    timestamp_ms: int


class TimestampSearch:
    """Finds records by time. Reads through the fetch path's caches."""

    def __init__(self, metadata: MetadataClient, runs: RunReader) -> None:
        self._metadata = metadata
        self._runs = runs

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
            # Off the loop: it may have to decompress, and to look at tens of thousands of headers.
            return await asyncio.to_thread(search_run, entry.value, timestamp_ms)
        finally:
            entry.unpin()


def search_run(run: Run, timestamp_ms: int) -> OffsetFound | None:
    """The first record of ``run`` at or after ``timestamp_ms``: pure, CPU-bound.

    A batch whose inside makes no sense is answered by its header: its producer wrote it, its consumers will say so.
    """
    for index in range(run.batch_count):
        header = BatchHeader.parse(run.header(index))
        if header.max_timestamp_ms < timestamp_ms:
            continue
        if header.attributes & LOG_APPEND_TIME_BIT:
            return OffsetFound(header.base_offset, header.max_timestamp_ms)
        try:
            for record in iterate_records(run.batch(index)):
                if record.timestamp_ms >= timestamp_ms:
                    return OffsetFound(header.base_offset + record.offset_delta, record.timestamp_ms)
        except MalformedRecords:
            return OffsetFound(header.base_offset, header.max_timestamp_ms)
    return None
