"""Servers started as subprocesses: free ports, waiting until they listen, and stopping them for sure."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Below Linux's ephemeral ports. A client that keeps connecting to an ephemeral port nobody listens on can be given that
# very port as its own, talks to itself from then on, and keeps the restarted server from binding.
_PORTS = range(21_000, 32_000)
_taken: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on, never given out twice by this process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        start = probe.getsockname()[1] % len(_PORTS)
    for step in range(len(_PORTS)):
        port = _PORTS[(start + step) % len(_PORTS)]
        if port in _taken:
            continue
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.add(port)
        return port
    raise RuntimeError("no free port on 127.0.0.1")


class ServerProcess:
    """One server. Its output goes to a file; a server that dies while starting shows the end of it."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_path
        self._env = dict(env) if env is not None else None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, port: int, within_s: float = 60.0) -> None:
        """Start and wait until something listens on ``port``; raises RuntimeError when it does not."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._env
            )
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} exited with {self.process.returncode}:\n{self.log_tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        self.stop(grace_s=0)
        raise RuntimeError(f"{self.name} did not listen on port {port} in {within_s} s:\n{self.log_tail()}")

    def log_tail(self, size: int = 4_000) -> str:
        """The last ``size`` bytes of its output."""
        return self.log_path.read_bytes()[-size:].decode(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} has not been started"
        return self.process.pid

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after ``grace_s``. Does nothing when it is not running."""
        if self.process is None or self.process.poll() is not None:
            return
        if grace_s > 0:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
