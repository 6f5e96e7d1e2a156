"""Which extents a partition has, as far as this agent has heard: so that a tailing fetch asks nobody.

Two sources: the *tail*, every newly committed extent, as the metadata service announces it; and the *window*, what the
service answered last for a reader further back. Both are bounded. Nothing here is ever a reason to tell a client
that an offset is out of range: this view may be behind, and whoever misses something here asks the service.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from metadata.model import Extent, ExtentsFound, LogStart, TopicId

TAIL_EXTENTS_MAX = 65_536
"""Announced extents remembered, over all partitions (about 25 MB)."""
WINDOW_EXTENTS_MAX = 65_536
"""Extents of windows remembered, over all partitions."""
UNKNOWN_OFFSET = -1


def _base_offset(extent: Extent) -> int:
    return extent.base_offset


@dataclass(frozen=True, slots=True)
class ExtentRange:
    """Extents from the one that holds the offset asked for on. ``hot``: how many of the last ones lie in the tail.

    ``more``: the partition goes on behind them.
    """

    extents: list[Extent]
    hot: int
    more: bool


class PartitionExtents:
    """One partition. ``log_start_offset`` is -1 until the service has told."""

    __slots__ = ("high_watermark", "log_start_offset", "next_offset", "tail", "tail_marks", "window")

    def __init__(self) -> None:
        self.log_start_offset = UNKNOWN_OFFSET
        self.high_watermark = UNKNOWN_OFFSET
        self.tail: list[Extent] = []
        self.tail_marks: list[int] = []
        self.window: list[Extent] = []
        self.next_offset = UNKNOWN_OFFSET
        """Where the last catch-up fetch ended: one that begins here reads sequentially."""


class ExtentIndex:
    """Partitions by (topic id, partition). One event loop."""

    def __init__(self, hot_bytes: int) -> None:
        """The newest ``hot_bytes`` of announced extents are the tail that deserves the hot cache."""
        self._hot_bytes = hot_bytes
        self._announced_bytes = 0
        self._partitions: dict[tuple[TopicId, int], PartitionExtents] = {}
        self._arrivals: deque[PartitionExtents] = deque()
        self._windows: OrderedDict[tuple[TopicId, int], PartitionExtents] = OrderedDict()
        self._window_extents = 0
        self.generation = 0
        """Changes whenever something was forgotten: an answer asked for before then must not be learned."""

    def get(self, topic_id: TopicId, partition: int) -> PartitionExtents | None:
        return self._partitions.get((topic_id, partition))

    def announce(self, extents: Iterable[Extent]) -> None:
        """New extents, in commit order."""
        partitions = self._partitions
        for extent in extents:
            if extent.level > 0:
                self._forget_until(extent)
                continue
            key = (extent.topic_id, extent.partition)
            state = partitions.get(key)
            if state is None:
                state = partitions[key] = PartitionExtents()
            elif state.tail and state.tail[-1].last_offset + 1 != extent.base_offset:
                state.tail, state.tail_marks = [], []  # a gap: the older ones are asked for
            self._announced_bytes += extent.byte_length
            state.tail.append(extent)
            state.tail_marks.append(self._announced_bytes)
            if extent.last_offset >= state.high_watermark:
                state.high_watermark = extent.last_offset + 1
            self._arrivals.append(state)
        while len(self._arrivals) > TAIL_EXTENTS_MAX:
            state = self._arrivals.popleft()
            if state.tail:
                del state.tail[0], state.tail_marks[0]

    def learn(self, topic_id: TopicId, partition: int, found: ExtentsFound, generation: int) -> None:
        """What the service answered to a query made in ``generation``."""
        if generation != self.generation:
            return
        key = (topic_id, partition)
        state = self._partitions.get(key)
        if state is None:
            state = self._partitions[key] = PartitionExtents()
        state.log_start_offset = found.log_start_offset
        state.high_watermark = max(state.high_watermark, found.high_watermark)
        if not found.extents:
            return
        self._forget_window(key)
        state.window = list(found.extents)
        self._windows[key] = state
        self._window_extents += len(state.window)
        while self._window_extents > WINDOW_EXTENTS_MAX and len(self._windows) > 1:
            self._forget_window(next(iter(self._windows)))

    def locate(self, state: PartitionExtents, offset: int, byte_max: int) -> ExtentRange | None:
        """Extents from ``offset`` on that sum to ``byte_max`` or reach the high watermark; None: ask the service."""
        extents: list[Extent] = []
        byte_length = 0
        tail, window = state.tail, state.window
        if tail and offset >= tail[0].base_offset:
            index = bisect_right(tail, offset, key=_base_offset) - 1
        elif window and window[0].base_offset <= offset <= window[-1].last_offset:
            first = bisect_right(window, offset, key=_base_offset) - 1
            for extent in window[first:]:
                extents.append(extent)
                byte_length += extent.byte_length
                if byte_length >= byte_max:
                    return ExtentRange(extents, 0, extent.last_offset + 1 < state.high_watermark)
            end = extents[-1].last_offset + 1
            if end >= state.high_watermark:
                return ExtentRange(extents, 0, more=False)
            if not tail or end < tail[0].base_offset:
                return None
            index = bisect_right(tail, end, key=_base_offset) - 1
        else:
            return None
        begin = index
        while index < len(tail):
            extent = tail[index]
            index += 1
            extents.append(extent)
            byte_length += extent.byte_length
            if byte_length >= byte_max:
                break
        hot_after = self._announced_bytes - self._hot_bytes
        hot = index - max(begin, bisect_right(state.tail_marks, hot_after, begin, index))
        end = extents[-1].last_offset + 1
        if index == len(tail) and byte_length < byte_max and end < state.high_watermark:
            return None  # the service knows of extents whose announcement is still under way
        return ExtentRange(extents, hot, end < state.high_watermark)

    def move_log_start(self, moved: LogStart) -> None:
        """Records below it are gone: whoever asks for them is passed on to the service, which says so."""
        state = self._partitions.get((moved.topic_id, moved.partition))
        if state is not None and state.log_start_offset != UNKNOWN_OFFSET:
            state.log_start_offset = max(state.log_start_offset, moved.log_start_offset)

    def forget_extents(self, topic_id: TopicId, partition: int) -> None:
        """What is known of the partition's extents turned out to be out of date."""
        state = self._partitions.get((topic_id, partition))
        if state is not None:
            state.tail, state.tail_marks = [], []
            self._forget_window((topic_id, partition))

    def _forget_until(self, extent: Extent) -> None:
        """It took the place of others, some of whose records are gone: who wants them asks the service."""
        key = (extent.topic_id, extent.partition)
        self.generation += 1
        self._forget_window(key)
        state = self._partitions.get(key)
        if state is not None:
            count = bisect_right(state.tail, extent.last_offset, key=_base_offset)
            del state.tail[:count], state.tail_marks[:count]

    def forget_partition(self, key: tuple[TopicId, int]) -> None:
        """Announcements of the partition are missed from now on, or were until now."""
        self.generation += 1
        self._forget_window(key)
        state = self._partitions.pop(key, None)
        if state is not None:
            state.tail, state.tail_marks = [], []

    def forget_topics(self, topic_ids: Iterable[TopicId]) -> None:
        gone = set(topic_ids)
        self.generation += 1
        for key in [key for key in self._partitions if key[0] in gone]:
            self._forget_window(key)
            state = self._partitions.pop(key)
            state.tail, state.tail_marks = [], []

    def clear(self) -> None:
        """Events were missed: everything is asked for again."""
        self.generation += 1
        self._partitions.clear()
        self._arrivals.clear()
        self._windows.clear()
        self._window_extents = 0

    def _forget_window(self, key: tuple[TopicId, int]) -> None:
        state = self._windows.pop(key, None)
        if state is not None:
            self._window_extents -= len(state.window)
            state.window = []
