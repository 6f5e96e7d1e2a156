"""The metadata service: commits of a hundred agents, finding old extents, and a cluster of 90,000 partitions.

The metadata process is pinned to one core; PostgreSQL shares the other with the load, and has fsync on.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.processes import ServerProcess, free_port
from benchmarks.rows import Bench, Figures, Row
from benchmarks.servers import CHECKOUT, LOAD_CORE, SERVER_CORE, Server, pin
from tests.tools.postgres import PostgresServer, binaries

ONE_BY_ONE = "import metadata.pipeline as p; p.COMMANDS_PER_WRITE_MAX = 1; from tidelog.cli import main; main()"
"""The same process with a transaction for each commit: what group commit is measured against."""
EXTENTS = (1_000, 100_000, 10_000_000)
PARTITIONS = 90_000


def _start(folder: Path, store: str, *, one_by_one: bool = False, journal: bool = False) -> Server:
    port = free_port()
    tidelog = [sys.executable, "-c", ONE_BY_ONE] if one_by_one else [str(Path(sys.executable).parent / "tidelog")]
    command = [*tidelog, "metadata", "--listen", f"127.0.0.1:{port}", "--store", store]
    if journal:
        command += ["--storage", f"file://{folder}/objects"]
    folder.mkdir(parents=True, exist_ok=True)
    process = ServerProcess("metadata", command, folder / "metadata.log", dict(os.environ))
    process.start(port)
    pin(process.pid, SERVER_CORE)
    _await_leader(port)
    return Server("metadata", port, process.pid, process.stop, folder / "metadata.log", port)


def _await_leader(port: int) -> None:
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/rpc", timeout=5):
            return  # 503 raises: it does not lead yet
        if time.monotonic() > until:
            raise RuntimeError("the metadata process does not lead")
        time.sleep(0.05)


@contextlib.contextmanager
def _stores(bench: Bench) -> Iterator[list[tuple[str, str]]]:
    """(name, URL of an empty store): SQLite, and PostgreSQL where its server is installed."""
    with contextlib.ExitStack() as stack:
        stores = [("SQLite", f"sqlite:///{bench.folder}/metadata.sqlite")]
        if binaries() is not None:
            server = stack.enter_context(PostgresServer(durable=True))
            pin(server.pid, LOAD_CORE)
            stores.append(("PostgreSQL", server.create_database()))
            stores.append(("PostgreSQL one by one", server.create_database()))
        yield stores


def _load(what: str, *args: object) -> Figures:
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "benchmarks.metadata_load", what, *map(str, args)]
    done = subprocess.run(command, check=False, cwd=CHECKOUT, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"metadata load failed:\n{done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def commits(bench: Bench) -> list[Row]:
    """100 agents: 200 extents a commit, and one, against a transaction for each commit; idempotent against plain."""
    name = "metadata commits, 100 agents"
    rows = []
    with _stores(bench) as stores:
        urls = dict(stores)
        for store in ("SQLite", "PostgreSQL"):
            if store not in urls:
                continue
            plain = 0.0
            for extents, measure in ((200, "extents_per_s"), (1, "commits_per_s")):
                grouped = _committing(bench, store, urls[store], extents)
                other = urls[f"{store} one by one"] if store == "PostgreSQL" else urls[store]
                single = _committing(bench, store, other, extents, one_by_one=True)
                plain = plain or grouped[measure]
                unit = measure.removesuffix("_per_s") + "/s"
                goal = 100_000 if extents == 200 else None
                rows.append(
                    Row(
                        name,
                        f"{store}, {extents} extents each",
                        f"{grouped[measure]:,.0f} {unit}",
                        f"{grouped[measure] / single[measure]:.1f}x",
                        f">= {goal:,} {unit}" if goal else "report",
                        None if goal is None else grouped[measure] >= goal,
                        f"one transaction a commit: {single[measure]:,.0f}; {_latency(grouped)}",
                    )
                )
            idempotent = _committing(bench, store, urls[store], 200, idempotent=True)
            rows.append(
                Row(
                    name,
                    f"{store}, 200 extents each, idempotent",
                    f"{idempotent['extents_per_s']:,.0f} extents/s",
                    f"{idempotent['extents_per_s'] / plain:.2f}x",
                    "report",
                    None,
                    f"against plain batches; {_latency(idempotent)}",
                )
            )
    return rows


def _committing(
    bench: Bench, store: str, url: str, extents: int, *, one_by_one: bool = False, idempotent: bool = False
) -> Figures:
    """What 100 agents get from a fresh metadata process."""
    if store == "SQLite":
        Path(f"{bench.folder}/metadata.sqlite").unlink(missing_ok=True)
    server = _start(bench.folder / store, url, one_by_one=one_by_one)
    prefix = f"t{extents}{'i' if idempotent else ''}"
    try:
        return _load(
            "commit",
            *("--url", f"http://127.0.0.1:{server.port}"),
            *("--extents", extents, "--seconds", bench.seconds, "--prefix", prefix),
            *(["--idempotent"] if idempotent else []),
        )
    finally:
        server.stop()


def _latency(figures: Figures) -> str:
    return f"p50 {figures['p50_ms']:.0f} ms, p99 {figures['p99_ms']:.0f} ms; generator at {figures['generator']:.0%}"


def journal(bench: Bench) -> list[Row]:
    """The same commits with the journal going into a folder, against none; what it puts, and while nothing changes."""
    rows = []
    with _stores(bench) as stores:
        urls = dict(stores)
        for store in ("SQLite", "PostgreSQL"):
            if store not in urls:
                continue
            for extents, measure in ((200, "extents_per_s"), (1, "commits_per_s")):
                found: dict[bool, Figures] = {}
                puts = busy = 0.0
                for journaled in (False, True):
                    url = urls[f"{store} one by one"] if journaled and store == "PostgreSQL" else urls[store]
                    if store == "SQLite":
                        Path(f"{bench.folder}/metadata.sqlite").unlink(missing_ok=True)
                    folder = bench.folder / f"journal-{store}-{extents}"
                    server = _start(folder, url, journal=journaled)
                    try:
                        began = time.monotonic()
                        found[journaled] = _load(
                            "commit",
                            *("--url", f"http://127.0.0.1:{server.port}"),
                            *("--extents", extents, "--seconds", bench.seconds, "--prefix", f"j{extents}"),
                        )
                        busy = time.monotonic() - began
                        if journaled:
                            puts = len(list((folder / "objects" / "meta" / "journal").iterdir()))
                    finally:
                        server.stop()
                with_it, without = found[True], found[False]
                rows.append(
                    Row(
                        "metadata commits with the journal",
                        f"{store}, {extents} extents each",
                        f"{with_it[measure]:,.0f} {measure.removesuffix('_per_s')}/s",
                        f"{with_it[measure] / without[measure]:.2f}x",
                        "report",
                        None,
                        f"p99 {with_it['p99_ms']:.0f} ms, without {without['p99_ms']:.0f} ms;"
                        f" {puts:.0f} PUTs in {busy:.0f} s",
                    )
                )
    return rows


def finding(bench: Bench) -> list[Row]:
    """Random old offsets of a partition with few and with many extents, across the network boundary."""
    rows = []
    for store in ("SQLite", "PostgreSQL"):
        first: float | None = None
        for count in EXTENTS:
            with _stores(bench) as stores:
                if store not in dict(stores):
                    break
                Path(f"{bench.folder}/metadata.sqlite").unlink(missing_ok=True)
                url = dict(stores)[store]
                filled = _load("prefill", "--store", url, "--extents", count)
                began = time.monotonic()
                server = _start(bench.folder / store, url)
                started = time.monotonic() - began
                try:
                    found = _load("find", "--url", f"http://127.0.0.1:{server.port}", "--extents", count)
                    memory = server.resident_bytes()
                finally:
                    server.stop()
            first = first or found["p50_ms"]
            flat = found["p50_ms"] / first
            rows.append(
                Row(
                    "metadata, finding an extent",
                    f"{store}, {count:,} extents in the partition",
                    f"{found['p50_ms']:.2f} ms",
                    f"{flat:.2f}x",
                    "<= 2x of 1,000" if count != EXTENTS[0] else "",
                    None if count == EXTENTS[0] else flat <= 2,
                    f"p99 {found['p99_ms']:.2f} ms; ready after {started:.1f} s, {memory / 2**20:.0f} MiB;"
                    f" filled at {filled['extents_per_s']:,.0f}/s",
                )
            )
    return rows


def partitions(bench: Bench) -> list[Row]:
    """90,000 partitions: memory and start of the metadata process and of an agent, and what a Metadata answer takes."""
    rows = []
    with _stores(bench) as stores:
        for store, url in stores[:2]:
            server = _start(bench.folder / store, url)
            try:
                made = _load("topics", "--url", f"http://127.0.0.1:{server.port}", "--topics", PARTITIONS // 1_000)
            finally:
                server.stop()
            began = time.monotonic()
            server = _start(bench.folder / store, url)
            started = time.monotonic() - began
            kafka, http = free_port(), free_port()
            agent = ServerProcess(
                "agent",
                [
                    *(str(Path(sys.executable).parent / "tidelog"), "agent", "--zone", "a", "--group", "g"),
                    *("--metadata", f"http://127.0.0.1:{server.port}", "--storage", "memory://"),
                    *("--kafka", f"127.0.0.1:{kafka}", "--http", f"127.0.0.1:{http}"),
                ],
                bench.folder / "agent.log",
                dict(os.environ),
            )
            began = time.monotonic()
            agent.start(http)
            pin(agent.pid, SERVER_CORE)
            agent_started = time.monotonic() - began
            try:
                answers = _load("describe", "--port", kafka)
                resident = Server("agent", kafka, agent.pid, agent.stop).resident_bytes()
                memory = server.resident_bytes()
            finally:
                agent.stop()
                server.stop()
            rows.append(
                Row(
                    "metadata, 90,000 partitions",
                    f"{store}: metadata process",
                    f"{memory / 2**20:.0f} MiB",
                    "",
                    "report",
                    None,
                    f"ready after {started:.1f} s; {PARTITIONS / made['seconds']:,.0f} partitions created a second",
                )
            )
            if store == "SQLite":
                rows.append(
                    Row(
                        "metadata, 90,000 partitions",
                        "Metadata answer, all topics",
                        f"{answers['p50_ms']:.0f} ms",
                        "",
                        "report",
                        None,
                        f"first {answers['first_ms']:.0f} ms; a ping beside it waits {answers['ping_max_ms']:.0f} ms at"
                        f" most; agent {resident / 2**20:.0f} MiB, ready after {agent_started:.1f} s",
                    )
                )
    return rows
