"""The systems under measurement behind one shape: started on one core, with their CPU and memory to read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.jars import TOOLS, Unavailable
from benchmarks.peers.kafka import Kafka
from benchmarks.peers.processes import ServerProcess, free_port
from benchmarks.peers.tansu import Tansu
from tests.tools import versitygw

SERVER_CORE, LOAD_CORE = 0, (os.cpu_count() or 2) - 1
_TICKS = os.sysconf("SC_CLK_TCK")
CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(slots=True)
class Server:
    """A running server, pinned to :data:`SERVER_CORE`; ``stop`` ends it."""

    name: str
    port: int
    pid: int
    stop: Callable[[], None]
    log: Path | None = None
    http_port: int | None = None

    def metric(self, name: str) -> float:
        """The sum of all series of one of its Prometheus metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{"))]
        if not found:
            raise RuntimeError(f"{self.name} has no metric {name}")
        return sum(found)

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_bytes(self) -> int:
        """Memory of its own: anonymous pages, not mapped files."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("no RssAnon in /proc")


def pin(pid: int, core: int = SERVER_CORE) -> None:
    """Put every thread of the process, and those to come, on ``core``."""
    subprocess.run(["taskset", "-acp", str(core), str(pid)], check=True, capture_output=True)


def sink(folder: Path) -> Server:
    port = free_port()
    process = ServerProcess("sink", [sys.executable, "-m", "benchmarks.sink", str(port)], folder / "sink.log")
    process.start(port)
    pin(process.pid)
    return Server("sink", port, process.pid, process.stop)


def tidelog(folder: Path, storage: str = "memory://", **settings: object) -> Server:
    """``tidelog up`` with the embedded SQLite store; settings as ``ingest__linger_ms=100``."""
    port, http = free_port(), free_port()
    env = {**os.environ, **{f"TIDELOG_{name.upper()}": str(value) for name, value in settings.items()}}
    command = [str(Path(sys.executable).parent / "tidelog"), "up", "--kafka", f"127.0.0.1:{port}"]
    command += ["--http", f"127.0.0.1:{http}", "--data", str(folder / "data"), "--storage", storage]
    folder.mkdir(parents=True, exist_ok=True)
    process = ServerProcess("tidelog", command, folder / "tidelog.log", env)
    process.start(http)
    pin(process.pid)
    return Server("tidelog", port, process.pid, process.stop, folder / "tidelog.log", http)


def tansu(folder: Path) -> Server:
    peer = Tansu(folder)
    port = int(peer.start().rsplit(":", 1)[1])
    pin(peer.pid)
    return Server("tansu", port, peer.pid, peer.stop)


def kafka(folder: Path, partitions: int = 4) -> Server:
    peer = Kafka(folder, settings={"num.partitions": str(partitions)})
    port = int(peer.start().rsplit(":", 1)[1])
    pin(peer.pid)
    return Server("kafka", port, peer.pid, peer.stop)


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[str]:
    """versitygw on a folder, with one bucket: the storage URL, good for :func:`tidelog` while inside."""
    binary = versitygw.build(TOOLS)
    if binary is None:
        raise Unavailable("go is not installed, so versitygw cannot be built")
    port = free_port()
    (folder / "s3" / "bench").mkdir(parents=True)
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret"}
    before = {name: os.environ.get(name) for name in keys}
    command = [str(binary), "--access", "bench", "--secret", "bench-secret", "--port", f"127.0.0.1:{port}", "--quiet"]
    command.append("--keep-alive")  # as S3 does; without it the server closes after every answer
    process = ServerProcess("versitygw", [*command, "posix", str(folder / "s3")], folder / "versitygw.log")
    process.start(port)
    pin(process.pid, LOAD_CORE)
    os.environ.update(keys)
    try:
        yield f"s3://bench/tidelog?endpoint=http://127.0.0.1:{port}&region=us-east-1"
    finally:
        process.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder / "s3")
