"""``tidelog cluster demo``: three zones and two groups under real shippers, two deaths, and every line counted.

A log is replayed in every zone and shipped into one group; the members of a consumer group read it in every zone from
the other group. The demo fails when a line is missing, or when bytes crossed a zone while every zone had an agent.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from confluent_kafka.admin import NewTopic
from rich.console import Console

from runtime.clock import Clock, SystemClock
from tidelog.child import Child
from tidelog.client import admin_client, results
from tidelog.cluster.demo_screen import Figures, Screen, ZoneFigures, open_screen
from tidelog.cluster.demo_view import ClusterView, DemoFailed
from tidelog.cluster.status import byte_count
from tidelog.connecting import Cluster, CommandFailed
from tidelog.demo.lines import Replay, find_lines
from tidelog.demo.processes import REBALANCE_DELAY_MS, shipper
from tidelog.demo.screen import mebibytes, milliseconds
from tidelog.demo.tail import GROUP, Latencies, Tail, TailMember
from tidelog.group import lag_records

ZONES = ("a", "b", "c")
SHIPPED_INTO, READ_FROM = "plaintext", "vip"
TOPIC = "logs"
PARTITIONS = 6
READY_SECONDS = 60.0
FIRST_LINES_SECONDS = 30.0
RECOVERED_SECONDS = 30.0
DRAIN_SECONDS = 60.0
STOP_SECONDS = 60.0
TICK_SECONDS = 0.25
RATE_SECONDS = 1.0
HEARTBEATS_SECONDS = 2.5
"""Until every agent has told how much crossed zones so far."""
KILL_LEADER_AT, KILL_AGENT_AT = 0.3, 0.6
"""Shares of the whole time."""
WIND_DOWN_SECONDS = 2.0


def run(seconds: float, rate: int, wanted_shipper: str | None) -> int:
    """Ship ``rate`` lines a second in every zone for about ``seconds``; 0 when every line came out and all went well.

    ``wanted_shipper`` is as in :func:`tidelog.demo.processes.shipper`.
    """
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="tidelog-cluster-demo-"))
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        demo = _Demo(folder, seconds, rate, wanted_shipper, SystemClock(), stopping)
        try:
            summary = demo.run(console)
        finally:
            demo.clean_up()
    except (DemoFailed, CommandFailed) as failure:
        console.print(f"The demo failed: {failure}", soft_wrap=True, markup=False, highlight=False, style="red")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    console.print(summary, soft_wrap=True, markup=False, highlight=False)
    return 0


class _Demo:
    def __init__(
        self,
        folder: Path,
        seconds: float,
        rate: int,
        wanted_shipper: str | None,
        clock: Clock,
        stopping: threading.Event,
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._rate = rate
        self._wanted_shipper = wanted_shipper
        self._clock = clock
        self._stopping = stopping
        self._pause = threading.Event()
        """Never set: waits that Ctrl-C does not cut short."""
        self._began = clock.monotonic()
        self._shipping_since: float | None = None
        self._source = find_lines()
        command = [
            sys.executable,
            "-m",
            "tidelog",
            "cluster",
            "up",
            "--data",
            str(folder / "data"),
            "--kafka-port",
            "0",
        ]
        command += ["--zones", ",".join(ZONES), "--groups", f"{SHIPPED_INTO},{READ_FROM}"]
        command += ["--set", f"groups.initial_rebalance_delay_ms={REBALANCE_DELAY_MS}"]
        self._cluster = Child("tidelog cluster up", command, folder / "cluster.log")
        self._view = ClusterView(folder / "data", self._cluster.log_tail)
        self._replays: list[Replay] = []
        self._shippers: list[Child] = []
        self._tail: Tail | None = None
        self._previous = (0.0, [0] * len(ZONES), [0] * len(ZONES))
        self._rates = [(0.0, 0.0)] * len(ZONES)
        self._latencies = Latencies()
        self._crossed_at_start = 0
        """With which clients asked where to go."""
        self._crossed_in_peace = 0
        """From then until the only agent of a zone was killed."""

    def run(self, console: Console) -> str:
        """The summary. :raises DemoFailed: with the first reason."""
        facts = {
            "replaying": f"{self._source.source}, {self._rate:,} lines/s in each of {len(ZONES)} zones",
            "shippers": f"into the group {SHIPPED_INTO!r}, one in each zone",
            "readers": f"consumer group {GROUP!r} from the group {READ_FROM!r}, one member in each zone",
        }
        with open_screen(console, facts) as screen:
            self._start(screen)
            self._watch(screen)
            duplicates = self._drain(screen)
        self._stop()
        return self._summary(duplicates)

    def clean_up(self) -> None:
        """End whatever still runs, whatever happened."""
        for replay in self._replays:
            with contextlib.suppress(RuntimeError):  # it was never started
                replay.stop()
        for child in (*self._shippers, self._cluster):
            child.kill()
        if self._tail is not None:
            self._tail.stop()

    # --- from the start to the end --------------------------------------------------------------------------

    def _start(self, screen: Screen) -> None:
        try:
            self._cluster.start()
        except OSError as error:
            raise DemoFailed(f"tidelog cluster up cannot be started: {error}") from None
        agents = len(ZONES) * 2
        self._wait(
            screen, f"2 metadata processes and {agents} agents", READY_SECONDS, lambda: self._ready_agents() == agents
        )
        state = self._view.state()
        into, out = ({a.zone: a.kafka for a in state.agents if a.group == group} for group in (SHIPPED_INTO, READ_FROM))
        admin = admin_client(Cluster(into[ZONES[0]]))
        results(admin.create_topics([NewTopic(TOPIC, PARTITIONS)]))
        self._tail = Tail(
            [TailMember(_near(out, zone), f"demo-tail,zone={zone}") for zone in ZONES], TOPIC, self._clock
        )
        self._tail.start()
        self._wait(screen, "the readers", READY_SECONDS, lambda: self._received().partitions_assigned() == PARTITIONS)
        for index, zone in enumerate(ZONES):
            folder = self._folder / f"zone-{zone}"
            folder.mkdir()
            log_file = folder / "replayed.log"
            replay = Replay(log_file, self._source.lines, self._rate, self._clock, index, len(ZONES))
            self._replays.append(replay)
            replay.start()
            try:
                child = shipper(
                    self._wanted_shipper, folder, log_file, TOPIC, _near(into, zone), f"demo-shipper,zone={zone}"
                )
                child.name = f"{child.name} in zone {zone}"
                child.start()
            except OSError as error:
                raise DemoFailed(str(error)) from None
            self._shippers.append(child)
        self._wait(
            screen, "a line of each zone", FIRST_LINES_SECONDS, lambda: self._received().lines.count == len(ZONES)
        )
        self._say(screen, f"a line of each zone came out; now {self._rate:,} lines/s in each")
        self._received().forget_latencies()
        self._pause.wait(HEARTBEATS_SECONDS)
        self._view.look()
        self._crossed_at_start = self._view.crossed_bytes
        for replay in self._replays:
            replay.go()
        self._shipping_since = self._clock.monotonic()
        self._previous = (0.0, [1] * len(ZONES), list(self._received().received))

    def _watch(self, screen: Screen) -> None:
        """Ship until it is time to wind down, with two deaths on the way, or until Ctrl-C."""
        deaths: list[tuple[float, Callable[[Screen], None]]] = [
            (KILL_LEADER_AT * self._seconds, self._kill_leader),
            (KILL_AGENT_AT * self._seconds, self._kill_agent),
        ]
        while self._shipping() < self._seconds - WIND_DOWN_SECONDS and not self._stopping.wait(TICK_SECONDS):
            self._check()
            self._view.look()
            screen.show(self._figures("shipping"))
            if deaths and self._shipping() >= deaths[0][0]:
                deaths.pop(0)[1](screen)
        if deaths:
            raise DemoFailed("stopped before everything was shown")

    def _kill_leader(self, screen: Screen) -> None:
        """kill -9 the metadata process that leads; the other one takes over."""
        self._view.look()
        before = self._view.generation
        process = self._view.leader()
        if process.pid is None:
            raise DemoFailed(f"{process.name} is not running")
        self._kill(screen, f"{process.name}, which leads (generation {before})", process.pid)
        killed_at, shown = self._clock.monotonic(), self._received().lines.count
        self._wait(
            screen,
            "the other metadata process to lead",
            RECOVERED_SECONDS,
            lambda: self._view.look() is not None and self._view.generation > before,
        )
        took = self._clock.monotonic() - killed_at
        self._say(screen, f"generation {self._view.generation} leads after {took:.1f} s")
        self._wait(screen, "lines to come out again", RECOVERED_SECONDS, lambda: self._received().lines.count > shown)

    def _kill_agent(self, screen: Screen) -> None:
        """kill -9 the only agent that zone b's shipper has in its zone; others serve it until it is back."""
        self._view.look()
        self._crossed_in_peace = self._view.crossed_bytes - self._crossed_at_start
        victim = next(one for one in self._view.state().agents if (one.zone, one.group) == (ZONES[1], SHIPPED_INTO))
        if victim.pid is None:
            raise DemoFailed(f"{victim.name} is not running")
        written = self._replays[1].written
        self._kill(screen, f"{victim.name}, the only agent of its zone and group", victim.pid)
        killed_at, goal = self._clock.monotonic(), written.count
        lines = self._received()
        self._wait(
            screen,
            "all that was written in its zone until then",
            RECOVERED_SECONDS,
            lambda: lines.has_all(1, len(ZONES), goal),
        )
        self._say(screen, f"they are all out {self._clock.monotonic() - killed_at:.1f} s after its death")

    def _drain(self, screen: Screen) -> int:
        """No more lines; wait until all have come out, and let the group commit. How many copies came."""
        for replay in self._replays:
            replay.stop()
        received = self._received()
        deadline = self._clock.monotonic() + DRAIN_SECONDS
        while received.lines.count < self._written_count():
            self._check()
            if self._clock.monotonic() > deadline:
                raise DemoFailed(
                    f"{self._written_count() - received.lines.count:,} of {self._written_count():,} lines did not come "
                    f"out within {DRAIN_SECONDS:g} s\n{self._cluster.log_tail()}"
                )
            self._view.look()
            screen.show(self._figures("draining"))
            self._pause.wait(TICK_SECONDS)
        if received.lines.checksum != self._checksum():
            raise DemoFailed(
                f"{received.lines.count:,} lines came out, but not those that were written: their checksum differs"
            )
        received.stop()
        self._check()
        addresses = ",".join(agent.kafka for agent in self._view.state().agents)
        lag = lag_records(admin_client(Cluster(addresses)), GROUP)
        if lag != 0:
            raise DemoFailed(f"the group has read everything, but its committed offsets are {lag:,} records behind")
        self._view.look()
        screen.show(self._figures("done"))
        return received.duplicates

    def _stop(self) -> None:
        for child in (*self._shippers, self._cluster):
            problem = child.stop(STOP_SECONDS)
            if problem is not None:
                raise DemoFailed(problem)

    def _summary(self, duplicates: int) -> str:
        """:raises DemoFailed: bytes crossed a zone that need not."""
        if self._crossed_in_peace:
            raise DemoFailed(f"{byte_count(self._crossed_in_peace)} crossed zones while every zone had its agents")
        latencies = self._received().latencies
        written = sum(replay.written.byte_count for replay in self._replays)
        return (
            f"Nothing was lost: {self._written_count():,} lines, {mebibytes(written)}, checksum "
            f"{self._checksum():016x} on both sides, {duplicates:,} read twice.\n"
            f"End to end, from the line in a file to the reader, with both deaths in it: p50 "
            f"{milliseconds(latencies.percentile(0.5))}, p99 {milliseconds(latencies.percentile(0.99))}, "
            f"longest {milliseconds(latencies.percentile(1.0))}.\n"
            f"Bytes that crossed a zone: {byte_count(self._crossed_in_peace)} while every zone had its agents; "
            f"{byte_count(self._crossed_at_start)} before, with which clients asked where to go, and "
            f"{byte_count(self._view.crossed_bytes - self._crossed_at_start)} after zone {ZONES[1]} had lost its own.\n"
            f"Shippers, agents and metadata processes stopped cleanly."
        )

    # --- what is going on ---------------------------------------------------------------------------------------

    def _received(self) -> Tail:
        assert self._tail is not None, "the readers have been started"
        return self._tail

    def _ready_agents(self) -> int:
        if not self._view.exists:
            return 0
        self._view.look()
        return self._view.agents_ready

    def _written_count(self) -> int:
        return sum(replay.written.count for replay in self._replays)

    def _checksum(self) -> int:
        return sum(replay.written.checksum for replay in self._replays) & 0xFFFF_FFFF_FFFF_FFFF

    def _shipping(self) -> float:
        """Seconds since shipping began; 0 before."""
        return 0.0 if self._shipping_since is None else self._clock.monotonic() - self._shipping_since

    def _say(self, screen: Screen, text: str) -> None:
        screen.say(f"{self._clock.monotonic() - self._began:5.1f} s  {text}")

    def _kill(self, screen: Screen, what: str, pid: int) -> None:
        self._say(screen, f"kill -9 of {what}")
        os.kill(pid, signal.SIGKILL)

    def _wait(self, screen: Screen, what: str, seconds: float, is_done: Callable[[], bool]) -> None:
        self._say(screen, f"waiting for {what}")
        deadline = self._clock.monotonic() + seconds
        while not is_done():
            self._check()
            screen.show(self._figures("shipping" if self._shipping_since is not None else "starting"))
            if self._clock.monotonic() > deadline:
                shippers = "".join(f"\n{child.name}:\n{child.log_tail()}" for child in self._shippers)
                raise DemoFailed(f"waited {seconds:g} s for {what}\n{self._cluster.log_tail()}{shippers}")
            if self._stopping.wait(0.05):
                raise DemoFailed(f"stopped while waiting for {what}")

    def _check(self) -> None:
        problems = [child.problem() for child in (self._cluster, *self._shippers)]
        problems += [replay.problem for replay in self._replays]
        problems += [None if self._tail is None else self._tail.problem]
        for problem in problems:
            if problem is not None:
                raise DemoFailed(problem)

    def _figures(self, phase: str) -> Figures:
        tail = self._tail
        elapsed = self._shipping()
        written = [replay.written.count for replay in self._replays] or [0] * len(ZONES)
        received = [0] * len(ZONES) if tail is None else list(tail.received)
        before, written_before, received_before = self._previous
        seconds = elapsed - before
        if seconds >= RATE_SECONDS:
            self._rates = [
                ((now - then) / seconds, (out - out_before) / seconds)
                for now, then, out, out_before in zip(written, written_before, received, received_before, strict=True)
            ]
            self._previous = (elapsed, written, received)
            if tail is not None and (recent := tail.take_recent()).count:
                self._latencies = recent
        shown = self._latencies if phase != "done" or tail is None else tail.latencies
        return Figures(
            phase=phase,
            elapsed_seconds=elapsed,
            total_seconds=self._seconds,
            zones=tuple(
                ZoneFigures(zone, shipped, read) for zone, (shipped, read) in zip(ZONES, self._rates, strict=True)
            ),
            lines_in=sum(written),
            lines_out=0 if tail is None else tail.lines.count,
            p50_ms=shown.percentile(0.5),
            p99_ms=shown.percentile(0.99),
            duplicates=0 if tail is None else tail.duplicates,
            crossed_bytes=self._view.crossed_bytes,
            agents_ready=self._view.agents_ready,
            generation=self._view.generation,
        )


def _near(addresses: dict[str, str], zone: str) -> str:
    """All addresses, that of ``zone`` first: a client's own zone is no use to it while nobody lives there."""
    return ",".join([addresses[zone], *(address for other, address in addresses.items() if other != zone)])
