"""kill -9 under acks=all load: nothing acknowledged is lost, nothing idempotent doubled, no group offset goes back."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster import TidelogProcess
from tests.support.history import History
from tests.support.load import GroupLoad, ProducerLoad, ask_committed, read_everything, wait_for_progress
from tests.support.raw_kafka import RawKafka

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("TIDELOG_CRASH_ROUNDS", "20"))
TOPIC, GROUP, PARTITIONS = "crash", "crash-group", 3
SETTINGS = {
    "INGEST__LINGER_MS": "20",
    "INGEST__SEGMENT_BYTES_MAX": "65536",
    "GROUPS__INITIAL_REBALANCE_DELAY_MS": "100",
    "LOG__FORM": "json",
}


class World:
    """One Tidelog with two producers and a group, and the history of them all."""

    def __init__(self, server: TidelogProcess) -> None:
        self.server = server
        self.history = History()
        self.logged = 0
        with RawKafka(server.bootstrap) as connection:
            connection.create_topic(TOPIC, PARTITIONS)
        self.producers = [
            ProducerLoad(self.history, server.bootstrap, TOPIC, PARTITIONS, idempotent=idempotent)
            for idempotent in (True, False)
        ]
        self.group = GroupLoad(self.history, server.bootstrap, TOPIC, PARTITIONS, GROUP)

    def wait_for_acknowledgements(self, count: int = 200, within_s: float = 40) -> None:
        wait_for_progress(lambda: self.history.acknowledged_count, count, within_s, "acknowledgements")

    def ask_committed(self) -> None:
        ask_committed(self.history, self.server.bootstrap, TOPIC, PARTITIONS, GROUP)

    def finish_and_judge(self) -> None:
        """Stop the load, read everything once more, also after one more restart, and judge."""
        for producer in self.producers:
            producer.finish()
        wait_for_progress(lambda: self.group.read_count, 0, 1, "the group")
        self.group.finish()
        self.ask_committed()
        assert self.server.terminate() == 0, self.server.log_tail()
        self.server.start()
        self.ask_committed()
        count = read_everything(self.history, self.server.bootstrap, TOPIC, PARTITIONS)
        violations = self.history.violations()
        self.logged = count
        print(
            f"{self.history.sent_count} sent, {self.history.acknowledged_count} acknowledged, {count} in the log, "
            f"{self.group.read_count} read by the group, {len(violations)} violations"
        )
        assert not violations, "\n".join(map(str, violations[:20]))
        for load in (*self.producers, self.group):
            assert load.errors == []
        assert self.history.acknowledged_count == self.history.sent_count, "every record was acknowledged in the end"
        assert self.group.read_count > 0


def leaked_files(data: Path) -> list[Path]:
    """Temporary files of segments: there must be none once nothing is being uploaded."""
    return [path for folder in data.rglob(".uploading") for path in folder.rglob("*") if path.is_file()]


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
