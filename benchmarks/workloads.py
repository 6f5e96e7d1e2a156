"""The workloads. Each takes a :class:`Bench` and returns rows; the servers it starts are stopped before it returns."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable

from benchmarks import compaction, isolation, metadata, servers, zones
from benchmarks.peers.jars import Unavailable
from benchmarks.rows import Bench, Figures, Row
from benchmarks.servers import CHECKOUT, Server
from tests.support.certificates import Authority

MEMORY = "memory://?capacity_bytes=4000000000"
"""Pages touched at the start: the first touch of fresh memory would otherwise be most of what is measured."""
WARMUP_SECONDS = {"sink": 1, "tidelog": 3, "tansu": 3, "kafka": 15}
"""Load before counting begins: caches fill, and the JVM compiles."""


def rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:,.0f} MB/s"


def _peers(
    bench: Bench, arguments: tuple[object, ...], *, megabyte_requests: bool, linger_ms: int = 20, partitions: int = 4
) -> dict[str, Figures]:
    """The same produce load against each server in turn."""
    found: dict[str, Figures] = {}
    starts: list[tuple[Callable[..., Server], dict[str, object]]] = [
        (servers.sink, {}),
        (servers.tidelog, {"storage": MEMORY, "ingest__linger_ms": linger_ms, "topics__partitions": partitions}),
        (servers.tansu, {}),
        (servers.kafka, {"partitions": partitions}),
    ]
    for start, settings in starts:
        try:
            with bench.running(start, **settings) as server:
                extra = ("--sink", "--no-create") if server.name == "sink" else ()
                if server.name == "tidelog" and megabyte_requests:
                    # The memory store holds 4 GB: so many requests, not so many seconds.
                    bench.load(server, "produce", "--warmup", 0, "--requests", 200, *arguments)
                    found[server.name] = bench.load(server, "produce", "--warmup", 0, "--requests", 700, *arguments)
                    continue
                warmup = WARMUP_SECONDS[server.name]
                found[server.name] = bench.load(
                    server, "produce", "--seconds", bench.seconds, "--warmup", warmup, *arguments, *extra
                )
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
    """1,000 records of 1 KB in each batch, one batch a request, 4 connections x 32 in flight, 4 partitions."""
    arguments = ("--records", 1000, "--value-bytes", 1010, "--connections", 4, "--partitions", 4, "--window", 32)
    found = _peers(bench, arguments, megabyte_requests=True)
    return _against("produce 1 MB batches", found, "bytes_per_s", rate, {"tansu": 3, "sink": 0.4, "kafka": 1})


def produce_small(bench: Bench) -> list[Row]:
    """One 100-byte record a request, 4 connections x 4,096 in flight, 4 partitions."""
    arguments = ("--records", 1, "--value-bytes", 100, "--connections", 4, "--partitions", 4, "--window", 4096)
    found = _peers(bench, arguments, megabyte_requests=False)
    return _against(
        "produce 1 record/request", found, "requests_per_s", lambda r: f"{r:,.0f}/s", {"tansu": 5, "kafka": 1}
    )


def produce_spread(bench: Bench) -> list[Row]:
    """100 partitions with 10 KB each in every request, 4 connections x 32 in flight."""
    arguments = ("--records", 10, "--value-bytes", 1010, "--connections", 4, "--partitions", 100)
    found = _peers(
        bench, (*arguments, "--partitions-per-request", 100, "--window", 32), megabyte_requests=True, partitions=100
    )
    return _against("produce 100 x 10 KB", found, "bytes_per_s", rate, {"tansu": 3})


def produce_tls(bench: Bench) -> list[Row]:
    """1 MB batches over TLS 1.3 (AES-256-GCM), against the same without."""
    name = "produce 1 MB batches over TLS"
    arguments = ("--warmup", 0, "--connections", 4, "--partitions", 4, "--window", 4, "--records", 1000)
    authority = Authority(bench.folder)
    pair = authority.issue("server")
    secure: dict[str, object] = {"tls__certificate": pair.certificate, "tls__key": pair.key}
    kinds: list[tuple[str, dict[str, object], tuple[object, ...]]] = [
        ("plaintext", {}, ()),
        ("TLS", secure, ("--tls-ca", authority.path)),
    ]
    found: dict[str, Figures] = {}
    for kind, settings, extra in kinds:
        with bench.running(servers.tidelog, storage=MEMORY, ingest__linger_ms=20, **settings) as server:
            bench.load(server, "produce", "--requests", 100, *arguments, *extra)
            found[kind] = bench.load(server, "produce", "--requests", 500, *arguments, *extra)
    rows = []
    for kind, figures in found.items():
        ratio = figures["bytes_per_s"] / found["plaintext"]["bytes_per_s"]
        sent_bytes = figures["requests_total"] * figures["bytes_per_s"] / figures["requests_per_s"]
        rows.append(
            Row(
                name,
                kind,
                rate(figures["bytes_per_s"]),
                "" if kind == "plaintext" else f"{ratio:.2f}x",
                "" if kind == "plaintext" else "report",
                None,
                f"{figures['server_cpu_s'] / sent_bytes * 1e9:.2f} CPU s per GB; load generator at "
                f"{figures['generator_cpu']:.0%} of its core",
            )
        )
    return rows


def _fill(bench: Bench, server: Server, megabytes: int) -> None:
    """Put ``megabytes`` of 1 MB batches on 4 partitions."""
    bench.load(
        server,
        "produce",
        "--connections",
        4,
        "--partitions",
        4,
        "--window",
        8,
        "--warmup",
        0,
        "--requests",
        megabytes // 4,
    )


def _read(bench: Bench, server: Server, megabytes: int) -> Figures:
    """4 consumers, one a partition, from offset 0 until each has had its share."""
    share = megabytes // 4 * 1_000_000
    return bench.load(server, "fetch", "--consumers", 4, "--partitions", 4, "--bytes", share, "--seconds", 240)


def _reads(workload: str, bench: Bench, found: dict[str, Figures], goals: dict[str, float]) -> list[Row]:
    return _against(workload, found, "bytes_per_s", rate, goals)


def tail_fetch(bench: Bench) -> list[Row]:
    """4 consumers read 160 MB that was just produced: from the writer's memory, from Kafka's page cache."""
    found: dict[str, Figures] = {}
    for start in (servers.tidelog, servers.tansu, servers.kafka):
        with bench.running(start) as server:
            _fill(bench, server, 160)
            _read(bench, server, 160)
            found[server.name] = _read(bench, server, 160)
    return _reads("tail fetch, 4 consumers", bench, found, {"kafka": 1})


def catch_up(bench: Bench) -> list[Row]:
    """2 GB from the beginning, after a restart: nothing of it is in the agent's caches."""
    rows: list[Row] = []
    peers: dict[str, Figures] = {}
    for start in (servers.tansu, servers.kafka):
        with bench.running(start) as server:
            _fill(bench, server, CATCH_UP_MB)
            peers[server.name] = _read(bench, server, CATCH_UP_MB)
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(servers.s3(bench.folder))
        for kind, storage in (("file://", f"file://{bench.folder}/objects"), ("S3 (versitygw)", s3)):
            folder = bench.folder / "catch-up"
            folder.mkdir(parents=True, exist_ok=True)
            server = servers.tidelog(folder, storage, ingest__linger_ms=20)
            try:
                _fill(bench, server, CATCH_UP_MB)
            finally:
                server.stop()
            server = servers.tidelog(folder, storage, ingest__linger_ms=20)
            try:
                found = {"tidelog": _read(bench, server, CATCH_UP_MB), **peers}
            finally:
                server.stop()
            shutil.rmtree(folder)
            rows += _reads(f"catch-up of 2 GB from {kind}", bench, found, {"tansu": 1})
    return rows


