"""Three zones: how soon a record is seen in another zone, and what tailing and replaying cost in GETs.

The agents are real processes over one folder. Nothing is pinned: what is counted are GETs, and time only for single
records on an idle cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.processes import ServerProcess, free_port
from benchmarks.rows import Bench, Figures, Row
from benchmarks.servers import CHECKOUT, Server

LAYOUT = "abbcc"
"""The zone of each agent; only the one in zone a is written to."""
PARTITIONS = 6
BYTES = 400_000_000
BLOCK = 4 * 2**20


@contextlib.contextmanager
def _agents(bench: Bench, metadata: str, generation: int, linger_ms: int = 250) -> Iterator[list[Server]]:
    tidelog = str(Path(sys.executable).parent / "tidelog")
    with contextlib.ExitStack() as stack:
        agents = []
        for number, zone in enumerate(LAYOUT):
            kafka, http = free_port(), free_port()
            command = [tidelog, "agent", "--metadata", metadata, "--storage", f"file://{bench.folder}/objects"]
            command += ["--zone", zone, "--group", "g", "--kafka", f"127.0.0.1:{kafka}", "--http", f"127.0.0.1:{http}"]
            log = bench.folder / f"agent-{generation}-{number}.log"
            process = ServerProcess("agent", command, log, {**os.environ, "TIDELOG_INGEST__LINGER_MS": str(linger_ms)})
            process.start(http)
            stack.callback(process.stop)
            agents.append(Server(zone, kafka, process.pid, process.stop, log, http))
        yield agents


@contextlib.contextmanager
def _metadata(bench: Bench) -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).parent / "tidelog"), "metadata", "--listen", f"127.0.0.1:{port}"]
    command += ["--store", f"sqlite:///{bench.folder}/metadata.sqlite"]
    process = ServerProcess("metadata", command, bench.folder / "metadata.log", dict(os.environ))
    process.start(port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()


def _client(agents: list[Server], what: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.zones_load", what, "--bootstrap", f"127.0.0.1:{agents[0].port}"]
    command += ["--partitions", str(PARTITIONS), *map(str, args)]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _figures(process: subprocess.Popen[str]) -> Figures:
    out, err = process.communicate(timeout=300)
    if process.returncode != 0:
        raise RuntimeError(f"a client failed:\n{err[-3000:]}")
    figures: Figures = json.loads(out.splitlines()[-1])
    return figures


def _gets(agents: list[Server], zone: str) -> float:
    return sum(agent.metric("tidelog_fetch_block_reads_total") for agent in agents if agent.name == zone)


def zones(bench: Bench) -> list[Row]:
    rows: list[Row] = []
    with _metadata(bench) as metadata:
        with _agents(bench, metadata, 0, linger_ms=20) as agents:
            for topic in ("visible", "zones"):
                _figures(_client(agents, "create", "--topic", topic))
            seen = _figures(_client(agents, "visible", "--topic", "visible", "--seconds", max(15.0, bench.seconds)))
            for measure, goal in (("p50_ms", "report"), ("p99_ms", "<= 50 ms")):
                what = "acknowledged in zone a to seen in zone b, " + measure.removesuffix("_ms")
                met = None if goal == "report" else seen[measure] <= 50
                note = f"{seen['n']:.0f} records, one at a time, file://, linger_ms 20"
                rows.append(Row("three zones", what, f"{seen[measure]:.1f} ms", "", goal, met, note))
        with _agents(bench, metadata, 1) as agents:
            readers = []
            for zone in "abc":
                readers.append(_client(agents, "read", "--zone", zone, "--consumers", 2, "--bytes", BYTES))
                assert readers[-1].stdout is not None
                readers[-1].stdout.readline()  # "ready"
            before = {zone: _gets(agents, zone) for zone in "abc"}
            written = agents[0].metric("tidelog_ingest_segment_bytes_sum")
            _figures(_client(agents, "produce", "--zone", "a", "--bytes", BYTES))
            written = agents[0].metric("tidelog_ingest_segment_bytes_sum") - written
            for reader in readers:
                _figures(reader)
            for zone in "abc":
                rows.append(_row("tail, 2 consumers in each zone", zone, _gets(agents, zone) - before[zone], written))
        with _agents(bench, metadata, 2) as agents:  # nothing in their caches
            _figures(_client(agents, "read", "--zone", "b", "--consumers", 6, "--bytes", BYTES, "--seconds", 120))
            rows.append(_row("cold replay, 6 consumers of 2 agents", "b", _gets(agents, "b"), written))
    return rows


def _row(what: str, zone: str, gets: float, written: float) -> Row:
    blocks = gets * BLOCK / written
    goal = "0" if zone == "a" else ("<= 1 per 4 MiB" if what.startswith("tail") else "report")
    met = None if goal == "report" else (gets == 0 if zone == "a" else blocks <= 1)
    note = "the writer's zone" if zone == "a" else f"{blocks:.2f} for each 4 MiB written"
    return Row("three zones", f"{what}: GETs per GB, zone {zone}", f"{gets / written * 1e9:.0f}", "", goal, met, note)
