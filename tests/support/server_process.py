"""A server as a subprocess that a test starts, asks, kills, freezes and starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class ServerProcess:
    """One process with health and metrics at ``http`` (host:port), and all it ever writes in ``log_path``.

    ``environment`` is added to this process's, from which Tidelog's settings are taken away.
    """

    def __init__(
        self, name: str, command: Sequence[str], http: str, log_path: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.http = http
        self.log_path = log_path
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, ready_within_s: float = 30.0) -> None:
        """Start it and wait until it is ready; raises RuntimeError with its log when it does not become so."""
        self.spawn()
        self.wait_ready(ready_within_s)

    def spawn(self) -> None:
        """Start it without waiting."""
        assert self.process is None or self.process.poll() is not None, "it is still running"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
        environment.update(self.environment)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait_ready(self, within_s: float = 30.0) -> None:
        """Wait for ``/readyz`` to say yes."""
        assert self.process is not None, "it has not been started"
        deadline = time.monotonic() + within_s
        while not self.is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} exited with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready after {within_s} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None, "it has not been started"
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None, "it has not been started"
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self, within_s: float = 40.0) -> int:
        """SIGTERM; its exit code once it has drained."""
        assert self.process is not None, "it has not been started"
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def stop(self) -> None:
        """End it in whatever state it is."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        self.thaw()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.kill()

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """Everything it has written so far, over all restarts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, size: int = 5_000) -> str:
        return self.log()[-size:]

    def metrics(self) -> dict[str, float]:
        """``/metrics`` as ``{'name{label="value"}': number}``."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}
