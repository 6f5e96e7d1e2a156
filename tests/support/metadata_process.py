"""The real ``tidelog metadata`` as a subprocess."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import free_port


class MetadataProcess:
    """One metadata process on a free port of 127.0.0.1, the same over restarts."""

    def __init__(self, folder: Path, store: str, settings: Mapping[str, str] | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.log_path = folder / f"metadata-{self.address.rpartition(':')[2]}.log"
        self._store = store
        self._settings = dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        tidelog = Path(sys.executable).with_name("tidelog")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDELOG_")}
        environment |= {f"TIDELOG_{name}": value for name, value in self._settings.items()} | {
            "TIDELOG_LOG__FORM": "json"
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(tidelog), "metadata", "--listen", self.address, "--store", self._store],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        deadline = time.monotonic() + 30
        while self.ready() is None:
            assert self.process.poll() is None, f"it exited with {self.process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, f"it does not listen:\n{self.log()}"
            time.sleep(0.02)

    def ready(self) -> dict[str, Any] | None:
        """``/readyz``; None when there is no answer."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except (urllib.error.URLError, OSError):
            return None

    def leads(self) -> bool:
        ready = self.ready()
        return ready is not None and ready["role"] == "leader"

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, within_s: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def stop(self) -> None:
        """End it in whatever state it is."""
        if self.process is None or self.process.poll() is not None:
            return
        self.thaw()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.kill()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
