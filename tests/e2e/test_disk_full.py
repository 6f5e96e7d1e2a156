"""The disk fills up under load: producers wait or are told to retry, and go on by themselves once there is room."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import SETTINGS, World, leaked_files
from tests.support.cluster import TidelogProcess
from tests.tools.require import require

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

DISK_BYTES = 96 * 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None and _mount(folder)
    require(mounted, "a small disk of its own", "run as root, which may mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _fill(ballast: Path) -> None:
    """Write until there is no room left."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_a_full_disk_loses_nothing_and_heals(small_disk: Path, tmp_path: Path, rng: random.Random) -> None:
    ballast = small_disk / "ballast"
    with TidelogProcess(small_disk / "data", settings=SETTINGS, log_path=tmp_path / "tidelog.log") as server:
        world = World(server, plain_ordered=False)
        world.wait_for_acknowledgements()
        for number in range(6):
            _fill(ballast)
            time.sleep(rng.uniform(0.5, 2.0))
            before = world.history.acknowledged_count
            time.sleep(0.7)
            assert world.history.acknowledged_count - before < 200, "nothing can be durable on a full disk"
            assert server.running(), server.log_tail()
            if number % 2:
                server.kill()
            ballast.unlink()
            if number % 2:
                server.start()
            world.ask_committed()
            world.wait_for_acknowledgements()
        world.finish_and_judge()
        assert leaked_files(server.data) == []


def test_it_can_be_started_again_after_dying_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    ballast = small_disk / "ballast"
    with TidelogProcess(small_disk / "data", settings=SETTINGS, log_path=tmp_path / "tidelog.log") as server:
        world = World(server, plain_ordered=False)
        world.wait_for_acknowledgements()
        _fill(ballast)
        time.sleep(0.5)
        server.kill()
        server.spawn()
        time.sleep(2.5)
        if server.running():
            server.kill()
        else:
            last = server.log_tail(1_000)
            assert "No space left" in last or "full" in last, "it says why it cannot start"
        ballast.unlink()
        server.start()
        world.ask_committed()
        world.wait_for_acknowledgements()
        world.finish_and_judge()
