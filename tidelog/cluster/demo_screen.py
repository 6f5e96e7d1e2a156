"""What the cluster demo shows: one screen that is redrawn on a terminal, plain lines every few seconds elsewhere."""

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

from tidelog.cluster.status import byte_count
from tidelog.demo.screen import milliseconds

PLAIN_SECONDS = 3.0
BAR_WIDTH = 60


@dataclass(frozen=True, slots=True)
class ZoneFigures:
    """Lines a second, of late."""

    zone: str
    shipped: float
    read: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The demo at one moment, ``elapsed_seconds`` after shipping began (0 before). Latencies are in milliseconds."""

    phase: str
    elapsed_seconds: float
    total_seconds: float
    zones: tuple[ZoneFigures, ...]
    lines_in: int
    lines_out: int
    p50_ms: float | None
    p99_ms: float | None
    duplicates: int
    crossed_bytes: int
    agents_ready: int
    generation: int


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
        self._facts = facts
        self._width = min(100, console.width)
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.__exit__(kind, error, at)

    def say(self, text: str) -> None:
        self._live.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def show(self, figures: Figures) -> None:
        self._live.update(self._draw(figures), refresh=True)

    def _draw(self, f: Figures) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        for name, value in self._facts.items():
            facts.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
        zones = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("zone", "shipped /s", "read /s"):
            zones.add_column(column, justify="left" if column == "zone" else "right")
        for zone in f.zones:
            zones.add_row(zone.zone, f"{zone.shipped:,.0f}", f"{zone.read:,.0f}")
        numbers = Table.grid(padding=(0, 3))
        for _ in range(4):
            numbers.add_column(justify="right")
        for row in _cells(f):
            numbers.add_row(*(Text(cell, style="dim" if index % 2 == 0 else "bold") for index, cell in enumerate(row)))
        bar = ProgressBar(f.total_seconds, min(f.elapsed_seconds, f.total_seconds), width=BAR_WIDTH)
        body = Group(facts, Text(), zones, Text(), numbers, Text(), bar)
        return Panel(body, title=f"Tidelog cluster demo: {f.phase}", title_align="left", width=self._width)


def _cells(f: Figures) -> list[tuple[str, str, str, str]]:
    return [
        ("lines in", f"{f.lines_in:,}", "lines out", f"{f.lines_out:,}"),
        ("end to end p50", milliseconds(f.p50_ms), "end to end p99", milliseconds(f.p99_ms)),
        ("agents ready", f"{f.agents_ready}", "metadata generation", f"{f.generation}"),
        ("crossed zones", byte_count(f.crossed_bytes), "read twice", f"{f.duplicates:,}"),
    ]


def as_line(f: Figures) -> str:
    """The figures on one line, for logs and pipes."""
    zones = "  ".join(f"{zone.zone} {zone.shipped:,.0f}/s in {zone.read:,.0f}/s out" for zone in f.zones)
    return (
        f"{f.elapsed_seconds:5.1f} s {f.phase}: {zones}  end to end p50 {milliseconds(f.p50_ms)} p99 "
        f"{milliseconds(f.p99_ms)}  crossed zones {byte_count(f.crossed_bytes)}  {f.agents_ready} agents ready  "
        f"generation {f.generation}"
    )
