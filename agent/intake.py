"""A connection's way in: bytes off the socket into blocks of whole frames, as memory and time allow.

Reading stops while the connection asks for it and while the agent is short of memory. A frame that has begun holds
memory reserved for it, so that all frames that have begun can be completed; announcing a very large one reserves only a
part of it ahead of its bytes, so that announcing costs us nothing. Frames that do not fit the scratch buffer share
:func:`large_frame_budget`, so that they never stop those who send small ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from agent.wire.frames import SCRATCH_BYTES, Block, FrameSplitter, Scratch
from runtime.budget import Budget

RESERVED_BYTES: Final = 4 * 1024 * 1024
"""Memory taken for a frame ahead of its bytes. A frame up to this size, once begun, never waits for memory again."""
LARGE_FRAMES_SHARE: Final = 0.5
"""Of the budget, for unfinished frames larger than the scratch buffer together, and so for any one frame."""
STALLED_SECONDS: Final = 2.0
"""While memory is short, how long a client may be slow with the frame it holds memory for before it is closed."""
SHORT_RATE_MIN: Final = 32 * 1024
"""While memory is short, bytes a second below which a client is slow."""

FRAME_TIMEOUT: Final = "frame_timeout"
MEMORY_PRESSURE: Final = "memory_pressure"


@dataclass(frozen=True, slots=True)
class Overdue:
    """A client is to be closed: ``reason`` is one of this module's constants."""

    reason: str
    detail: str


def large_frame_budget(budget: Budget) -> Budget:
    """The part of ``budget`` that a process's large unfinished frames may take. Its limit is that of one frame too."""
    return Budget(int(budget.limit_bytes * LARGE_FRAMES_SHARE))


class Intake:
    """Strictly alternate :meth:`buffer` and :meth:`received`, as a transport does. One event loop.

    Times are monotonic seconds as of the server's last sweep.
    """

    __slots__ = (
        "_budget",
        "_frame_began",
        "_held_back",
        "_large_frames",
        "_pace_at",
        "_pace_bytes",
        "_paused",
        "_reserved_bytes",
        "_splitter",
        "_transport",
        "_waits_for_memory",
        "active_at",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        budget: Budget,
        large_frames: Budget,
        scratch: Scratch,
        frame_bytes_max: int,
        now: float,
    ) -> None:
        self._transport = transport
        self._budget = budget
        self._large_frames = large_frames
        self._splitter = FrameSplitter(scratch, min(frame_bytes_max, large_frames.limit_bytes))
        self._reserved_bytes = 0
        self._waits_for_memory = False
        self._held_back = False
        self._paused = False
        self._frame_began = self._pace_at = now
        self._pace_bytes = 0
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
            reserved, self._reserved_bytes = self._reserved_bytes, 0
            self._budget.take("request", block.byte_length - reserved)
            if reserved and block.byte_length > SCRATCH_BYTES:
                self._large_frames.give("request", reserved)
        if self._splitter.mid_frame:
            if self._reserved_bytes:
                self._reserve_ahead()
            else:
                self._frame_began = self._pace_at = now
                self._pace_bytes = 0
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
        self._wait_for(self._budget)

    def lost(self) -> None:
        """The connection is gone: what was reserved for its unfinished frame is given back."""
        self._budget.forget(self)
        self._large_frames.forget(self)
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        if self._splitter.frame_bytes > SCRATCH_BYTES:
            self._large_frames.give("request", reserved)
        self._budget.give("request", reserved)

    def overdue(self, now: float, frame_seconds: float) -> Overdue | None:
        """Whether an unfinished frame has to be given up. Time during which we did not read is not the client's."""
        if not self._splitter.mid_frame:
            return None
        if self._paused:
            # Commits take their time, and this frame with them: not forever.
            late = self._waits_for_memory and self._reserved_bytes and now - self._frame_began > frame_seconds
            return self.gives_way(MEMORY_PRESSURE) if late else None
        if now - self._frame_began > frame_seconds:
            return self.gives_way(FRAME_TIMEOUT)
        return self.gives_way(MEMORY_PRESSURE) if self._is_slow(now) else None

    def large_frame_bytes(self, now: float) -> int:
        """Bytes a large unfinished frame has held for longer than :data:`STALLED_SECONDS`, whoever is slow."""
        if self._splitter.frame_bytes <= SCRATCH_BYTES or now - self._frame_began < STALLED_SECONDS:
            return 0
        return self._reserved_bytes

    def gives_way(self, reason: str = MEMORY_PRESSURE) -> Overdue:
        """The unfinished frame is to be given up."""
        return Overdue(reason, f"{self._splitter.received_bytes} of {self._splitter.frame_bytes} bytes received")

    def _is_slow(self, now: float) -> bool:
        seconds = now - self._pace_at
        if seconds < STALLED_SECONDS:
            return False
        received = self._splitter.received_bytes
        slow = received - self._pace_bytes < SHORT_RATE_MIN * seconds
        self._pace_at, self._pace_bytes = now, received
        return slow and self._short_for(self._splitter.frame_bytes) is not None

    def _short_for(self, frame_bytes: int) -> Budget | None:
        """The budget that has no room for more of a frame of this size."""
        if self._budget.exhausted:
            return self._budget
        return self._large_frames if frame_bytes > SCRATCH_BYTES and self._large_frames.exhausted else None

    def _begin_frame(self) -> None:
        wanted = self._splitter.wanted_bytes
        if self._reserve(wanted, min(wanted, RESERVED_BYTES)):
            self._splitter.begin_frame()

    def _reserve_ahead(self) -> None:
        splitter = self._splitter
        reserved, frame_bytes = self._reserved_bytes, splitter.frame_bytes
        if reserved == frame_bytes or reserved - splitter.received_bytes > RESERVED_BYTES // 2:
            return
        self._reserve(frame_bytes, min(frame_bytes, splitter.received_bytes + RESERVED_BYTES) - reserved)

    def _reserve(self, frame_bytes: int, count: int) -> bool:
        """Take so much more for the frame, or wait until that may be tried again."""
        short = self._short_for(frame_bytes)
        if short is not None:
            self._wait_for(short)
            return False
        self._reserved_bytes += count
        self._budget.take("request", count)
        if frame_bytes > SCRATCH_BYTES:
            self._large_frames.take("request", count)
        return True

    def _wait_for(self, budget: Budget) -> None:
        self._waits_for_memory = True
        budget.when_available(self, self._memory_available)
        self._update(self.active_at)

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
            self._frame_began = self._pace_at = self.active_at = now
            self._pace_bytes = self._splitter.received_bytes
            self._transport.resume_reading()
