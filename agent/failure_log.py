"""One line per failure, but never a flood: misbehaving clients must not fill the disk with our own words."""

from __future__ import annotations

from typing import Any, Final

import structlog

from runtime.clock import Clock

LINES_MAX: Final = 20
"""Lines of one event that are written in a window; the rest is counted and reported at its end."""
WINDOW_SECONDS: Final = 60.0

_log = structlog.get_logger("tidelog.kafka")


class FailureLog:
    """Writes failures of clients and handlers, aggregated by event name once they come too often."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._window_began = clock.monotonic()
        self._counts: dict[str, int] = {}

    def report(self, event: str, error: BaseException | None = None, **fields: Any) -> None:
        """One failure; ``error`` adds its traceback. ``event`` is one of a small fixed set."""
        self.sweep()
        count = self._counts.get(event, 0) + 1
        self._counts[event] = count
        if count > LINES_MAX:
            return
        if error is None:
            _log.warning(event, **fields)
        else:
            _log.error(event, exc_info=error, **fields)

    def sweep(self) -> None:
        """Close the window when it is over, saying what was not written. Every failure does; so may a timer."""
        now = self._clock.monotonic()
        if now - self._window_began < WINDOW_SECONDS:
            return
        counts, self._counts, self._window_began = self._counts, {}, now
        for event, count in counts.items():
            if count > LINES_MAX:
                _log.warning("failures_not_logged", failure=event, count=count - LINES_MAX, seconds=WINDOW_SECONDS)
