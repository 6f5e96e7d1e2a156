"""``make bench``: every workload of docs/performance.md in one run, every row a ratio against something in that run.

``python -m benchmarks [--only WORD ...] [--seconds 5] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Bench, Row
from benchmarks.servers import CHECKOUT, LOAD_CORE
from benchmarks.workloads import WORKLOADS


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return (
        f"{model}, {os.cpu_count()} cores, {memory} GiB, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, commit {commit.stdout.strip() or 'unknown'}"
    )


def markdown(rows: list[Row]) -> str:
    """The table as docs/performance.md has it."""
    lines = ["| workload | measure | figure | ratio | goal | met | note |", "|---|---|---:|---:|---|---|---|"]
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "**no**")
        lines.append(f"| {row.workload} | {row.what} | {row.figure} | {row.ratio} | {row.goal} | {met} | {row.note} |")
    return f"Machine: {machine()}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="workloads whose name contains one of these words")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"Machine: {machine()}. Servers on core 0, load on core {LOAD_CORE}.")
    folder = Path(tempfile.mkdtemp(prefix="tidelog-bench-"))
    rows: list[Row] = []
    try:
        for name, workload in WORKLOADS.items():
            if args.only and not any(word in name for word in args.only):
                continue
            console.print(f"… {name}", style="dim", highlight=False)
            found = workload(Bench(folder / str(len(rows)), args.seconds))
            for row in found:
                console.print(f"  {row.what}: {row.figure}  {row.ratio}  {row.note}", highlight=False)
            rows += found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(title="Tidelog against its peers and limits, one run")
    for column in ("workload", "measure", "figure", "ratio", "goal", "met", "note"):
        table.add_column(column, overflow="fold", justify="right" if column in ("figure", "ratio") else "left")
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "[red]no[/red]")
        table.add_row(row.workload, row.what, row.figure, row.ratio, row.goal, met, row.note)
    console.print(table)
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    if args.json:
        args.json.write_text(json.dumps([row.as_dict() for row in rows], indent=1))


if __name__ == "__main__":
    main()
