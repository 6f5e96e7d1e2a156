"""What goes wrong in a simulated world: each seed draws which kinds of faults it has, and when they come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from metadata.job_model import COMPACT_SEGMENTS
from tests.simulation.database import DatabaseWeather
from tests.simulation.network import NetworkWeather
from tests.simulation.object_store import BucketWeather


class Nemesis:
    """Breaks ``world`` for a while. Every kind of fault has the same chance of being among a seed's."""

    def __init__(self, world: Any, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.done = 0
        """Faults so far."""
        kinds: list[Callable[[], None]] = [
            self._crash_agent,
            self._crash_metadata,
            self._freeze_agent,
            self._freeze_metadata,
            self._freeze_client,
            self._freeze_compactor,
            self._restart_agent,
            self._cut_zone,
            self._cut_host,
            self._mend,
            self._network_weather,
            self._bucket_weather,
            self._bucket_away,
            self._database_weather,
            self._database_away,
            self._jump_clock,
            self._break_connections,
        ]
        self._kinds = [kind for kind in kinds if rng.random() < 0.5] or [self._crash_agent]
        self._seconds = rng.uniform(5.0, 16.0)
        self._pause_seconds = rng.choice((0.7, 1.5, 3.0))

    async def run(self) -> None:
        """One fault after the other."""
        rng, loop = self._rng, self._world.loop
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        until = loop.time() + self._seconds
        while loop.time() < until:
            self.done += 1
            rng.choice(self._kinds)()
            await asyncio.sleep(rng.expovariate(1 / self._pause_seconds))

    # --- processes ----------------------------------------------------------------------------------------

    def _crash_agent(self) -> None:
        self._crash(self._rng.choice(self._world.agents))

    def _crash_metadata(self) -> None:
        self._crash(self._rng.choice(self._world.metadata))

    def _crash(self, machine: Any) -> None:
        if machine.up:
            machine.wanted = False
            machine.crash(silently=self._rng.random() < 0.3)
            self._later(self._rng.choice((0.1, 1.0, 6.0, 15.0)), machine.start)

    def _freeze_agent(self) -> None:
        self._freeze(self._rng.choice(self._world.agents), (0.5, 4.0, 12.0, 12.0))

    def _freeze_metadata(self) -> None:
        self._freeze(self._rng.choice(self._world.metadata), (0.5, 3.0, 6.0, 14.0))
        self._world.referee.decided_late_until = self._world.loop.time() + 30.0

    def _freeze_client(self) -> None:
        process = self._rng.choice(self._world.clients)
        if not process.frozen:
            self._note(process, "freezes")
            self._world.loop.freeze(process)
            self._later(self._rng.choice((2.0, 10.0, 10.0)), self._thaw, process)

    def _freeze_compactor(self, looks: int = 100) -> None:
        """In the middle of a job, for longer than its lease: by chance that would hardly ever be met."""
        for machine in self._world.agents:
            jobs = None if machine.server is None else machine.server._jobs
            running = [] if jobs is None else list(jobs._running.values())
            if any(each.task.get_name().startswith(f"job-{COMPACT_SEGMENTS}") for each in running):
                self._later(self._rng.uniform(0.0, 0.1), self._freeze, machine, (2.5, 4.0))
                return
        if looks:
            self._later(0.02, self._freeze_compactor, looks - 1)

    def _freeze(self, machine: Any, seconds: tuple[float, ...]) -> None:
        process = machine.process
        if machine.up and not process.frozen:
            self._note(process, "freezes")
            self._world.loop.freeze(process)
            self._later(self._rng.choice(seconds), self._thaw, process)

    def _thaw(self, process: Any) -> None:
        if process.frozen and not process.dead:
            self._note(process, "thaws")
            self._world.loop.thaw(process)

    def _restart_agent(self) -> None:
        machine = self._rng.choice(self._world.agents)
        self._note(machine.process, "is told to restart")
        machine.stop()

    def _jump_clock(self) -> None:
        machine = self._rng.choice(self._world.agents + self._world.metadata)
        if machine.process is not None:
            jump_ms = self._rng.choice((-1_800_000, -5_000, 2_000, 60_000, 1_800_000))
            self._note(machine.process, f"clock jumps by {jump_ms} ms")
            machine.process.clock_skew_ms += jump_ms

    # --- the network --------------------------------------------------------------------------------------

    def _cut_zone(self) -> None:
        zones = sorted({machine.zone for machine in self._world.agents + self._world.metadata})
        one = self._rng.choice(zones)
        for other in zones:
            if other != one:
                self._world.network.cut(one, other)
        self._note("network", f"zone {one} is cut off")
        self._later(self._rng.uniform(0.5, 12.0), self._mend)

    def _cut_host(self) -> None:
        one, other = self._rng.sample([machine.host for machine in self._world.agents + self._world.metadata], 2)
        self._world.network.cut(one, other)
        self._note("network", f"{one} and {other} are cut off from each other")
        self._later(self._rng.uniform(0.5, 12.0), self._mend)

    def _mend(self) -> None:
        self._world.network.mend()

    def _network_weather(self) -> None:
        rng = self._rng
        share = rng.choice((0.01, 0.03, 0.1))
        self._world.network.weather = NetworkWeather(
            request_lost=rng.random() * share / 2,
            answer_lost=rng.random() * share / 2,
            reset_before=rng.random() * share,
            reset_after=rng.random() * share,
            repeated=rng.random() * share * 5,
            delayed=rng.choice((0.0, 0.02, 0.1)),
            delay_seconds_max=rng.choice((0.2, 3.0)),
        )
        self._note("network", f"weather {share}")

    def _break_connections(self) -> None:
        self._note("network", "connections break")
        self._world.network.break_some(self._rng.choice((0.2, 0.6)))

    # --- the stores ---------------------------------------------------------------------------------------

    def _bucket_weather(self) -> None:
        rng = self._rng
        share = rng.choice((0.0, 0.05, 0.3))
        self._world.bucket.weather = BucketWeather(
            error_before=rng.random() * share,
            error_after=rng.random() * share,
            throttled=rng.random() * share,
            straggler=rng.random() * share,
            silent=rng.random() * share / 4,
        )
        self._note("bucket", f"weather {share}")

    def _bucket_away(self) -> None:
        self._note("bucket", "is away")
        self._world.bucket.weather.away = True
        self._later(self._rng.choice((1.0, 5.0, 20.0)), self._bucket_back)

    def _bucket_back(self) -> None:
        self._world.bucket.weather.away = False

    def _database_weather(self) -> None:
        rng = self._rng
        share = rng.choice((0.0, 0.02, 0.1))
        self._world.database.weather = DatabaseWeather(
            error_before=rng.random() * share,
            error_after=rng.random() * share,
            slow=rng.random() * share * 2,
            session_lost=rng.random() * share,
        )
        self._note("database", f"weather {share}")

    def _database_away(self) -> None:
        self._note("database", "is away")
        self._world.database.weather.away = True
        self._later(self._rng.choice((0.5, 2.0, 8.0)), self._database_back)

    def _database_back(self) -> None:
        self._world.database.weather.away = False

    # --- how ----------------------------------------------------------------------------------------------

    def _later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        self._world.loop.call_later(seconds, what, *args)

    def _note(self, who: object, what: str) -> None:
        self._world.trace.note(who, what)
