"""kill -9 under acks=all load: nothing acknowledged is lost, nothing idempotent doubled, no group offset goes back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.e2e.world import SETTINGS, World, leaked_files
from tests.support.cluster import TidelogProcess
from tests.support.members import start_member, wait_for_split, wait_until
from tests.support.raw_kafka import RawKafka, record_batch

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("TIDELOG_CRASH_ROUNDS", "8"))


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


def test_a_group_goes_on_after_kill_9_without_a_rebalance(tidelog: Callable[..., TidelogProcess]) -> None:
    server = tidelog(settings=SETTINGS)
    values = [f"record-{number}" for number in range(40)]
    with RawKafka(server.bootstrap) as connection:
        connection.create_topic("kept", 4)
        for number, value in enumerate(values[:20]):
            assert connection.produce("kept", record_batch(value.encode()), number % 4).error_code == 0
    patient = {"session.timeout.ms": "15000", "reconnect.backoff.max.ms": "500"}
    members = [start_member("confluent", server.bootstrap, "kept-group", "kept", patient) for _ in range(2)]
    try:
        wait_for_split(members, 4)
        held = [member.assignments[-1] for member in members]
        changes = [len(member.assignments) for member in members]
        server.kill()
        server.start()
        with RawKafka(server.bootstrap) as connection:
            for number, value in enumerate(values[20:]):
                assert connection.produce("kept", record_batch(value.encode()), number % 4).error_code == 0
        wait_until(
            lambda: {value for member in members for _, _, value in member.records} == set(values),
            20,
            lambda: f"{[member.output[-3:] for member in members]}\n{server.log_tail()}",
        )
        assert [member.assignment for member in members] == held
        assert [len(member.assignments) for member in members] == changes, "nobody had to rejoin"
    finally:
        for member in members:
            member.kill()
