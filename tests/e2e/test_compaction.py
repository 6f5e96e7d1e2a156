"""Compaction under load, through kill -9 of whoever does it and of whoever decides: nothing acknowledged is lost,
doubled or moved, and few extents are left."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.world import GROUP, PARTITIONS, SETTINGS, TOPIC, World
from tests.support.agent_process import AgentProcess
from tests.support.cluster import TidelogProcess
from tests.support.history import History
from tests.support.load import GroupLoad, ProducerLoad, ask_committed, read_everything
from tests.support.members import wait_until
from tests.support.metadata_process import MetadataProcess
from tests.support.raw_kafka import RawKafka

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

EAGER = {
    "COMPACTION__MIN_AGE_MS": "300",
    "COMPACTION__JOB_BYTES": "200000",
    "COMPACTION__FAN_IN": "2",
    "COMPACTION__WAIT_MS": "1000",
    "LIFECYCLE__DELETION_GRACE_MS": "1500",
    "LIFECYCLE__ORPHAN_AGE_MS": "1000",
    "JOBS__POLL_MS": "100",
}


def extents_left(database: Path) -> tuple[int, int]:
    """(extents, of them placed)"""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(  # type: ignore[no-any-return]
            "SELECT count(*), coalesce(sum(level > 0), 0) FROM extents JOIN segments USING (segment_id)"
        ).fetchone()


def test_kill_9_in_the_middle_of_compaction(tidelog: Callable[..., TidelogProcess], rng: random.Random) -> None:
    server = tidelog(settings=SETTINGS | EAGER)
    world = World(server)
    world.wait_for_acknowledgements()
    seen = 0.0
    for _ in range(2):
        time.sleep(rng.uniform(1, 2.5))
        seen += server.metrics()["tidelog_metadata_extents_swapped_total"]
        server.kill()
        server.start()
        world.wait_for_acknowledgements()
    assert seen > 50, "there was compaction to be killed"
    world.finish_and_judge()
    extents, placed = extents_left(server.data / "metadata.sqlite")
    assert placed > 0
    print(f"{world.logged} records in {extents} extents, {placed} of them placed")
    wait_until(lambda: extents_left(server.data / "metadata.sqlite")[0] <= 40, 30, server.log_tail)
    assert read_everything(world.history, server.bootstrap, TOPIC, PARTITIONS) == world.logged
    assert world.history.violations() == []


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[list[MetadataProcess], list[AgentProcess]]]:
    """Two metadata processes on one SQLite store, and two agents."""
    with ExitStack() as stack:
        metadata = [MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", EAGER) for _ in range(2)]
        for process in metadata:
            stack.callback(process.stop)
            process.start()
        agents = [
            AgentProcess(
                tmp_path,
                f"agent-{number}",
                [process.url for process in metadata],
                f"file://{tmp_path}/objects",
                settings=SETTINGS | EAGER,
            )
            for number in range(2)
        ]
        for agent in agents:
            stack.enter_context(agent)
        yield metadata, agents


def test_agents_and_the_leader_are_killed_while_they_compact(
    cluster: tuple[list[MetadataProcess], list[AgentProcess]], tmp_path: Path
) -> None:
    metadata, agents = cluster
    bootstrap = ",".join(agent.bootstrap for agent in agents)
    history = History()
    with RawKafka(agents[0].bootstrap) as connection:
        connection.create_topic(TOPIC, PARTITIONS)
    producer = ProducerLoad(history, bootstrap, TOPIC, PARTITIONS, idempotent=True)
    group = GroupLoad(history, bootstrap, TOPIC, PARTITIONS, GROUP)
    for turn in range(3):
        time.sleep(1.5)
        victim = next(each for each in metadata if each.leads()) if turn % 2 else agents[turn // 2]
        victim.kill()
        time.sleep(0.5)
        victim.start()
    time.sleep(1)
    producer.finish()
    log = agents[0].log_tail
    wait_until(lambda: history.acknowledged_but_unread() == 0, 40, log)
    group.finish()
    ask_committed(history, bootstrap, TOPIC, PARTITIONS, GROUP)
    before = read_everything(history, bootstrap, TOPIC, PARTITIONS)
    wait_until(lambda: extents_left(tmp_path / "metadata.sqlite")[0] <= 40, 40, log)
    time.sleep(2)  # longer than the grace: what readers knew is gone by now
    assert read_everything(history, bootstrap, TOPIC, PARTITIONS) == before
    assert history.violations() == []
    assert history.acknowledged_count == history.sent_count
    assert producer.errors == []
    assert group.errors == []
