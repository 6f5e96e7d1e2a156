"""The real ``tidelog agent`` as a subprocess, beside metadata processes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.cluster import TidelogProcess


class AgentProcess(TidelogProcess):
    """One agent on ports of its own, which stay the same over restarts. Its objects are in ``storage``."""

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
        super().__init__(
            folder / name,
            settings=settings,
            storage=storage,
            metadata=",".join(metadata),
            log_path=folder / f"{name}.log",
        )
        self.name = name
        self.zone = zone
        self.group = group

    @property
    def command(self) -> list[str]:
        tidelog = Path(sys.executable).with_name("tidelog")
        return [
            *(str(tidelog), "agent", "--kafka", self.bootstrap, "--http", self.http),
            *("--zone", self.zone, "--group", self.group, "--storage", str(self._storage)),
            *("--metadata", str(self._metadata)),
        ]

    def drained(self) -> list[str]:
        """What it said at the end of each drain."""
        return re.findall(r"^Drained in .*$", self.log(), re.MULTILINE)
