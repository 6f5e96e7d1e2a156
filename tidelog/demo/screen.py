"""What the demo shows: one screen that is redrawn on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 3.0
STARTING = "starting"
DONE = "done"
SPARK_WIDTH = 60
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Figures:
    """The demo at one moment, ``elapsed_seconds`` after shipping began (0 before).

    Rates are per second since the figures before these; latencies in milliseconds.
    """

    phase: str
    elapsed_seconds: float
    total_seconds: float
    lines_in: int
    lines_out: int
    bytes_in: int
    rate_in: float
    rate_out: float
    p50_ms: float | None
    p99_ms: float | None
    duplicates: int
    segments: int
    segment_bytes: int
    puts: int
    lag_records: int | None
    held_bytes: int
    budget_bytes: int


class Screen(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None: ...

    def show(self, figures: Figures) -> None: ...


def open_screen(console: Console, facts: dict[str, str]) -> Screen:
    """``facts`` stay on the screen: what is shipped, by whom, to where."""
    return _LiveScreen(console, facts) if console.is_terminal else _PlainScreen(console, facts)


class _PlainScreen:
    def __init__(self, console: Console, facts: dict[str, str]) -> None:
        self._console = console
        self._facts = facts
        self._last = 0.0

    def __enter__(self) -> Self:
        for name, value in self._facts.items():
            self.say(f"{name}: {value}")
        return self

    def __exit__(self, *_: object) -> None:
        return

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def show(self, figures: Figures) -> None:
        if figures.elapsed_seconds - self._last >= PLAIN_SECONDS:
            self._last = figures.elapsed_seconds
            self.say(as_line(figures))


class _LiveScreen:
    def __init__(self, console: Console, facts: dict[str, str]) -> None:
        self._console = console
        self._facts = facts
        self._history: list[float] = []
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def say(self, text: str) -> None:
        self._live.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def show(self, figures: Figures) -> None:
        if figures.phase != STARTING:
            self._history = [*self._history, figures.rate_out][-SPARK_WIDTH:]
        self._live.update(self._draw(figures), refresh=True)

    def _draw(self, figures: Figures) -> RenderableType:
        completed = figures.total_seconds if figures.phase == DONE else figures.elapsed_seconds
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts.items():
            facts.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
        numbers = Table.grid(padding=(0, 3))
        for _ in range(4):
            numbers.add_column(justify="right")
        for row in _cells(figures):
            numbers.add_row(*(Text(cell, style="dim" if index % 2 == 0 else "bold") for index, cell in enumerate(row)))
        bar = ProgressBar(figures.total_seconds, min(completed, figures.total_seconds), width=SPARK_WIDTH)
        body = Group(
            facts,
            Text(),
            numbers,
            Text(),
            Text(f"out   {sparkline(self._history)}", style="green"),
            bar,
        )
        return Panel(
            body, title=f"Tidelog demo: {figures.phase}", title_align="left", width=min(100, self._console.width)
        )


def _cells(f: Figures) -> list[tuple[str, str, str, str]]:
    return [
        ("lines in /s", f"{f.rate_in:,.0f}", "lines out /s", f"{f.rate_out:,.0f}"),
        ("lines in", f"{f.lines_in:,}", "lines out", f"{f.lines_out:,}"),
        ("end to end p50", milliseconds(f.p50_ms), "end to end p99", milliseconds(f.p99_ms)),
        ("segments", f"{f.segments:,}", "PUTs", f"{f.puts:,}"),
        (
            "bytes in segments",
            mebibytes(f.segment_bytes),
            "per segment",
            mebibytes(f.segment_bytes / max(f.segments, 1)),
        ),
        (
            "group's lag",
            "-" if f.lag_records is None else f"{f.lag_records:,} records",
            "duplicates",
            f"{f.duplicates:,}",
        ),
        ("memory held", mebibytes(f.held_bytes), "of a budget of", mebibytes(f.budget_bytes)),
    ]


def as_line(f: Figures) -> str:
    """The figures on one line, for logs and pipes. The rates are those since shipping began."""
    seconds = max(f.elapsed_seconds, 1e-6)
    lag = "-" if f.lag_records is None else f"{f.lag_records:,}"
    return (
        f"{f.elapsed_seconds:5.1f} s {f.phase}: in {f.lines_in:,} ({f.lines_in / seconds:,.0f}/s) out {f.lines_out:,} "
        f"({f.lines_out / seconds:,.0f}/s) end to end p50 {milliseconds(f.p50_ms)} p99 {milliseconds(f.p99_ms)} "
        f"segments {f.segments:,} ({mebibytes(f.segment_bytes)}) PUTs {f.puts:,} lag {lag} duplicates {f.duplicates:,}"
    )


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms"


def mebibytes(count: float) -> str:
    return f"{count / 1024:,.1f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:,.1f} MiB"


def sparkline(values: list[float]) -> str:
    """One character per value, the largest full height."""
    top = max(values, default=0.0) or 1.0
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(value / top * len(_SPARKS)))] for value in values)
