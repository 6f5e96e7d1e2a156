"""The network between simulated processes: latency, delays, losses, cuts between zones, and who listens where.

Everything between two processes travels in a :class:`Channel`, in order. What is sent over a cut waits for its end, as
TCP would retransmit it; what is lost takes its connection with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.simulation.loop import SimLoop, SimProcess
from tests.simulation.trace import Trace


@dataclass(slots=True)
class NetworkWeather:
    """Shares (0 to 1) of calls that meet each fault."""

    request_lost: float = 0.0
    """Nobody hears of it, and the caller hears nothing."""
    answer_lost: float = 0.0
    """It takes effect, and the caller hears nothing."""
    reset_before: float = 0.0
    reset_after: float = 0.0
    """The connection breaks, before or after the effect."""
    repeated: float = 0.0
    """A copy arrives up to some seconds later."""
    delayed: float = 0.0
    """A message takes up to :attr:`delay_seconds_max`."""
    delay_seconds_max: float = 3.0


class Channel:
    """Messages from one process to another, in order."""

    __slots__ = ("_last", "network", "source", "target")

    def __init__(self, network: Network, source: SimProcess, target: SimProcess) -> None:
        self.network = network
        self.source = source
        self.target = target
        self._last = 0.0

    def send(self, deliver: Callable[..., None], *args: Any) -> None:
        """Call ``deliver(*args)`` as ``target`` when the message arrives, if it lives then."""
        network = self.network
        if network.is_cut(self.source, self.target):
            network.held.append((self, deliver, args))
            return
        loop = network.loop
        self._last = max(loop.time() + network.latency(self.source, self.target), self._last)
        loop.call_at(self._last, deliver, *args, context=self.target.context)


class Network:
    """All channels of a world, and the processes by host."""

    def __init__(self, loop: SimLoop, rng: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.weather = NetworkWeather()
        self.held: list[tuple[Channel, Callable[..., None], tuple[Any, ...]]] = []
        self.processes: dict[str, SimProcess] = {}
        """The living one of each host."""
        self.listeners: dict[tuple[str, int], Any] = {}
        """(host, port) to whatever accepts there."""
        self._cuts: set[frozenset[str]] = set()
        self._open: dict[Any, None] = {}
        """Connections and calls under way: they have ``source``, ``target`` and ``cut_off(silently)``."""

    def latency(self, source: SimProcess, target: SimProcess) -> float:
        """One way, in seconds."""
        rng, weather = self.rng, self.weather
        median = 0.0003 if source.zone == target.zone else 0.001
        seconds = median * (0.7 + rng.expovariate(2.0))
        if weather.delayed and rng.random() < weather.delayed:
            seconds += rng.uniform(0.0, weather.delay_seconds_max)
        return seconds

    # --- cuts ---------------------------------------------------------------------------------------------

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two zones or hosts."""
        self._cuts.add(frozenset((one, other)))

    def is_cut(self, source: SimProcess, target: SimProcess) -> bool:
        cuts = self._cuts
        if not cuts:
            return False
        return any(
            frozenset((one, other)) in cuts
            for one in (source.zone, source.host)
            for other in (target.zone, target.host)
            if one != other
        )

    def mend(self) -> None:
        """All cuts end, and what waited goes on."""
        self._cuts.clear()
        held, self.held = self.held, []
        for channel, deliver, args in held:
            channel.send(deliver, *args)

    # --- what is open -------------------------------------------------------------------------------------

    def opened(self, connection: Any) -> None:
        self._open[connection] = None

    def closed(self, connection: Any) -> None:
        self._open.pop(connection, None)

    def between(self, process: SimProcess) -> list[Any]:
        """What ``process`` has open with others."""
        return [each for each in self._open if each.source is process or each.target is process]

    def died(self, process: SimProcess, silently: bool) -> None:
        """Its sockets are gone; ``silently``: its peers are not even told (the machine went away)."""
        for key in [key for key in self.listeners if key[0] == process.host]:
            del self.listeners[key]
        if self.processes.get(process.host) is process:
            del self.processes[process.host]
        for connection in self.between(process):
            connection.cut_off(silently)

    def break_some(self, share: float) -> None:
        """Reset open connections here and there."""
        for connection in list(self._open):
            if self.rng.random() < share:
                connection.cut_off(False)

    def hosts(self) -> Iterable[str]:
        return self.processes.keys()
