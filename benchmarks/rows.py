"""What a workload gives, and what it is given."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.servers import CHECKOUT, LOAD_CORE, Server

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``met`` is None where a goal is only to report."""

    workload: str
    what: str
    figure: str
    ratio: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Bench:
    """A scratch folder and the helpers of a workload."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def running(self, start: Callable[..., Server], **settings: object) -> Iterator[Server]:
        folder = self.folder / start.__name__
        folder.mkdir(parents=True, exist_ok=True)
        server = start(folder, **settings)
        try:
            yield server
        finally:
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)

    def load(self, server: Server, command: str, *args: object) -> Figures:
        """Run the load generator on its own core; raises when it reports Kafka errors."""
        arguments = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "benchmarks.load", command]
        arguments += ["--port", str(server.port), *map(str, args)]
        cpu = server.cpu_seconds()
        done = subprocess.run(arguments, check=False, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            log = server.log.read_text()[-2000:] if server.log and server.log.exists() else ""
            raise RuntimeError(f"load against {server.name} failed:\n{done.stderr[-2000:]}\n{log}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        if figures.get("errors"):
            raise RuntimeError(f"{server.name} answered errors {figures['errors']}")
        figures["server_cpu_s"] = server.cpu_seconds() - cpu
        return figures