def idle_connections(bench: Bench) -> list[Row]:
    """Memory of 10,000 connections that send nothing."""
    count = 10_000
    rows = []
    for start in (servers.tidelog, servers.kafka):
        with bench.running(start) as server:
            bench.load(server, "produce", "--connections", 1, "--seconds", 1, "--records", 1)
            before = server.resident_bytes()
            command = [sys.executable, "-m", "benchmarks.load", "idle", "--port", str(server.port)]
            command += ["--connections", str(count)]
            with subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                if process.stdout.readline().strip() != "open":
                    raise RuntimeError(f"{server.name} did not take {count} connections")
                each = (server.resident_bytes() - before) / count
                process.communicate("close\n", timeout=60)
            ours = server.name == "tidelog"
            rows.append(
                Row(
                    "10,000 idle connections",
                    server.name,
                    f"{each / 1000:.1f} KB each",
                    "",
                    "<= 30 KB" if ours else "report",
                    each <= 30_000 if ours else None,
                    "anonymous memory of the process",
                )
            )
    return rows


def latency(bench: Bench) -> list[Row]:
    """Open-loop 20 MB/s in 100 KB batches to 10 partitions; PUT p50 60 p99 400 ms, GET p50 25 p99 150 ms, lognormal."""
    storage = "memory://?put_p50_ms=60&put_p99_ms=400&get_p50_ms=25&get_p99_ms=150"
    goals = {250: (210, 450, 230, 500), 100: (135, 330, 155, 380)}
    rows = []
    for linger_ms, goal in goals.items():
        for hedged in (True, False):
            settings = {"ingest__linger_ms": linger_ms, "topics__partitions": 10}
            if not hedged:
                settings["ingest__hedge_after_ms"] = 0
            with bench.running(servers.tidelog, storage=storage, **settings) as server:
                seconds = max(30.0, bench.seconds)
                f = bench.load(server, "latency", "--partitions", 10, "--seconds", seconds)
                puts, hedges = (
                    server.metric("tidelog_ingest_segments_total"),
                    server.metric("tidelog_ingest_hedges_total"),
                )
            name = f"latency, linger_ms {linger_ms}" + ("" if hedged else ", hedging off")
            measures = ("produce_p50_ms", "produce_p99_ms", "end_to_end_p50_ms", "end_to_end_p99_ms")
            for measure, limit in zip(measures, goal, strict=True):
                rows.append(
                    Row(
                        name,
                        measure.removesuffix("_ms").replace("_", " "),
                        f"{f[measure]:.0f} ms",
                        f"{f[measure] / limit:.2f}",
                        f"<= {limit} ms" if hedged else "report",
                        f[measure] <= limit if hedged else None,
                        f"{f['produced']:.0f} requests",
                    )
                )
            if hedged:
                share = hedges / puts
                rows.append(
                    Row(name, "extra PUTs", f"{share:.1%}", "", "<= 20 %", share <= 0.2, f"{puts:.0f} segments")
                )
    return rows


