"""What the fetch path keeps in memory, in two pools that cannot push each other out.

The *hot* pool serves the tail: whole segments straight from the writer, blocks of segments other agents wrote, and
the patched runs of both. The *cold* pool serves re-reads of old data: blocks and runs; it may fill what the hot pool
leaves free, until that needs it. Every byte is counted under
the budget's "cache"; whatever nobody uses right now can be evicted at any time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import cast

from agent.fetch.patch import Run
from agent.fetch.pool import Entry, Pool
from metadata.model import Extent
from runtime.budget import Budget
from runtime.settings import MemorySettings
from storage.store import Chunk

JOIN_BELOW_BYTES = 4 * 1024
"""Segments whose chunks are smaller on average are joined: tens of thousands of views cost more than their bytes."""
_CHUNK_OVERHEAD_BYTES = 250  # of Python objects, per chunk that is kept as it came


class WriterSegment:
    """The batches of one segment as its writer had them: chunks by byte position, at least one."""

    __slots__ = ("_chunks", "_starts", "held_bytes")

    def __init__(self, chunks: Sequence[tuple[int, Chunk]]) -> None:
        byte_length = sum([len(chunk) for _, chunk in chunks])
        begin, last = chunks[0][0], chunks[-1]
        contiguous = last[0] + len(last[1]) - begin == byte_length
        if contiguous and byte_length < JOIN_BELOW_BYTES * len(chunks):
            views = [memoryview(b"".join([chunk for _, chunk in chunks]))]
            starts = [begin]
        else:
            views = [memoryview(chunk) for _, chunk in chunks]
            starts = [position for position, _ in chunks]
        self._starts = starts
        self._chunks = views
        self.held_bytes = byte_length + _CHUNK_OVERHEAD_BYTES * len(views)

    def read(self, position: int, length: int) -> list[memoryview] | None:
        """Views of ``length`` bytes from ``position`` on; None when not all of them are here."""
        index = bisect_right(self._starts, position) - 1
        if index < 0:
            return None
        views: list[memoryview] = []
        while length > 0:
            if index == len(self._starts):
                return None
            begin = position - self._starts[index]
            chunk = self._chunks[index]
            if not 0 <= begin < len(chunk):
                return None
            view = chunk[begin : begin + length]
            views.append(view)
            position += len(view)
            length -= len(view)
            index += 1
        return views


class FetchCache:
    """Writer segments, blocks and runs by where they lie in the object store. One event loop."""

    def __init__(self, settings: MemorySettings, budget: Budget) -> None:
        capacity_bytes = int(settings.budget_bytes * settings.cache_share)
        cold_bytes = int(capacity_bytes * settings.cold_share)
        self.hot = Pool(capacity_bytes - cold_bytes, budget)
        self.cold = Pool(cold_bytes, budget, lender=self.hot)

    def segment_uploaded(self, segment_key: str, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """Keep what the writer has in memory anyway, so that tailing costs no GET."""
        key = ("segment", segment_key)
        if not chunks or self.hot.contains(key):
            return
        segment = WriterSegment(chunks)
        self.hot.insert(key, segment, segment.held_bytes, pins=0)

    def segment_dropped(self, segment_key: str) -> None:
        self.hot.drop(("segment", segment_key))

    def segment(self, segment_key: str) -> Entry[WriterSegment] | None:
        """Not pinned."""
        return cast("Entry[WriterSegment] | None", self.hot.get(("segment", segment_key)))

    def run(self, extent: Extent) -> Entry[Run] | None:
        """The patched run of ``extent``; not pinned."""
        key = ("run", extent.segment_key, extent.byte_position)
        return cast("Entry[Run] | None", self.hot.get(key) or self.cold.get(key))

    def keep_run(self, extent: Extent, run: Run, hot: bool, pins: int, sources: Sequence[Entry[object]]) -> Entry[Run]:
        """``sources`` hold the bytes of a borrowed run; they live as long as it does."""
        key = ("run", extent.segment_key, extent.byte_position)
        pool = self.hot if hot else self.cold
        return pool.insert(key, run, run.held_bytes, pins, sources if run.borrowed else ())

    def consumed(self, extent: Extent) -> None:
        """A consumer has had all of the extent's run. One that catches up does not come back: if the run is old data,
        its copy goes at once (the blocks it was made from stay for others), so that its memory is used again."""
        self.cold.drop(("run", extent.segment_key, extent.byte_position))

    def block(self, segment_key: str, size: int, index: int) -> Entry[bytes] | None:
        """The ``index``-th aligned block of ``size`` bytes of an object; not pinned."""
        key = ("block", segment_key, size, index)
        return cast("Entry[bytes] | None", self.hot.get(key) or self.cold.get(key))

    def keep_block(self, segment_key: str, size: int, index: int, data: bytes, hot: bool, pins: int) -> Entry[bytes]:
        pool = self.hot if hot else self.cold
        return pool.insert(("block", segment_key, size, index), data, len(data), pins)

    def keep_range(self, segment_key: str, start: int, data: bytes, hot: bool) -> Entry[bytes]:
        """What a peer gave, pinned once. It is for the run that is made of it: found by nobody else, gone with it."""
        pool = self.hot if hot else self.cold
        key = ("range", segment_key, start, len(data))
        entry = pool.insert(key, data, len(data), pins=1)
        pool.drop(key)
        return entry
