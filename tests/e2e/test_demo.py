"""``tidelog demo`` whole, as ``make demo`` runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools import rsyslog

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TIDELOG = str(Path(sys.executable).with_name("tidelog"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the demo keeps its files."""
    return tmp_path


def demo(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [TIDELOG, "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "TIDELOG_INGEST__LINGER_MS": "60000", **more},
    )


@pytest.mark.parametrize("shipper", ["rsyslog", "bundled"])
def test_the_demo_runs_by_itself_and_every_line_comes_out(shipper: str, folder: Path) -> None:
    if shipper == "rsyslog":
        rsyslog.require_rsyslog()
    began = time.monotonic()
    process = demo(folder, "--seconds", "10", "--shipper", shipper)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert time.monotonic() - began >= 8
    found = re.search(r"Every line came out: ([0-9,]+) lines", text)
    assert found is not None, text
    assert int(found[1].replace(",", "")) > 500
    for words in (shipper, "first line came out", "segments", "PUTs", "p50", "p99", "stopped cleanly"):
        assert words in text
    assert list(folder.iterdir()) == [], "nothing is left behind"


def test_ctrl_c_ends_it_early_and_cleanly(folder: Path) -> None:
    process = demo(folder, "--seconds", "300", "--shipper", "bundled")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "first line came out" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(lines) + rest
    assert "Every line came out" in rest
    assert list(folder.iterdir()) == []


def test_it_fails_when_tidelog_dies(folder: Path) -> None:
    process = demo(folder, "--seconds", "300", "--shipper", "bundled")
    assert process.stdout is not None
    for line in process.stdout:
        if "first line came out" in line:
            break
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    (victim,) = [int(row.split()[0]) for row in children.splitlines() if " up " in row]
    os.kill(victim, signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The demo failed: tidelog was ended by SIGKILL" in rest
    assert list(folder.iterdir()) == []
