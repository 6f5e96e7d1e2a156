"""A connection's way out: answers on their way to a client that may be slow, accounted against the budget."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from agent.wire.codec import EncodedResponse
from runtime.budget import Budget


class Outgoing:
    """Bytes handed to the transport and not yet taken by the kernel are held as "response".

    What the transport still holds is looked at in :meth:`settle`, not after every write: almost every answer leaves
    in the same turn of the loop. Call it soon after a large answer, when writing resumes, and every sweep.
    """

    __slots__ = ("_budget", "_held_bytes", "_queued_bytes", "_releases", "_transport")

    def __init__(self, transport: asyncio.Transport, budget: Budget) -> None:
        self._transport = transport
        self._budget = budget
        self._queued_bytes = 0
        self._held_bytes = 0
        self._releases: deque[tuple[int, Callable[[], None]]] | None = None

    def write(self, frame: bytes) -> None:
        """Queue whole frames."""
        self._queued_bytes += len(frame)
        self._transport.write(frame)

    def write_payload(self, head: bytes, payload: EncodedResponse) -> None:
        """Queue one frame of ``head`` and a payload whose chunks are sent as they are."""
        byte_length = len(head) + payload.byte_length
        self._queued_bytes += byte_length
        self._hold(self._held_bytes + byte_length)
        if payload.release is not None:
            if self._releases is None:
                self._releases = deque()
            self._releases.append((self._queued_bytes, payload.release))
        self._transport.writelines([head, *payload.chunks])

    def settle(self) -> int:
        """Give back what has left; returns the bytes that are still waiting."""
        waiting = self._transport.get_write_buffer_size()
        if waiting != self._held_bytes:
            self._hold(waiting)
        releases = self._releases
        if releases:
            written = self._queued_bytes - waiting
            while releases and releases[0][0] <= written:
                releases.popleft()[1]()
        return waiting

    @property
    def written_bytes(self) -> int:
        """Bytes the kernel took, over the connection's life: grows while the client accepts anything."""
        return self._queued_bytes - self._transport.get_write_buffer_size()

    def lost(self) -> None:
        """The connection is gone: nothing is held any more."""
        self._hold(0)
        releases, self._releases = self._releases, None
        for _, release in releases or ():
            release()

    def _hold(self, byte_length: int) -> None:
        change = byte_length - self._held_bytes
        self._held_bytes = byte_length
        if change > 0:
            self._budget.take("response", change)
        elif change < 0:
            self._budget.give("response", -change)
