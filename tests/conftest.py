"""Fixtures for every test that talks to a whole Tidelog through the Kafka protocol."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.peers.kafka import Kafka
from tests.support.cluster import TidelogProcess
from tests.tools.postgres import PostgresServer, require_postgres

REFERENCE = "TIDELOG_TEST_REFERENCE"
"""``kafka`` or the address of one: run the client tests against Apache Kafka, where what they expect must hold too."""


def on_reference() -> bool:
    """Whether the shared broker is Apache Kafka: for the few things that it has and Tidelog says it has not."""
    return bool(os.environ.get(REFERENCE))


FAST_SETTINGS = {
    "INGEST__LINGER_MS": "10",
    "GROUPS__INITIAL_REBALANCE_DELAY_MS": "200",
    "GROUPS__SESSION_TIMEOUT_MS_MIN": "1000",
    "LOG__FORM": "json",
}
"""So that hundreds of small exchanges do not each wait a linger, nor each rebalance three seconds."""


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one broker that most tests share. Use topic and group names of your own."""
    folder = tmp_path_factory.mktemp("shared")
    if ":" in os.environ.get(REFERENCE, ""):
        yield os.environ[REFERENCE]
        return
    if os.environ.get(REFERENCE) == "kafka":
        kafka = Kafka(
            folder,
            heap="512m",
            settings={"group.initial.rebalance.delay.ms": "200", "group.min.session.timeout.ms": "1000"},
        )
        yield kafka.start()
        kafka.stop()
        return
    with TidelogProcess(folder / "data", settings=FAST_SETTINGS) as tidelog:
        yield tidelog.bootstrap
        assert tidelog.running(), f"it died under the tests:\n{tidelog.log_tail()}"
        errors = [line for line in tidelog.log().splitlines() if '"level": "error"' in line or "Traceback" in line]
        assert errors == [], "no client makes it log an error"


@pytest.fixture
def tidelog(tmp_path: Path) -> Iterator[Callable[..., TidelogProcess]]:
    """Starts Tidelogs of this test's own: ``tidelog(settings=..., storage=...)``; all are stopped after it."""
    started: list[TidelogProcess] = []

    def start(**options: object) -> TidelogProcess:
        process = TidelogProcess(tmp_path / f"tidelog-{len(started)}", **options)  # type: ignore[arg-type]
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that all tests share, each with a database of its own; they do not stop it."""
    require_postgres()
    with PostgresServer() as server:
        yield server


_counter = itertools.count()


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names nobody else uses: ``unique("logs")``."""

    def name(stem: str) -> str:
        return f"{stem}-{os.getpid()}-{next(_counter)}"

    return name