def cpu(bench: Bench) -> list[Row]:
    """CPU seconds of the server for 1 GB in (1 MB batches) and out once; S3 server excluded."""
    rows = []
    used: dict[str, float] = {}
    with servers.s3(bench.folder) as storage:
        for start, settings in ((servers.tidelog, {"storage": storage}), (servers.kafka, {}), (servers.tansu, {})):
            with bench.running(start, **settings) as server:
                _fill(bench, server, 200)
                began = server.cpu_seconds()
                _fill(bench, server, 1000)
                _read(bench, server, 1000)
                used[server.name] = server.cpu_seconds() - began
    for name, seconds in used.items():
        ratio = "" if name == "tidelog" else f"{used['tidelog'] / seconds:.2f}x"
        rows.append(Row("CPU seconds per GB, in and out", name, f"{seconds:.2f} s", ratio, "report"))
    return rows


CATCH_UP_MB = 2_000

WORKLOADS: dict[str, Callable[[Bench], list[Row]]] = {
    "produce 1 MB batches": produce_large,
    "produce over TLS": produce_tls,
    "produce 1 record/request": produce_small,
    "produce 100 x 10 KB": produce_spread,
    "tail fetch": tail_fetch,
    "catch-up": catch_up,
    "idle connections": idle_connections,
    "latency": latency,
    "cpu": cpu,
    "isolation": isolation.isolation,
    "metadata commits": metadata.commits,
    "metadata journal": metadata.journal,
    "metadata finding": metadata.finding,
    "metadata partitions": metadata.partitions,
    "zones": zones.zones,
    "compaction": compaction.compaction,
}
