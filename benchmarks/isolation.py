"""Agent groups: what the VIP group's producers notice of a plaintext group at saturation.

Everything that serves the VIP group shares core 0: the metadata process, the VIP agent and the prober. The plaintext
agent and the load that saturates it share core 1. What the groups have in common is the metadata service, and that is
what is measured. Each agent's objects lie in its own memory behind a constant delay: the object store is not what one
group could take from the other, and a random delay would hide a difference of some milliseconds. The load is stopped
and continued (SIGSTOP, SIGCONT) every few seconds, so that quiet and busy samples come from the same minutes of the
same processes.

``python -m benchmarks.isolation --port PORT --topic TOPIC --seconds S --rate R --samples FILE`` is the prober.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.frames import produce_errors, produce_request, record_batch
from benchmarks.load import create_topics
from benchmarks.peers.processes import ServerProcess, free_port
from benchmarks.rows import Bench, Row
from benchmarks.servers import CHECKOUT, LOAD_CORE, SERVER_CORE, Server, pin

STORAGE = "memory://?put_p50_ms=60&put_p99_ms=60&get_p50_ms=25&get_p99_ms=25"
LINGER_MS = 20
PLAINTEXT_PARTITIONS, VIP_PARTITIONS = 100, 4
PROBES_PER_S = 100
PERIOD_SECONDS, PERIODS_MIN, SETTLE_SECONDS = 8.0, 4, 2.0
"""A period is quiet or busy, and there are so many of each; its first seconds are not counted."""
GOAL = 1.1
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Period:
    """From ``began`` to ``ended``, in monotonic seconds, which all processes share; what was due within is counted."""

    busy: bool
    began: float
    ended: float


def isolation(bench: Bench) -> list[Row]:
    """Produce p99 of the VIP group while the plaintext group is saturated, over its p99 while it is quiet."""
    periods = max(PERIODS_MIN, int(bench.seconds))
    with contextlib.ExitStack() as stack:
        metadata = stack.enter_context(_metadata(bench.folder))
        plaintext = stack.enter_context(_agent(bench.folder, "plaintext", metadata, LOAD_CORE))
        vip = stack.enter_context(_agent(bench.folder, "vip", metadata, SERVER_CORE))
        load = stack.enter_context(_saturation(plaintext))
        seconds = 2 * (periods + 1) * (PERIOD_SECONDS + 1)  # to look at the processes takes a moment, too
        samples = bench.folder / "samples.json"
        probe = stack.enter_context(_prober(vip, seconds, samples))
        found, used = _alternate(load, probe, [metadata, plaintext, vip], periods)
        if probe.wait(120) != 0:
            assert probe.stderr is not None
            raise RuntimeError(f"the prober failed:\n{probe.stderr.read()[-2000:]}")
    quiet, busy = _latencies(json.loads(samples.read_text()), found)
    agent_cpu, load_cpu = used["plaintext"], used["load"]
    p99 = {name: _quantile(values, 0.99) for name, values in (("quiet", quiet), ("busy", busy))}
    p50 = {name: _quantile(values, 0.50) for name, values in (("quiet", quiet), ("busy", busy))}
    ratio = p99["busy"] / p99["quiet"]
    name = "VIP group beside a saturated group"
    return [
        Row(name, "produce p99, quiet", f"{p99['quiet']:.1f} ms", "", "", None, f"{len(quiet):,} requests"),
        Row(
            name,
            "produce p99, busy",
            f"{p99['busy']:.1f} ms",
            f"{ratio:.2f}x",
            f"<= {GOAL}x",
            ratio <= GOAL,
            f"{len(busy):,} requests; the other agent took {used['requests']:,.0f} requests/s, its core at "
            f"{agent_cpu + load_cpu:.0%} (agent {agent_cpu:.0%})",
        ),
        Row(
            name,
            "produce p50, busy",
            f"{p50['busy']:.1f} ms",
            f"{p50['busy'] / p50['quiet']:.2f}x",
            "report",
            None,
            f"quiet {p50['quiet']:.1f} ms; metadata process at {used['metadata']:.0%} of core 0",
        ),
    ]


def _alternate(
    load: subprocess.Popen[str], probe: subprocess.Popen[str], watched: Sequence[Server], periods: int
) -> tuple[list[Period], dict[str, float]]:
    """Quiet and busy periods in turn; these, and what the busy ones used: shares of a core, and requests a second.

    The first of each kind is not counted: codecs are compiled, and memory is touched for the first time.
    """
    plaintext = watched[1]
    found: list[Period] = []
    used = {"requests": 0.0, **{server.name: 0.0 for server in watched}, "load": 0.0}
    for number in range(-2, 2 * periods):
        busy = number % 2 == 1
        load.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
        time.sleep(SETTLE_SECONDS)
        cpu = {server.name: server.cpu_seconds() for server in watched} | {"load": _cpu_seconds(load.pid)}
        requests, began = _produced(plaintext), time.monotonic()
        time.sleep(PERIOD_SECONDS - SETTLE_SECONDS)
        ended = time.monotonic()
        if number >= 0:
            found.append(Period(busy, began, ended))
        if busy and number > 0:
            after = {server.name: server.cpu_seconds() for server in watched} | {"load": _cpu_seconds(load.pid)}
            for name, seconds in after.items():
                used[name] += (seconds - cpu[name]) / (ended - began) / periods
            used["requests"] += (_produced(plaintext) - requests) / (ended - began) / periods
        for process in (load, probe):
            if process.poll() is not None:
                raise RuntimeError(f"it ended early with {process.returncode}: {process.args}")
    return found, used


def _produced(server: Server) -> float:
    return server.metric('tidelog_agent_requests_total{api="Produce",outcome="ok"}')


def _latencies(samples: list[tuple[float, float]], periods: list[Period]) -> tuple[list[float], list[float]]:
    """Milliseconds, in order: of the quiet periods, and of the busy ones."""
    found: dict[bool, list[float]] = {False: [], True: []}
    for due, milliseconds in samples:
        for period in periods:
            if period.began <= due < period.ended:
                found[period.busy].append(milliseconds)
    if min(map(len, found.values())) < 1_000:
        raise RuntimeError(f"too few samples: {len(found[False])} quiet, {len(found[True])} busy")
    return sorted(found[False]), sorted(found[True])


def _quantile(values: list[float], share: float) -> float:
    return values[int(len(values) * share)]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


# --- the processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _running(name: str, command: list[str], folder: Path, port: int, http: int, core: int) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("TIDELOG_")}
    env |= {"TIDELOG_INGEST__LINGER_MS": str(LINGER_MS), "TIDELOG_TOPICS__PARTITIONS": str(PLAINTEXT_PARTITIONS)}
    process = ServerProcess(name, [str(Path(sys.executable).parent / "tidelog"), *command], folder / f"{name}.log", env)
    process.start(http)
    pin(process.pid, core)
    try:
        _await_ready(http)
        yield Server(name, port, process.pid, process.stop, folder / f"{name}.log", http)
    finally:
        process.stop()


def _await_ready(http: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=5):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"what listens on port {http} does not become ready")
        time.sleep(0.05)


@contextlib.contextmanager
def _metadata(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = ["metadata", "--listen", f"127.0.0.1:{port}", "--store", f"sqlite:///{folder}/metadata.sqlite"]
    with _running("metadata", command, folder, port, port, SERVER_CORE) as server:
        yield server


@contextlib.contextmanager
def _agent(folder: Path, group: str, metadata: Server, core: int) -> Iterator[Server]:
    kafka, http = free_port(), free_port()
    command = ["agent", "--group", group, "--storage", STORAGE, "--metadata", f"http://127.0.0.1:{metadata.port}"]
    command += ["--kafka", f"127.0.0.1:{kafka}", "--http", f"127.0.0.1:{http}"]
    with _running(group, command, folder, kafka, http, core) as server:
        yield server


@contextlib.contextmanager
def _saturation(server: Server) -> Iterator[subprocess.Popen[str]]:
    """One 100-byte record a request to each of many partitions, as many requests as are answered."""
    arguments = ["produce", "--port", server.port, "--topic", "plaintext", "--partitions", PLAINTEXT_PARTITIONS]
    arguments += ["--connections", PLAINTEXT_PARTITIONS, "--window", 200, "--records", 1, "--value-bytes", 100]
    with _child(["benchmarks.load", *map(str, arguments), "--seconds", "100000"], LOAD_CORE) as load:
        deadline = time.monotonic() + 60
        while server.metric("tidelog_agent_received_records_total") < 10_000:
            if load.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the load did not begin")
            time.sleep(0.1)
        try:
            yield load
        finally:
            load.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _prober(server: Server, seconds: float, samples: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = ["--port", server.port, "--topic", "vip", "--seconds", seconds, "--rate", PROBES_PER_S]
    arguments += ["--samples", samples]
    with _child(["benchmarks.isolation", *map(str, arguments)], SERVER_CORE) as probe:
        assert probe.stdout is not None
        if probe.stdout.readline().strip() != "probing":
            raise RuntimeError("the prober did not begin")
        yield probe


@contextlib.contextmanager
def _child(module: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    command = ["taskset", "-c", str(core), sys.executable, "-m", *module]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


# --- the prober -----------------------------------------------------------------------------------------------


async def probe(port: int, topic: str, seconds: float, rate: float) -> list[tuple[float, float]]:
    """Small produces, each sent when it is due: (when that was in monotonic seconds, milliseconds until its answer)."""
    await create_topics("127.0.0.1", port, [topic])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    batch = record_batch(10, 100, int(time.time() * 1000))
    frames = [produce_request(topic, {partition: batch}) for partition in range(VIP_PARTITIONS)]
    samples: list[tuple[float, float]] = []
    waiting: asyncio.Queue[float | None] = asyncio.Queue()

    async def answers() -> None:
        while (due := await waiting.get()) is not None:
            (length,) = struct.unpack(">i", await reader.readexactly(4))
            if errors := produce_errors(memoryview(await reader.readexactly(length))):
                raise SystemExit(f"produce was answered with errors {errors}")
            samples.append((due, (time.monotonic() - due) * 1000))

    print("probing", flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(answers())
        began = time.monotonic()
        for number in range(int(seconds * rate)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            waiting.put_nowait(due)
            writer.write(frames[number % VIP_PARTITIONS])
        waiting.put_nowait(None)
    writer.close()
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--samples", type=Path, required=True, help="the file that they are written to")
    args = parser.parse_args()
    uvloop.install()
    args.samples.write_text(json.dumps(asyncio.run(probe(args.port, args.topic, args.seconds, args.rate))))


if __name__ == "__main__":
    main()
