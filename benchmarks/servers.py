"""The systems under measurement behind one shape: started on one core, with their CPU and memory to read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.kafka import Kafka
from benchmarks.peers.processes import ServerProcess, free_port
from benchmarks.peers.tansu import Tansu

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
    return Server("tidelog", port, process.pid, process.stop, folder / "tidelog.log")


def tansu(folder: Path) -> Server:
    peer = Tansu(folder)
    port = int(peer.start().rsplit(":", 1)[1])
    pin(peer.pid)
    return Server("tansu", port, peer.pid, peer.stop)


def kafka(folder: Path) -> Server:
    peer = Kafka(folder, settings={"log.retention.bytes": "-1", "message.max.bytes": "10485760"})
    port = int(peer.start().rsplit(":", 1)[1])
    pin(peer.pid)
    return Server("kafka", port, peer.pid, peer.stop)
