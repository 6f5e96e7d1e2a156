"""Compaction: what it does to rows and GETs of a large log, and what it does not do to producers and consumers."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import servers
from benchmarks.rows import Bench, Figures, Row
from benchmarks.servers import CHECKOUT

GIB = 4.2
"""4 MiB for each of a thousand partitions, and a little more, so that not everything divides."""
STORAGE = "memory://?put_p50_ms=60&put_p99_ms=400&get_p50_ms=25&get_p99_ms=150"
EAGER = {"compaction__min_age_ms": 1_000, "compaction__job_bytes": 8 << 20, "compaction__fan_in": 4}
"""Much more compaction than by default: begun after a second instead of a minute, in steps of 8 MiB instead of 64."""


def compaction(bench: Bench) -> list[Row]:
    """A thousand partitions filled by nine simulated agents; then producers and consumers beside eager compaction."""
    return _log_at_rest() + _beside_clients(bench)


def _log_at_rest() -> list[Row]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compaction_load", "--gib", str(GIB)],
        check=False,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode != 0:
        raise RuntimeError(f"compaction failed:\n{done.stderr[-3000:]}")
    f: Figures = json.loads(done.stdout.splitlines()[-1])
    name = "compaction, 1,000 partitions, 9 agents"
    fewer = f["rows_per_gb_before"] / f["rows_per_gb_after"]
    busy = f["rows_per_gb_before"] / f["rows_per_gb_under_load"]
    gets = f["gets_per_4_mib_after"]
    return [
        Row(
            name,
            "metadata rows per GB",
            f"{f['rows_per_gb_after']:,.0f}",
            f"1/{fewer:.0f}",
            "<= 1/50 of before",
            fewer >= 50,
            f"before: {f['rows_per_gb_before']:,.0f}; right behind the load: {f['rows_per_gb_under_load']:,.0f}"
            f" (1/{busy:.0f}); {f['gib']:.1f} GiB",
        ),
        Row(
            name,
            "GETs per 4 MiB, cold read of a partition",
            f"{gets:.2f}",
            f"1/{f['gets_per_4_mib_before'] / gets:.0f}",
            "<= 1",
            gets <= 1,
            f"before: {f['gets_per_4_mib_before']:.0f}; {f['read_mib']:.0f} MiB read, the same records and offsets",
        ),
        Row(
            name,
            "bytes written per byte ingested",
            f"{f['write_amplification']:.2f}",
            "",
            "report",
            None,
            f"{f['compact_cpu_s']:.0f} s of CPU, {f['compact_gets']:.0f} GETs",
        ),
    ]


def _beside_clients(bench: Bench) -> list[Row]:
    measures = ("produce_p50_ms", "produce_p99_ms", "end_to_end_p50_ms", "end_to_end_p99_ms")
    found: dict[bool, Figures] = {}
    moved = 0.0
    for compacts in (False, True):
        settings: dict[str, object] = {"topics__partitions": 10, "compaction__enabled": compacts, **EAGER}
        with bench.running(servers.tidelog, storage=STORAGE, **settings) as server:
            found[compacts] = bench.load(server, "latency", "--partitions", 10, "--seconds", max(30.0, bench.seconds))
            if compacts:
                moved = server.metric("tidelog_compaction_written_bytes_total")
    return [
        Row(
            "compaction beside 20 MB/s of clients",
            measure.removesuffix("_ms").replace("_", " "),
            f"{found[True][measure]:.0f} ms",
            f"{found[True][measure] / found[False][measure]:.2f}",
            "<= 1.2 of without" if measure.endswith("p99_ms") else "report",
            found[True][measure] <= 1.2 * found[False][measure] if measure.endswith("p99_ms") else None,
            f"without: {found[False][measure]:.0f} ms; {moved / 1e6:.0f} MB written by compaction meanwhile",
        )
        for measure in measures
    ]
