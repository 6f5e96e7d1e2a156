"""Who is shown the newest segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.store import Chunk


class SegmentSink(Protocol):
    """The fetch path's side, so that tailing costs no GET. Callbacks return at once and do not raise."""

    def segment_uploaded(self, segment_key: str, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """The object is durable and its commit is about to be asked for: (byte position, chunk) of all its batches.

        The chunks never change; the sink may keep them, and accounts for them, from now on.
        """

    def segment_dropped(self, segment_key: str) -> None:
        """The segment announced before is not (or not known to be) committed: forget its bytes."""
