"""The real ``tidelog up`` as a subprocess: started, asked, killed and restarted by a test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers.processes import free_port
from tests.support.server_process import ServerProcess


class TidelogProcess(ServerProcess):
    """One Tidelog on free ports of 127.0.0.1. The ports and the data folder stay the same over restarts.

    ``settings`` are environment variables without their prefix: ``{"INGEST__LINGER_MS": "10"}``.
    """

    def __init__(
        self,
        data: Path,
        *,
        settings: Mapping[str, str] | None = None,
        storage: str | None = None,
        metadata: str | None = None,
        log_path: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.bootstrap = f"127.0.0.1:{free_port()}"
        http = f"127.0.0.1:{free_port()}"
        tidelog = Path(sys.executable).with_name("tidelog")
        command = [str(tidelog), "up", "--kafka", self.bootstrap, "--http", http, "--data", str(data)]
        if storage is not None:
            command += ["--storage", storage]
        if metadata is not None:
            command += ["--metadata", metadata]
        variables = {f"TIDELOG_{name}": value for name, value in (settings or {}).items()}
        super().__init__(
            "tidelog",
            command,
            http,
            log_path or data.with_name(f"{data.name}.log"),
            variables | dict(environment or {}),
        )
