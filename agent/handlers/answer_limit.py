"""A bound on answers that may be far larger than their requests, and on how long the loop is busy with one."""

from __future__ import annotations

import asyncio
from typing import Final

ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
"""What was asked for beyond this is refused, each on its own. Room for the
configs, with documentation, of 500 topics."""
PAUSE_EVERY_BYTES: Final = 128 * 1024
ROW_BYTES: Final = 64
"""What a row takes at least: names, codes, and the objects it is made of until it is encoded."""


class AnswerLimit:
    """Counts (roughly) the bytes of one answer while it is built. The first thing asked for is always answered."""

    def __init__(self) -> None:
        self._byte_count = 0
        self._pause_at = PAUSE_EVERY_BYTES

    def reached(self) -> bool:
        """True when the rest has to be refused."""
        return self._byte_count >= ANSWER_BYTES_MAX

    def add(self, byte_count: int) -> bool:
        """Count one more row of ``byte_count``; True when it is time for :meth:`pause`."""
        self._byte_count += ROW_BYTES + byte_count
        return self._byte_count >= self._pause_at

    async def pause(self) -> None:
        """Let everybody else have a turn."""
        self._pause_at = self._byte_count + PAUSE_EVERY_BYTES
        await asyncio.sleep(0)
