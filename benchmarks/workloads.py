"""The workloads. Each takes a :class:`Bench` and returns rows; the servers it starts are stopped before it returns."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import servers
from benchmarks.peers.jars import Unavailable
from benchmarks.servers import CHECKOUT, LOAD_CORE, Server

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``met`` is None where a goal is only to report."""

    workload: str
    what: str
    figure: str
    ratio: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Bench:
    """A scratch folder and the helpers of a workload."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def running(self, start: Callable[..., Server], **settings: object) -> Iterator[Server]:
        folder = self.folder / start.__name__
        folder.mkdir(parents=True, exist_ok=True)
        server = start(folder, **settings)
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, server: Server, command: str, *args: object) -> Figures:
        """Run the load generator on its own core; raises when it reports Kafka errors."""
        arguments = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "benchmarks.load", command]
        arguments += ["--port", str(server.port), *map(str, args)]
        cpu = server.cpu_seconds()
        done = subprocess.run(arguments, check=False, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            log = server.log.read_text()[-2000:] if server.log and server.log.exists() else ""
            raise RuntimeError(f"load against {server.name} failed:\n{done.stderr[-2000:]}\n{log}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        if figures.get("errors"):
            raise RuntimeError(f"{server.name} answered errors {figures['errors']}")
        figures["server_cpu_s"] = server.cpu_seconds() - cpu
        return figures


def rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.0f} MB/s"


def _peers(bench: Bench, arguments: tuple[object, ...], with_sink: bool, linger_ms: int) -> dict[str, Figures]:
    """The same produce load against each server in turn."""
    found: dict[str, Figures] = {}
    starts: list[tuple[Callable[..., Server], dict[str, object]]] = [
        (servers.tidelog, {"ingest__linger_ms": linger_ms}),
        (servers.tansu, {}),
        (servers.kafka, {}),
    ]
    if with_sink:
        starts.insert(0, (servers.sink, {}))
    for start, settings in starts:
        try:
            with bench.running(start, **settings) as server:
                extra = ("--sink", "--no-create") if server.name == "sink" else ()
                found[server.name] = bench.load(server, "produce", "--seconds", bench.seconds, *arguments, *extra)
        except Unavailable as why:
            print(f"  without {start.__name__}: {why}", file=sys.stderr)
    return found


def _against(
    workload: str, found: dict[str, Figures], measure: str, show: Callable[[float], str], goals: dict[str, float]
) -> list[Row]:
    ours = found["tidelog"]
    rows = [
        Row(workload, "tidelog", show(ours[measure]), note=f"load generator at {ours['generator_cpu']:.0%} of its core")
    ]
    for peer, figures in found.items():
        if peer == "tidelog":
            continue
        ratio = ours[measure] / figures[measure]
        goal = goals.get(peer)
        rows.append(
            Row(
                workload,
                f"against {peer}",
                show(figures[measure]),
                f"{ratio:.2f}x",
                f">= {goal}x" if goal else "report",
                None if goal is None else ratio >= goal,
                f"load generator at {figures['generator_cpu']:.0%}",
            )
        )
    return rows


def produce_large(bench: Bench) -> list[Row]:
    """1,000 records of 1 KB in each batch, one batch a request, 4 connections x 16 in flight, 4 partitions."""
    arguments = ("--records", 1000, "--value-bytes", 1010, "--connections", 4, "--partitions", 4, "--window", 16)
    found = _peers(bench, arguments, True, 20)
    return _against("produce 1 MB batches", found, "bytes_per_s", rate, {"tansu": 3, "sink": 0.4, "kafka": 1})


def produce_small(bench: Bench) -> list[Row]:
    """One 100-byte record a request, 4 connections x 4,096 in flight, 4 partitions."""
    arguments = ("--records", 1, "--value-bytes", 100, "--connections", 4, "--partitions", 4, "--window", 4096)
    found = _peers(bench, arguments, True, 20)
    return _against(
        "produce 1 record/request", found, "requests_per_s", lambda r: f"{r:,.0f}/s", {"tansu": 5, "kafka": 1}
    )


def produce_spread(bench: Bench) -> list[Row]:
    """100 partitions with 10 KB each in every request, 4 connections x 8 in flight."""
    arguments = ("--records", 10, "--value-bytes", 1010, "--connections", 4, "--partitions", 100)
    found = _peers(bench, (*arguments, "--partitions-per-request", 100, "--window", 8), True, 20)
    return _against("produce 100 x 10 KB", found, "bytes_per_s", rate, {"tansu": 3})


WORKLOADS: dict[str, Callable[[Bench], list[Row]]] = {
    "produce 1 MB batches": produce_large,
    "produce 1 record/request": produce_small,
    "produce 100 x 10 KB": produce_spread,
}
