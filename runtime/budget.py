"""One budget for all bytes a process holds on behalf of clients.

Holders ``take`` bytes before they hold them and ``give`` them back. Taking never fails and never
waits: whoever is about to *read more from a client* first asks :attr:`Budget.exhausted`, and stops
reading while it is true (backpressure). The overshoot is therefore bounded by what is already in
flight when the limit is reached: at most one frame per connection that was already being received,
and those are limited by ``connection`` settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

RESUME_BELOW = 0.9
"""Reading resumes when held bytes fall below this share of the limit (no flapping at the edge)."""


class Budget:
    """Bytes held against ``limit_bytes``, by purpose. One event loop; no locks.

    Purposes are a small fixed set ("request", "segment", "cache", "response"), shown in metrics.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError(f"budget must be positive, got {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.by_purpose: Counter[str] = Counter()
        self._over = False
        self._waiting: dict[object, Callable[[], None]] = {}

    @property
    def exhausted(self) -> bool:
        """True from the moment the limit is reached until held bytes fall below 90 % of it."""
        return self._over

    def take(self, purpose: str, count: int) -> None:
        """Hold ``count`` more bytes for ``purpose``."""
        assert count >= 0
        self.held_bytes += count
        self.by_purpose[purpose] += count
        if self.held_bytes >= self.limit_bytes:
            self._over = True

    def give(self, purpose: str, count: int) -> None:
        """Return ``count`` bytes; wakes those who wait when there is room again."""
        held = self.by_purpose[purpose] - count
        assert count >= 0 and held >= 0, f"{purpose}: gave back {-held} bytes never taken"
        self.by_purpose[purpose] = held
        self.held_bytes -= count
        if self._over and self.held_bytes < self.limit_bytes * RESUME_BELOW:
            self._over = False
            waiting, self._waiting = self._waiting, {}
            for resume in waiting.values():
                resume()

    def when_available(self, owner: object, resume: Callable[[], None]) -> None:
        """Call ``resume`` once there is room again; at most one callback per ``owner``."""
        self._waiting[owner] = resume

    def forget(self, owner: object) -> None:
        """Drop ``owner``'s callback (its connection closed)."""
        self._waiting.pop(owner, None)
