"""What an agent measures of itself: how late its event loop comes, and its load between two heartbeats."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import process_time
from typing import Final

from agent.diagnosis import STALL_SECONDS, STALL_WINDOW_SECONDS
from agent.metrics import AgentMetrics
from metadata.agent_model import AgentLoad
from runtime.budget import Budget
from runtime.clock import Clock

PROBE_SECONDS: Final = 0.05
"""The loop is looked at so often: a stall is measured to a tenth of what counts as one."""
STALLS_KEPT_MAX: Final = 1_000


class LoopProbe:
    """Sleeps a little and sees how late it wakes up; :meth:`run` is a task. One event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest_max = 0.0
        self._stalls: deque[tuple[float, float]] = deque(maxlen=STALLS_KEPT_MAX)

    async def run(self) -> None:
        """Until cancelled."""
        before = self._clock.monotonic()
        while True:
            await self._clock.sleep(PROBE_SECONDS)
            now = self._clock.monotonic()
            self.late(now - before - PROBE_SECONDS, now)
            before = now

    def late(self, seconds: float, now: float) -> None:
        """The loop came so much later than it was asked to."""
        self._latest_max = max(self._latest_max, seconds)
        if seconds >= STALL_SECONDS:
            self._stalls.append((now, seconds))

    def take_lag_seconds(self) -> float:
        """The longest since this was last asked."""
        latest_max, self._latest_max = self._latest_max, 0.0
        return max(0.0, latest_max)

    def stalls(self, now: float) -> list[float]:
        """How long each stall of the last :data:`STALL_WINDOW_SECONDS` was."""
        while self._stalls and now - self._stalls[0][0] > STALL_WINDOW_SECONDS:
            self._stalls.popleft()
        return [seconds for _, seconds in self._stalls]


class LoadMeter:
    """Turns counters that only grow into rates since the last time."""

    def __init__(
        self,
        metrics: AgentMetrics,
        budget: Budget,
        probe: LoopProbe,
        clock: Clock,
        cpu_seconds: Callable[[], float] = process_time,
    ) -> None:
        """``cpu_seconds``: of the whole process, user and system."""
        self._metrics = metrics
        self._budget = budget
        self._probe = probe
        self._clock = clock
        self._cpu_seconds = cpu_seconds
        self._measured_at = clock.monotonic()
        self._before = self._counters()

    def measure(self) -> AgentLoad:
        """Since the last call."""
        now, counters = self._clock.monotonic(), self._counters()
        seconds = max(now - self._measured_at, 1e-3)
        received, sent, requests, cross_zone, cpu = (
            (after - before) / seconds for after, before in zip(counters, self._before, strict=True)
        )
        self._measured_at, self._before = now, counters
        return AgentLoad(
            bytes_in=received,
            bytes_out=sent,
            requests=requests,
            connections=self._metrics.connections_open,
            cpu_cores=cpu,
            memory_held_bytes=self._budget.held_bytes,
            memory_budget_bytes=self._budget.limit_bytes,
            loop_lag_ms=self._probe.take_lag_seconds() * 1000,
            cross_zone_bytes=cross_zone,
            cross_zone_bytes_total=self._metrics.cross_zone.byte_count(),
        )

    def _counters(self) -> tuple[float, float, float, float, float]:
        metrics = self._metrics
        return (
            metrics.received_bytes,
            metrics.sent_bytes,
            metrics.request_count(),
            metrics.cross_zone.byte_count(),
            self._cpu_seconds(),
        )
