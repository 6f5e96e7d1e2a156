"""Starts the demo's processes in order, watches them, stops them in order, and checks that every line came out."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from confluent_kafka.admin import NewTopic
from rich.console import Console

from runtime.clock import Clock, SystemClock
from tidelog.child import free_ports
from tidelog.client import admin_client, results
from tidelog.connecting import Cluster, CommandFailed
from tidelog.demo.lines import LogLines, Replay, find_lines
from tidelog.demo.processes import shipper, tidelog
from tidelog.demo.screen import DONE, STARTING, Figures, Screen, mebibytes, milliseconds, open_screen
from tidelog.demo.tail import GROUP, Latencies, Tail, TailMember
from tidelog.group import lag_records

TOPIC = "logs"
PARTITIONS = 4
MEMBERS = 2
READY_SECONDS = 30.0
ASSIGNED_SECONDS = 30.0
FIRST_LINE_SECONDS = 30.0
DRAIN_SECONDS = 30.0
STOP_SECONDS = 40.0
WIND_DOWN_SECONDS = 1.0
"""Set aside of the whole for draining and stopping."""
TICK_SECONDS = 0.25


class DemoFailed(Exception):
    """The message is the reason, for the user."""


def run(seconds: float, rate: int, wanted_shipper: str | None) -> int:
    """Ship ``rate`` lines a second, and end about ``seconds`` after shipping began; 0 when every line came out and all
    stopped well.

    ``wanted_shipper`` is as in :func:`tidelog.demo.processes.shipper`.
    """
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="tidelog-demo-"))
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
        self._clock = clock
        self._began = clock.monotonic()
        self._shipping_since: float | None = None
        self._seconds = seconds
        self._stopping = stopping
        self._pause = threading.Event()
        """Never set: waits that Ctrl-C does not cut short."""
        kafka_port, http_port = free_ports(2)
        self._kafka, self._http = f"127.0.0.1:{kafka_port}", f"127.0.0.1:{http_port}"
        self._source: LogLines = find_lines()
        log_file = folder / "replayed.log"
        self._replay = Replay(log_file, self._source.lines, rate, clock)
        self._tidelog = tidelog(folder, self._kafka, self._http)
        try:
            self._shipper = shipper(wanted_shipper, folder, log_file, TOPIC, self._kafka)
        except OSError as error:
            raise DemoFailed(str(error)) from None
        members = [TailMember(self._kafka, f"demo-tail-{index}") for index in range(MEMBERS)]
        self._tail = Tail(members, TOPIC, clock)
        self._folder = folder
        self._rate = rate
        self._previous = (0.0, 0, 0)
        self._shown_latencies = Latencies()

    def run(self, console: Console) -> str:
        """The summary. :raises DemoFailed: with the first reason."""
        facts = {
            "replaying": f"{self._source.source}, {self._rate:,} lines/s",
            "shipper": self._shipper.name,
            "tidelog": f"Kafka {self._kafka}, metrics http://{self._http}/metrics, data in {self._folder / 'data'}",
            "reader": f"consumer group {GROUP!r}, {MEMBERS} members (confluent-kafka)",
        }
        with open_screen(console, facts) as screen:
            self._start(screen)
            self._watch(screen)
            figures = self._drain(screen)
        self._stop()
        return self._summary(figures)

    def clean_up(self) -> None:
        """End whatever still runs, whatever happened."""
        with contextlib.suppress(RuntimeError):  # it was never started
            self._replay.stop()
        self._shipper.kill()
        self._tidelog.kill()
        self._tail.stop()

    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._began

    def _shipping(self) -> float:
        """Seconds since shipping began; 0 before."""
        return 0.0 if self._shipping_since is None else self._clock.monotonic() - self._shipping_since

    def _start(self, screen: Screen) -> None:
        try:
            self._tidelog.start()
        except OSError as error:
            raise DemoFailed(f"tidelog cannot be started: {error}") from None
        self._wait(screen, "tidelog to be ready", READY_SECONDS, self._is_ready)
        screen.say(f"{self._elapsed():5.1f} s tidelog is ready")
        admin = admin_client(Cluster(self._kafka))
        results(admin.create_topics([NewTopic(TOPIC, PARTITIONS)]))
        self._tail.start()
        self._wait(
            screen,
            "the consumer group to get its partitions",
            ASSIGNED_SECONDS,
            lambda: self._tail.partitions_assigned() == PARTITIONS,
        )
        screen.say(f"{self._elapsed():5.1f} s the consumer group has its {PARTITIONS} partitions")
        self._replay.start()
        try:
            self._shipper.start()
        except OSError as error:
            raise DemoFailed(f"{self._shipper.name} cannot be started: {error}") from None
        self._wait(screen, "the first line to come out", FIRST_LINE_SECONDS, lambda: self._tail.lines.count > 0)
        screen.say(f"{self._elapsed():5.1f} s the first line came out; now {self._rate:,} lines/s")
        self._tail.forget_latencies()
        self._replay.go()
        self._shipping_since = self._clock.monotonic()
        self._previous = (0.0, self._replay.written.count, self._tail.lines.count)

    def _wait(self, screen: Screen, what: str, seconds: float, is_done: Callable[[], bool]) -> None:
        screen.say(f"{self._elapsed():5.1f} s waiting for {what}")
        screen.show(self._figures(STARTING, {}))
        deadline = self._clock.monotonic() + seconds
        while not is_done():
            self._check()
            if self._clock.monotonic() > deadline:
                raise DemoFailed(
                    f"waited {seconds:g} s for {what}\n{self._shipper.log_tail()}\n{self._tidelog.log_tail()}"
                )
            if self._stopping.wait(0.05):
                raise DemoFailed(f"stopped while waiting for {what}")

    def _check(self) -> None:
        for problem in (
            self._tidelog.problem(),
            self._shipper.problem(),
            self._tail.problem,
            self._replay.problem,
        ):
            if problem is not None:
                raise DemoFailed(problem)

    def _watch(self, screen: Screen) -> None:
        """Ship until it is time to wind down, or somebody presses Ctrl-C."""
        while self._shipping() < self._seconds - WIND_DOWN_SECONDS and not self._stopping.wait(TICK_SECONDS):
            self._check()
            screen.show(self._figures("shipping", self._scrape()))

    def _drain(self, screen: Screen) -> Figures:
        """No more lines; wait until all have come out, and let the group commit."""
        self._replay.stop()
        written, received = self._replay.written, self._tail.lines
        deadline = self._clock.monotonic() + DRAIN_SECONDS
        while received.count < written.count:
            self._check()
            if self._clock.monotonic() > deadline:
                raise DemoFailed(
                    f"{written.count - received.count:,} of {written.count:,} lines did not come out within "
                    f"{DRAIN_SECONDS:g} s\nshipper:\n{self._shipper.log_tail()}\ntidelog:\n{self._tidelog.log_tail()}"
                )
            screen.show(self._figures("draining", self._scrape()))
            self._pause.wait(TICK_SECONDS)
        if (received.count, received.checksum) != (written.count, written.checksum):
            raise DemoFailed(f"{received.count:,} lines came out, but their checksum is not that of the lines written")
        self._tail.stop()
        self._check()
        lag = lag_records(admin_client(Cluster(self._kafka)), GROUP)  # /metrics may show that of some seconds ago
        figures = replace(self._figures(DONE, self._scrape()), lag_records=lag)
        screen.show(figures)
        if lag != 0:
            raise DemoFailed(f"the group has read everything, but its committed offsets are {lag:,} records behind")
        return figures

    def _stop(self) -> None:
        """In order: the shipper flushes, Tidelog drains."""
        for child in (self._shipper, self._tidelog):
            problem = child.stop(STOP_SECONDS)
            if problem is not None:
                raise DemoFailed(problem)

    def _figures(self, phase: str, metrics: dict[str, float]) -> Figures:
        elapsed = self._shipping()
        lines_in, lines_out = self._replay.written.count, self._tail.lines.count
        before, before_in, before_out = self._previous
        seconds = max(elapsed - before, 1e-6)
        self._previous = (elapsed, lines_in, lines_out)
        recent = self._tail.take_recent()
        if recent.count:
            self._shown_latencies = recent
        shown = self._tail.latencies if phase == DONE else self._shown_latencies
        lag = metrics.get(f'tidelog_group_lag_records{{group="{GROUP}",topic="{TOPIC}"}}')
        return Figures(
            phase=phase,
            elapsed_seconds=elapsed,
            total_seconds=self._seconds,
            lines_in=lines_in,
            lines_out=lines_out,
            bytes_in=self._replay.written.byte_count,
            rate_in=(lines_in - before_in) / seconds,
            rate_out=(lines_out - before_out) / seconds,
            p50_ms=shown.percentile(0.5),
            p99_ms=shown.percentile(0.99),
            duplicates=self._tail.duplicates,
            segments=int(metrics.get('tidelog_ingest_segments_total{outcome="committed"}', 0)),
            segment_bytes=int(metrics.get("tidelog_ingest_segment_bytes_sum", 0)),
            puts=int(_total(metrics, "tidelog_storage_operations_total", 'operation="put"')),
            lag_records=None if lag is None else int(lag),
            held_bytes=int(_total(metrics, "tidelog_agent_held_bytes")),
            budget_bytes=int(metrics.get("tidelog_agent_budget_bytes", 0)),
        )

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._http}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _scrape(self) -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError as error:
            raise DemoFailed(f"/metrics does not answer: {error}\n{self._tidelog.log_tail()}") from None
        return parse_metrics(text)

    def _summary(self, f: Figures) -> str:
        written = self._replay.written
        return (
            f"Every line came out: {written.count:,} lines, {mebibytes(written.byte_count)}, "
            f"checksum {written.checksum:016x} on both sides, {f.duplicates:,} duplicates.\n"
            f"End to end, from the line in the file to the consumer: p50 {milliseconds(f.p50_ms)}, "
            f"p99 {milliseconds(f.p99_ms)}.\n"
            f"{f.segments:,} segments, {mebibytes(f.segment_bytes / max(f.segments, 1))} on average, {f.puts:,} PUTs.\n"
            f"{self._shipper.name} and tidelog stopped cleanly {self._shipping():.1f} s after shipping began."
        )


def parse_metrics(text: str) -> dict[str, float]:
    """The samples of a ``/metrics`` page, by name with labels as written."""
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def _total(metrics: dict[str, float], name: str, label: str = "") -> float:
    return sum(value for key, value in metrics.items() if key.startswith(name) and label in key)
