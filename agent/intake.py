"""A connection's way in: bytes off the socket into blocks of whole frames, as memory and time allow.

Reading stops while the connection asks for it and while the agent is short of memory. A frame that has begun holds
memory reserved for it, so that all frames that have begun can be completed; announcing a very large one reserves only a
part of it ahead of its bytes, so that announcing costs us nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from agent.wire.frames import Block, FrameSplitter, Scratch
from runtime.budget import Budget

RESERVED_BYTES: Final = 4 * 1024 * 1024
"""Memory taken for a frame ahead of its bytes. A frame up to this size, once begun, never waits for memory again."""
STALLED_SECONDS: Final = 2.0
"""While memory is short, a client that sends nothing more of the frame it holds memory for is closed after this."""

FRAME_TIMEOUT: Final = "frame_timeout"
MEMORY_PRESSURE: Final = "memory_pressure"


@dataclass(frozen=True, slots=True)
class Overdue:
    """A client is to be closed: ``reason`` is one of this module's constants."""

    reason: str
    detail: str


class Intake:
    """Strictly alternate :meth:`buffer` and :meth:`received`, as a transport does. One event loop.

    Times are monotonic seconds as of the server's last sweep.
    """

    __slots__ = (
        "_budget",
        "_frame_began",
        "_held_back",
        "_paused",
        "_reserved_bytes",
        "_splitter",
        "_transport",
        "_waits_for_memory",
        "active_at",
    )

    def __init__(
        self, transport: asyncio.Transport, budget: Budget, scratch: Scratch, frame_bytes_max: int, now: float
    ) -> None:
        self._transport = transport
        self._budget = budget
        self._splitter = FrameSplitter(scratch, frame_bytes_max)
        self._reserved_bytes = 0
        self._waits_for_memory = False
        self._held_back = False
        self._paused = False
        self._frame_began = now
        self.active_at = now
        """When the connection last received something or was last let read."""

    @property
    def failure(self) -> str | None:
        """Why the stream is lost, once it is."""
        return self._splitter.failure

    @property
    def mid_frame(self) -> bool:
        return self._splitter.mid_frame

    def buffer(self) -> memoryview:
        """Where the transport reads to next; little room while memory is short, and never beyond what is reserved."""
        splitter = self._splitter
        buffer = splitter.read_buffer(self._budget.exhausted)
        if self._reserved_bytes < splitter.frame_bytes:
            return buffer[: self._reserved_bytes - splitter.received_bytes]
        return buffer

    def received(self, count: int, now: float) -> Block | None:
        """The frames that ``count`` more bytes completed, which the caller owes the budget's "request" bytes for.

        See :attr:`failure` too.
        """
        self.active_at = now
        block = self._splitter.received(count)
        if block is not None:
            self._budget.take("request", block.byte_length - self._reserved_bytes)
            self._reserved_bytes = 0
        if self._splitter.mid_frame:
            if self._reserved_bytes:
                self._reserve_ahead()
            else:
                self._frame_began = now
                if self._splitter.wanted_bytes:
                    self._begin_frame()
        return block

    def hold_back(self, held_back: bool, now: float) -> None:
        """Read (or do not) as far as the connection is concerned."""
        if held_back != self._held_back:
            self._held_back = held_back
            self._update(now)

    def wait_for_memory(self) -> None:
        """Read nothing until the budget has room again."""
        self._waits_for_memory = True
        self._budget.when_available(self, self._memory_available)
        self._update(self.active_at)

    def lost(self) -> None:
        """The connection is gone: what was reserved for its unfinished frame is given back."""
        self._budget.forget(self)
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        self._budget.give("request", reserved)

    def overdue(self, now: float, frame_seconds: float) -> Overdue | None:
        """Whether an unfinished frame has to be given up. Time during which we did not read is not the client's."""
        splitter = self._splitter
        if not splitter.mid_frame:
            return None
        reason = None
        if not self._paused:
            if now - self._frame_began > frame_seconds:
                reason = FRAME_TIMEOUT
            elif self._budget.exhausted and now - self.active_at > STALLED_SECONDS:
                reason = MEMORY_PRESSURE
        elif self._waits_for_memory and self._reserved_bytes and now - self._frame_began > frame_seconds:
            reason = MEMORY_PRESSURE  # very large frames that wait for each other: somebody has to go
        if reason is None:
            return None
        return Overdue(reason, f"{splitter.received_bytes} of {splitter.frame_bytes} bytes received")

    def _begin_frame(self) -> None:
        if self._budget.exhausted:
            self.wait_for_memory()
            return
        self._reserved_bytes = min(self._splitter.wanted_bytes, RESERVED_BYTES)
        self._budget.take("request", self._reserved_bytes)
        self._splitter.begin_frame()

    def _reserve_ahead(self) -> None:
        splitter = self._splitter
        reserved = self._reserved_bytes
        if reserved == splitter.frame_bytes or reserved - splitter.received_bytes > RESERVED_BYTES // 2:
            return
        if self._budget.exhausted:
            self.wait_for_memory()
            return
        self._reserved_bytes = min(splitter.frame_bytes, splitter.received_bytes + RESERVED_BYTES)
        self._budget.take("request", self._reserved_bytes - reserved)

    def _memory_available(self) -> None:
        self._waits_for_memory = False
        if self._splitter.wanted_bytes:
            self._begin_frame()
        elif self._reserved_bytes:
            self._reserve_ahead()
        self._update(self.active_at)

    def _update(self, now: float) -> None:
        pause = self._held_back or self._waits_for_memory
        if pause == self._paused or self._transport.is_closing():
            return
        self._paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._frame_began = self.active_at = now
            self._transport.resume_reading()
