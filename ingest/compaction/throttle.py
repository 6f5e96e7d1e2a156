"""How fast compaction may read and write."""

from __future__ import annotations

from runtime.clock import Clock


class Throttle:
    """Bytes at ``bytes_per_second``, in order of asking; a pause does not earn a burst. One event loop."""

    def __init__(self, bytes_per_second: int, clock: Clock) -> None:
        self._seconds_per_byte = 1 / bytes_per_second
        self._clock = clock
        self._free_at = clock.monotonic()

    async def spend(self, byte_count: int) -> None:
        """Return when ``byte_count`` more bytes may be moved."""
        now = self._clock.monotonic()
        begin = max(self._free_at, now)
        self._free_at = begin + byte_count * self._seconds_per_byte
        if begin > now:
            await self._clock.sleep(begin - now)
