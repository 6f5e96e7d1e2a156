"""What has become durable and is not in the bucket yet: bounded, in order, and honest about what it lost. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from metadata.journal.format import encode_write
from metadata.store.port import Change

FIRST_NUMBER = 1


@dataclass(slots=True)
class Gathered:
    """Writes of one entry."""

    number: int
    first_ms: int
    last_ms: int
    writes: list[bytes] = field(default_factory=list)
    byte_length: int = 0


class JournalBuffer:
    """Numbers entries from 1 on. A number is left out wherever something is missing between two entries.

    ``entry_bytes`` seals an entry; more than ``bytes_max`` altogether is dropped.
    """

    def __init__(self, entry_bytes: int, bytes_max: int) -> None:
        self._entry_bytes = entry_bytes
        self._bytes_max = bytes_max
        self._sealed: deque[Gathered] = deque()
        self._open: Gathered | None = None
        self._next = FIRST_NUMBER
        self.byte_length = 0
        self.gaps = 0

    def add(self, changes: Sequence[Change], now_ms: int) -> bool:
        """A write has become durable. False: the buffer was full; all it held is gone, this write with it."""
        encoded = encode_write(changes)
        if self.byte_length + len(encoded) > self._bytes_max:
            self._sealed.clear()
            self._open = None
            self.byte_length = 0
            self.skip()
            return False
        if self._open is None:
            self._open = Gathered(self._next, now_ms, now_ms)
            self._next += 1
        self._open.writes.append(encoded)
        self._open.last_ms = now_ms
        self._open.byte_length += len(encoded)
        self.byte_length += len(encoded)
        if self._open.byte_length >= self._entry_bytes:
            self._seal()
        return True

    def skip(self) -> None:
        """Something became durable, or may have, that is not in the buffer: a gap."""
        self._seal()
        self._next += 1
        self.gaps += 1

    def cut(self) -> int:
        """The next write begins an entry; the number of the one before it (0: there was none)."""
        self._seal()
        return self._next - 1

    @property
    def full_entry(self) -> bool:
        """An entry need not wait for more."""
        return bool(self._sealed)

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest write that is held became durable."""
        oldest = self._sealed[0] if self._sealed else self._open
        return None if oldest is None else oldest.first_ms

    def take(self) -> Gathered | None:
        """The oldest entry, full or not; it is not held any more."""
        if not self._sealed:
            self._seal()
        if not self._sealed:
            return None
        taken = self._sealed.popleft()
        self.byte_length -= taken.byte_length
        return taken

    def _seal(self) -> None:
        if self._open is not None:
            self._sealed.append(self._open)
            self._open = None
