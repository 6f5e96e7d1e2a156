"""kill -9 under acks=all load: nothing acknowledged is lost, nothing idempotent doubled, no group offset goes back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.e2e.world import SETTINGS, World, leaked_files
from tests.support.cluster import TidelogProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("TIDELOG_CRASH_ROUNDS", "20"))


def test_kill_9_at_random_moments(tidelog: Callable[..., TidelogProcess], rng: random.Random) -> None:
    server = tidelog(settings=SETTINGS)
    world = World(server)
    world.wait_for_acknowledgements()
    for _ in range(ROUNDS):
        time.sleep(rng.uniform(0.05, 1.2))
        server.kill()
        server.start()
        world.ask_committed()
        world.wait_for_acknowledgements()
    world.finish_and_judge()
    assert leaked_files(server.data) == []
    assert len(list((server.data / "objects" / ".uploading").iterdir())) <= 1, "only the living process's own folder"


def test_kill_9_while_starting(tidelog: Callable[..., TidelogProcess], rng: random.Random) -> None:
    server = tidelog(settings=SETTINGS)
    world = World(server)
    world.wait_for_acknowledgements()
    for _ in range(3):
        server.kill()
        for _ in range(2):
            server.spawn()
            time.sleep(rng.uniform(0.2, 1.3))
            server.kill()
        server.start()
        world.ask_committed()
        world.wait_for_acknowledgements()
    world.finish_and_judge()


def test_a_drained_process_loses_and_repeats_nothing(tidelog: Callable[..., TidelogProcess]) -> None:
    server = tidelog(settings=SETTINGS)
    world = World(server)
    for _ in range(3):
        world.wait_for_acknowledgements()
        assert server.terminate() == 0, server.log_tail()
        server.start()
        world.ask_committed()
    world.wait_for_acknowledgements()
    world.finish_and_judge()
    assert world.logged == world.history.sent_count, "what was answered with an error on the way out was not stored"
