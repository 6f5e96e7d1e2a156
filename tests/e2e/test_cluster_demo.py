"""``tidelog cluster demo`` whole, as ``make demo-cluster`` runs it, and that it is honest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TIDELOG = str(Path(sys.executable).with_name("tidelog"))


def _demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [TIDELOG, "cluster", "demo", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def test_two_processes_die_and_every_line_comes_out(tmp_path: Path) -> None:
    process = _demo(tmp_path, "--seconds", "16", "--rate", "200")
    text, _ = process.communicate(timeout=170)
    assert process.returncode == 0, text
    found = re.search(r"Nothing was lost: ([0-9,]+) lines", text)
    assert found is not None, text
    assert int(found[1].replace(",", "")) > 3_000
    for words in ("kill -9 of metadata-", "kill -9 of agent-b-plaintext-1", "generation 2 leads", "stopped cleanly"):
        assert words in text
    assert "Bytes that crossed a zone: 0 while every zone had its agents; " in text
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_it_fails_when_the_cluster_dies(tmp_path: Path) -> None:
    process = _demo(tmp_path, "--seconds", "300", "--rate", "100", "--shipper", "bundled")
    assert process.stdout is not None
    for line in process.stdout:
        if "a line of each zone came out" in line:
            break
    children = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    (victim,) = [int(row.split()[0]) for row in children.splitlines() if " cluster up " in row]
    os.kill(victim, signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The demo failed: tidelog cluster up was ended by SIGKILL" in rest
    assert list(tmp_path.iterdir()) == []
