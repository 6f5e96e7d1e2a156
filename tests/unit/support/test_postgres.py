"""A test run that is killed leaves a PostgreSQL behind: the next one ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.postgres import OWNER, PREFIX, end_orphans, require_postgres

_RUN = """
import signal
from tests.tools.postgres import PostgresServer
with PostgresServer() as server:
    print(server.pid, server.port, flush=True)
    signal.pause()
"""


@pytest.fixture
def parent() -> Iterator[Path]:
    """Where another user may be too: that is who the server runs as when we are root. ``tmp_path`` is closed to all."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_server_outlives_its_owner_only_until_the_next_start(parent: Path) -> None:
    require_postgres()
    environment = {**os.environ, "TMPDIR": str(parent)}
    with subprocess.Popen([sys.executable, "-c", _RUN], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline().split()[0])
        (folder,) = parent.glob(f"{PREFIX}*")
        end_orphans(parent)
        assert folder.exists() and Path(f"/proc/{pid}").exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
    assert Path(f"/proc/{pid}").exists()
    end_orphans(parent)
    assert not folder.exists()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


@pytest.mark.parametrize("owner", [None, str(os.getpid())])
def test_what_is_being_made_or_used_is_left_alone(tmp_path: Path, owner: str | None) -> None:
    folder = tmp_path / f"{PREFIX}x"
    folder.mkdir()
    if owner is not None:
        (folder / OWNER).write_text(owner)
    end_orphans(tmp_path)
    assert folder.exists()
