"""One process of a local cluster: running, dead, or waiting to be started again. No loop and no clock of its own."""

from __future__ import annotations

import enum
import shutil
from dataclasses import dataclass

from tidelog.child import Child
from tidelog.cluster.plan import ProcessPlan

BACKOFF_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0
"""One that ran so long begins with the shortest backoff again."""
LOG_BYTES_MAX = 64 * 1024 * 1024


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to be started again"
    STOPPING = "stopping"


@dataclass(slots=True)
class Member:
    """Times are on one monotonic clock, in seconds."""

    plan: ProcessPlan
    child: Child
    phase: Phase = Phase.STARTING
    started_at: float = 0.0
    restart_at: float = 0.0
    restarts: int = 0
    was_ready: bool = False
    """Ever, in any of its lives."""
    doubt: str = ""
    """Why it was not ready when it was last asked."""
    _deaths: int = 0
    """Since it last ran steadily."""

    @property
    def name(self) -> str:
        return self.plan.name

    def start(self, now: float) -> None:
        """:raises OSError: it cannot be run."""
        self.child.start()
        self.started_at = now
        self.phase = Phase.STARTING

    def died(self, now: float) -> float:
        """It has ended by itself: when to start it again, in seconds from ``now``."""
        if now - self.started_at >= STEADY_SECONDS:
            self._deaths = 0
        wait = min(BACKOFF_SECONDS * 2.0**self._deaths, BACKOFF_SECONDS_MAX)
        self._deaths += 1
        self.phase = Phase.WAITING
        self.restart_at = now + wait
        return wait

    def restart(self, now: float) -> None:
        """:raises OSError: it cannot be run."""
        self.restarts += 1
        self.start(now)

    def bound_log(self) -> None:
        """Keep the log file and one older part, each at most :data:`LOG_BYTES_MAX` and what is written meanwhile."""
        path = self.child.log_path
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(path, path.with_suffix(".1.log"))
            with path.open("r+b") as log:  # the process appends, so it goes on at the new end
                log.truncate()
