"""Splitting a connection's bytes into request frames, without a socket and almost without memory while idle.

A loop's connections share one scratch buffer: the transport asks for a buffer and reports what it read in one go, so
between two reads nothing lives in it. Whatever frames a read completed are copied out in one piece (a
:class:`Block`); many small requests cost one copy together. A frame that is still incomplete gets a buffer of exactly
its size, into which the rest is received directly.

A frame is a big-endian int32 length and that many bytes. Memory is asked for by whoever drives the splitter: see
:attr:`FrameSplitter.wanted_bytes`.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

SCRATCH_BYTES: Final = 128 * 1024
"""Small requests in one read, at most; the kernel's socket buffer rarely holds more."""
PROBE_BYTES: Final = 2 * 1024
"""What a connection that sends large frames, or an agent short of memory, reads of the next frame: little to copy."""
REQUEST_BYTES_MIN: Final = 8
"""API key, version and correlation id."""
LAZY_BYTES_MIN: Final = 4 * 1024 * 1024
"""Frames from this size on are received into mapped memory, which costs nothing until bytes arrive. (Zeroed memory
for an announced 100 MiB would be real memory; for small frames the page faults of a fresh mapping cost more.)"""

_LENGTH: Final = struct.Struct(">i")
_LENGTH_BYTES: Final = 4

FrameBuffer = bytes | bytearray | mmap.mmap


class Block:
    """Received bytes that hold one or more whole frames, each with its length before it.

    ``pending`` requests are still to be taken out with :meth:`take`; ``open_requests`` may still refer to the bytes:
    the owner counts that down, and gives ``byte_length`` back to the budget at zero. ``view`` is all of ``buffer``,
    ``arrived_at`` (monotonic seconds) is the owner's.
    """

    __slots__ = ("_position", "arrived_at", "buffer", "byte_length", "open_requests", "pending", "view")

    def __init__(self, buffer: FrameBuffer, byte_length: int, request_count: int) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.byte_length = byte_length
        self.open_requests = self.pending = request_count
        self.arrived_at = 0.0
        self._position = 0

    def take(self) -> tuple[int, int]:
        """Where the next request lies in ``buffer``: (start, end), its length not included."""
        position = self._position
        start = position + _LENGTH_BYTES
        end: int = start + _LENGTH.unpack_from(self.buffer, position)[0]
        self._position = end
        self.pending -= 1
        return start, end


class Scratch:
    """The read buffer that all connections of one event loop share."""

    __slots__ = ("buffer", "view")

    def __init__(self, byte_length: int = SCRATCH_BYTES) -> None:
        assert byte_length > PROBE_BYTES
        self.buffer = bytearray(byte_length)
        self.view = memoryview(self.buffer)


class FrameSplitter:
    """One connection's place in its stream. Strictly alternate :meth:`read_buffer` and :meth:`received`.

    When ``wanted_bytes`` is not zero after :meth:`received`, a frame of that size has begun: call
    :meth:`begin_frame` before the next read, as soon as its memory may be taken. When ``failure`` says something, the
    peer announced a frame that cannot be, and nothing after it can be read.
    """

    __slots__ = (
        "_filled",
        "_frame",
        "_frame_bytes_max",
        "_head",
        "_large",
        "_scratch",
        "_view",
        "failure",
        "wanted_bytes",
    )

    def __init__(self, scratch: Scratch, frame_bytes_max: int) -> None:
        self._scratch = scratch
        self._frame_bytes_max = frame_bytes_max
        self._head = b""
        self._frame: bytearray | mmap.mmap | None = None
        self._view: memoryview | None = None
        self._filled = 0
        self._large = False
        self.failure: str | None = None
        self.wanted_bytes = 0

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._frame is not None or bool(self._head)

    @property
    def frame_bytes(self) -> int:
        """Size of the buffer that a frame is being received into, 0 when there is none."""
        return 0 if self._frame is None else len(self._frame)

    @property
    def received_bytes(self) -> int:
        """Bytes of the incomplete frame that are here."""
        return self._filled if self._frame is not None else len(self._head)

    def read_buffer(self, sparing: bool) -> memoryview:
        """Where the next bytes go. ``sparing``: memory is short, read little."""
        assert self.wanted_bytes == 0, "begin_frame comes before the next read"
        if self._view is not None:
            return self._view[self._filled :]
        head_bytes = len(self._head)
        if head_bytes:
            self._scratch.buffer[:head_bytes] = self._head
        if sparing or self._large:
            return self._scratch.view[head_bytes : head_bytes + PROBE_BYTES]
        return self._scratch.view[head_bytes:]

    def received(self, count: int) -> Block | None:
        """``count`` bytes were read into the buffer. Returns the frames that they completed."""
        if self._frame is None:
            return self._split(len(self._head) + count)
        self._filled += count
        frame = self._frame
        length = len(frame)
        if self._filled < length:
            return None
        assert self._filled == length
        self._large = length >= SCRATCH_BYTES
        self._frame = self._view = None
        return Block(frame, length, 1)

    def _split(self, available: int) -> Block | None:
        scratch = self._scratch.buffer
        position = request_count = 0
        self._head = b""
        while available - position >= _LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(scratch, position)
            if not REQUEST_BYTES_MIN <= length <= self._frame_bytes_max:
                self.failure = f"a frame of {length} bytes"
                available = position
                break
            end = position + _LENGTH_BYTES + length
            if end > available:
                self.wanted_bytes = _LENGTH_BYTES + length
                break
            request_count += 1
            position = end
        if position < available:
            self._head = bytes(self._scratch.view[position:available])
        if request_count == 0:
            return None
        self._large = False
        return Block(bytes(self._scratch.view[:position]), position, request_count)

    def begin_frame(self) -> None:
        """Make room for the frame of ``wanted_bytes`` (its length included) and go on receiving it."""
        length = self.wanted_bytes
        assert length > 0
        received = self._head
        self._frame = mmap.mmap(-1, length) if length >= LAZY_BYTES_MIN else bytearray(length)
        self._view = memoryview(self._frame)
        self._filled = len(received)
        self._view[: self._filled] = received
        self._head = b""
        self.wanted_bytes = 0
