"""A block of memory allocated and touched once, handed out in pieces.

On a virtual machine the first touch of fresh memory costs more than everything else a put in memory does
(measured: 1.2 GB/s into fresh pages, 12 GB/s into touched ones). Whoever wants to know how fast the rest is
pays that before the first put.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence

from storage.store import Chunk


class Arena:
    """First-fit allocation of ``capacity_bytes``; freed neighbours grow together again. One thread."""

    def __init__(self, capacity_bytes: int) -> None:
        populate = getattr(mmap, "MAP_POPULATE", 0)  # Linux only; elsewhere pages are touched as they are used
        self._memory = memoryview(mmap.mmap(-1, capacity_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | populate))
        # Free runs, in order of their start; no two touch each other.
        self._starts = [0]
        self._lengths = [capacity_bytes]

    def store(self, chunks: Sequence[Chunk], byte_length: int) -> tuple[int, memoryview] | None:
        """Copy ``chunks`` (``byte_length`` in all) in; returns where they are and a view, or None when nothing fits."""
        start = self._take(byte_length)
        if start is None:
            return None
        position = start
        for chunk in chunks:
            end = position + len(chunk)
            self._memory[position:end] = chunk
            position = end
        assert position == start + byte_length
        return start, self._memory[start:position]

    def free(self, start: int, byte_length: int) -> None:
        """Give back what :meth:`store` took; its view must not be used any more."""
        if byte_length == 0:
            return
        index = bisect_left(self._starts, start)
        end = start + byte_length
        if index < len(self._starts) and self._starts[index] == end:
            byte_length += self._lengths[index]
            del self._starts[index], self._lengths[index]
        if index > 0 and self._starts[index - 1] + self._lengths[index - 1] == start:
            self._lengths[index - 1] += byte_length
        else:
            self._starts.insert(index, start)
            self._lengths.insert(index, byte_length)

    def _take(self, byte_length: int) -> int | None:
        if byte_length == 0:
            return 0
        for index, length in enumerate(self._lengths):
            if length >= byte_length:
                start = self._starts[index]
                if length == byte_length:
                    del self._starts[index], self._lengths[index]
                else:
                    self._starts[index] = start + byte_length
                    self._lengths[index] = length - byte_length
                return start
        return None
