"""Runs seeds, on one core or several, and says which of them failed and how to see it again."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator

from tests.simulation.bugs import planted
from tests.simulation.world import Outcome, collect_quietly, run_seed

TAIL_LINES = 40


@dataclasses.dataclass
class Totals:
    """What all seeds together came to."""

    seeds: int = 0
    virtual_seconds: float = 0.0
    acknowledged: int = 0
    reads: int = 0
    commits: int = 0
    faults: int = 0
    failed: list[int] = dataclasses.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.virtual_seconds += outcome.virtual_seconds
        self.acknowledged += outcome.acknowledged
        self.reads += outcome.reads
        self.commits += outcome.commits
        self.faults += outcome.faults
        if outcome.violations:
            self.failed.append(outcome.seed)

    def line(self) -> str:
        return (
            f"{self.seeds:,} seeds, {self.virtual_seconds / 3600:,.2f} virtual hours, {self.faults:,} faults,"
            f" {self.acknowledged:,} batches acknowledged, {self.reads:,} records read,"
            f" {self.commits:,} offset commits, {len(self.failed)} failed"
        )


def run_seeds(seeds: Iterable[int], bug: str | None = None) -> Iterator[Outcome]:
    """One after the other, in this process."""
    collect_quietly()
    gc.freeze()  # what is there now is there for good, and need not be looked at after each seed
    try:
        with planted(bug):
            for seed in seeds:
                yield run_seed(seed)
    finally:
        gc.unfreeze()


def _work(seeds: list[int], bug: str | None) -> list[Outcome]:
    outcomes = list(run_seeds(seeds, bug))
    for outcome in outcomes:
        del outcome.trace.lines[:-TAIL_LINES]
        outcome.trace.loop = None
    return outcomes


def run_parallel(seeds: range, jobs: int, bug: str | None = None, chunk: int = 10) -> Iterator[Outcome]:
    """In ``jobs`` processes, some seeds at a time; outcomes as they come, with the ends of their traces."""
    chunks = [list(seeds[start : start + chunk]) for start in range(0, len(seeds), chunk)]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=50) as pool:
        for outcomes in pool.imap_unordered(_Chunk(bug), chunks):
            yield from outcomes


class _Chunk:
    def __init__(self, bug: str | None) -> None:
        self._bug = bug

    def __call__(self, seeds: list[int]) -> list[Outcome]:
        return _work(seeds, self._bug)


def replay_command(seed: int, bug: str | None = None) -> str:
    planted_bug = "" if bug is None else f" --bug {bug}"
    return f"python -m tests.simulation --seed {seed}{planted_bug}"


def soak(seeds: range, jobs: int, bug: str | None, say: Callable[[str], None]) -> Totals:
    """Run all of ``seeds``; a progress line now and then, and every failure with its replay."""
    totals = Totals()
    began = told = time.monotonic()
    for outcome in run_parallel(seeds, jobs, bug):
        totals.add(outcome)
        if outcome.violations:
            say(f"\nseed {outcome.seed} FAILED")
            for violation in outcome.violations[:10]:
                say(f"  {violation}")
            say(f"  replay: {replay_command(outcome.seed, bug)}")
        now = time.monotonic()
        if now - told >= 5.0:
            told = now
            say(f"{now - began:6.0f} s  {totals.line()}")
    say(f"{time.monotonic() - began:6.0f} s  {totals.line()}")
    return totals


def cores() -> int:
    return os.cpu_count() or 1
