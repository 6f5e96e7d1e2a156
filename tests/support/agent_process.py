"""The real ``tidelog agent`` as a subprocess, beside metadata processes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.processes import free_port
from tests.support.server_process import ServerProcess


class AgentProcess(ServerProcess):
    """One agent on ports of its own, which stay the same over restarts. Its objects are in ``storage``.

    ``settings`` are environment variables without their prefix: ``{"INGEST__LINGER_MS": "10"}``.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        metadata: Sequence[str],
        storage: str,
        *,
        zone: str = "a",
        group: str = "default",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.zone = zone
        self.group = group
        self.bootstrap = f"127.0.0.1:{free_port()}"
        http = f"127.0.0.1:{free_port()}"
        command = [str(Path(sys.executable).with_name("tidelog")), "agent", "--kafka", self.bootstrap, "--http", http]
        command += ["--zone", zone, "--group", group, "--storage", storage, "--metadata", ",".join(metadata)]
        variables = {f"TIDELOG_{name}": value for name, value in (settings or {}).items()}
        super().__init__(name, command, http, folder / f"{name}.log", variables)

    def drained(self) -> list[str]:
        """What it said at the end of each drain."""
        return re.findall(r"^Drained in .*$", self.log(), re.MULTILINE)
