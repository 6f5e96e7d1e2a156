"""The real ``tidelog metadata`` as a subprocess."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import free_port
from tests.support.server_process import ServerProcess


class MetadataProcess(ServerProcess):
    """One metadata process on a free port of 127.0.0.1, the same over restarts."""

    def __init__(self, folder: Path, store: str, settings: Mapping[str, str] | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        command = [str(Path(sys.executable).with_name("tidelog")), "metadata", "--listen", self.address]
        variables = {f"TIDELOG_{name}": value for name, value in (settings or {}).items()} | {
            "TIDELOG_LOG__FORM": "json"
        }
        name = f"metadata-{self.address.rpartition(':')[2]}"
        super().__init__(name, [*command, "--store", store], self.address, folder / f"{name}.log", variables)

    def start(self, *, ready_within_s: float = 30.0) -> None:
        """Start it, and wait until it listens: it need not be ready."""
        self.spawn()
        assert self.process is not None
        deadline = time.monotonic() + ready_within_s
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
