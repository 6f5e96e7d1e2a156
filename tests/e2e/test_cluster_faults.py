"""Agent, metadata leader, PostgreSQL and object store killed, frozen and cut off, alone and in pairs, under load.

Nothing that was acknowledged is lost, doubled or reordered, and everybody goes on within 10 s of the healing. Faults
last 2 s here, and each two parts meet in one mixture of kinds, by chance; ``make faults``
(TIDELOG_TEST_FAULT_SECONDS=30) takes 30 s for each, every mixture, and an hour and a half.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster_faults import Case, FaultyCluster, ObjectStore, alone, as_table, pairs, some_pairs
from tests.tools.postgres import PostgresServer, require_postgres

FAULT_SECONDS = float(os.environ.get("TIDELOG_TEST_FAULT_SECONDS", "2"))
FULL_SECONDS = 10.0
"""With faults that long, and longer, two parts meet in every mixture of kinds."""
RESUME_SECONDS = 10.0
WAITED_SECONDS = 60.0
"""How long one that is late is waited for, to say how late."""
TABLE = os.environ.get("TIDELOG_TEST_FAULT_TABLE")
"""A file that the outcomes are added to, as Markdown."""

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(max(300, 200 * FAULT_SECONDS))]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    require_postgres()
    with PostgresServer(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture
def cluster(tmp_path: Path, postgres: PostgresServer, objects: ObjectStore) -> Iterator[FaultyCluster]:
    with FaultyCluster(tmp_path, postgres, objects) as running:
        yield running


def _inflict_all(cluster: FaultyCluster, cases: list[Case]) -> None:
    outcomes = []
    for case in cases:
        outcome = cluster.inflict(case, FAULT_SECONDS, WAITED_SECONDS)
        print(outcome, flush=True)
        outcomes.append(outcome)
        assert outcome.producers_seconds is not None, f"{outcome}\n{cluster.world.logs_tail()}"
        assert outcome.group_seconds is not None, f"{outcome}\n{cluster.world.logs_tail()}"
    cluster.finish_and_judge()
    if TABLE is not None:
        with Path(TABLE).open("a") as file:
            file.write(as_table(outcomes) + "\n\n")
    late = [str(outcome) for outcome in outcomes if not outcome.within(RESUME_SECONDS)]
    assert not late, "\n".join(late)


def test_each_part_alone(cluster: FaultyCluster) -> None:
    _inflict_all(cluster, alone())


def test_any_two_parts_at_the_same_time(cluster: FaultyCluster, rng: random.Random) -> None:
    _inflict_all(cluster, pairs() if FAULT_SECONDS >= FULL_SECONDS else some_pairs(rng))
