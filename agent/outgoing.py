"""A connection's way out: answers on their way to a client that may be slow, accounted against the budget."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from agent.wire.codec import EncodedResponse
from runtime.budget import Budget

DRAIN_RATE_MIN: Final = 4 * 1024
"""Bytes a second that a client has to take of its answers, over the time that it may stall."""
SHORT_RATE_MIN: Final = 32 * 1024
"""The same while memory is short (as of unfinished frames), if its answers hold :data:`SHORT_HELD_BYTES_MIN` ..."""
SHORT_SECONDS: Final = 3.0
"""... looked at so often."""
SHORT_HELD_BYTES_MIN: Final = 256 * 1024


class Outgoing:
    """Bytes handed to the transport and not yet taken by the kernel are held as "response"; those of a payload with a
    release are not: whoever lent them counts them until then.

    What the transport still holds is looked at in :meth:`settle`, not after every write: almost every answer leaves
    in the same turn of the loop. Call it soon after a large answer, when writing resumes, and every sweep.
    """

    __slots__ = (
        "_budget",
        "_held_bytes",
        "_lent_bytes",
        "_queued_bytes",
        "_releases",
        "_short_began",
        "_short_bytes",
        "_stall_began",
        "_stall_bytes",
        "_transport",
        "_watched",
    )

    def __init__(self, transport: asyncio.Transport, budget: Budget) -> None:
        self._transport = transport
        self._budget = budget
        self._queued_bytes = 0
        self._held_bytes = 0
        self._releases: deque[tuple[int, int, Callable[[], None]]] | None = None
        """Of payloads not released: where they end among all bytes queued, their length, how to release them."""
        self._lent_bytes = 0
        self._watched = False
        self._stall_began = self._short_began = 0.0
        self._stall_bytes = self._short_bytes = 0

    def write(self, frame: bytes) -> None:
        """Queue whole frames."""
        self._queued_bytes += len(frame)
        self._transport.write(frame)

    def write_payload(self, head: bytes, payload: EncodedResponse) -> None:
        """Queue one frame of ``head`` and a payload whose chunks are sent as they are."""
        byte_length = len(head) + payload.byte_length
        self._queued_bytes += byte_length
        if payload.release is None:
            self._hold(self._held_bytes + byte_length)
        else:
            if self._releases is None:
                self._releases = deque()
            self._releases.append((self._queued_bytes, payload.byte_length, payload.release))
            self._lent_bytes += payload.byte_length
            self._hold(self._held_bytes + len(head))
        self._transport.writelines([head, *payload.chunks])

    def settle(self) -> int:
        """Give back what has left; returns the bytes that are still waiting."""
        waiting = held = self._transport.get_write_buffer_size()
        releases = self._releases
        if releases:
            written = self._queued_bytes - waiting
            while releases and releases[0][0] <= written:
                _, byte_length, release = releases.popleft()
                self._lent_bytes -= byte_length
                release()
            if releases:
                end, byte_length, _ = releases[0]
                held -= self._lent_bytes - max(0, written - (end - byte_length))
        if held != self._held_bytes:
            self._hold(held)
        return waiting

    def too_slow(self, now: float, stall_seconds: float) -> str | None:
        """What is wrong with how the client takes its answers; called every sweep, which settles too."""
        waiting = self.settle()
        if waiting == 0:
            self._watched = False
            return None
        written = self._queued_bytes - waiting
        if not self._watched:
            self._watched = True
            self._stall_began = self._short_began = now
            self._stall_bytes = self._short_bytes = written
            return None
        seconds = now - self._stall_began
        if seconds > stall_seconds:
            taken, self._stall_bytes, self._stall_began = written - self._stall_bytes, written, now
            if taken < DRAIN_RATE_MIN * seconds:
                return f"{waiting} bytes of answers wait, {taken} were accepted in {seconds:.0f} s"
        seconds = now - self._short_began
        if seconds >= SHORT_SECONDS:
            taken, self._short_bytes, self._short_began = written - self._short_bytes, written, now
            held = max(waiting, self._lent_bytes)
            if self._budget.exhausted and held >= SHORT_HELD_BYTES_MIN and taken < SHORT_RATE_MIN * seconds:
                return f"memory is short, and of {held} bytes of answers {taken} were accepted in {seconds:.0f} s"
        return None

    def lost(self) -> None:
        """The connection is gone: nothing is held any more."""
        self._hold(0)
        self._lent_bytes = 0
        releases, self._releases = self._releases, None
        for _, _, release in releases or ():
            release()

    def _hold(self, byte_length: int) -> None:
        change = byte_length - self._held_bytes
        self._held_bytes = byte_length
        if change > 0:
            self._budget.take("response", change)
        elif change < 0:
            self._budget.give("response", -change)
