"""Children end with their parent, say how they ended, and keep what they wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidelog.child import Child


def test_a_child_that_ends_by_itself_is_a_problem_with_its_last_words(tmp_path: Path) -> None:
    child = Child("shipper", ["/bin/sh", "-c", "echo no such broker; exit 3"], tmp_path / "log")
    assert child.problem() is None
    child.start()
    deadline = time.monotonic() + 10
    while child.problem() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    problem = child.problem()
    assert problem is not None
    assert "shipper ended with exit code 3" in problem
    assert "no such broker" in problem
    assert child.stop(1) is not None


def test_a_child_that_does_not_stop_is_killed_and_named(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap '' TERM; : > {ready}; while :; do sleep 0.05; done"
    child = Child("stubborn", ["/bin/sh", "-c", script], tmp_path / "log")
    child.start()
    deadline = time.monotonic() + 10
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    problem = child.stop(0.2)
    assert problem is not None
    assert "stubborn did not stop within 0.2 s" in problem
    child.kill()


def test_children_do_not_inherit_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDELOG_INGEST__LINGER_MS", "5")
    log = tmp_path / "log"
    child = Child("env", ["/bin/sh", "-c", "env"], log)
    child.start()
    deadline = time.monotonic() + 10
    while child.problem() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "PATH=" in log.read_text()
    assert "TIDELOG_" not in log.read_text()


def test_a_child_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tidelog.child import Child\n"
        "child = Child('sleeper', ['sleep', '600'], Path(sys.argv[1])); child.start()\n"
        "print(child.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)  # a frozen one too
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        Child("ghost", ["no-such-command"], tmp_path / "log").start()


def test_a_frozen_child_is_stopped_in_order(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'exit 0' TERM; : > {ready}; while :; do sleep 0.05; done"
    child = Child("frozen", ["/bin/sh", "-c", script], tmp_path / "log")
    child.start()
    while not ready.exists():
        time.sleep(0.01)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    assert child.stop(5) is None
    assert child.pid is None
    assert child.exit_code == 0
