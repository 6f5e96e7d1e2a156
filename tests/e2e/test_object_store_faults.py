"""An S3 that fails before and after effect, throttles, hangs and goes away: nothing is lost, and it heals by itself."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.world import SETTINGS, World
from tests.integration.s3_proxy import Act
from tests.integration.s3_servers import ENVIRONMENT, REGION, S3Server, run_versitygw
from tests.support.cluster import TidelogProcess
from tests.support.faulty_s3 import FLAKY, FaultyS3
from tests.support.raw_kafka import RawKafka, produce_request, record_batch, records

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

S3_SETTINGS = SETTINGS | {
    "INGEST__LINGER_MS": "50",
    "S3__REQUEST_TIMEOUT_MS": "2000",
    "INGEST__UPLOAD_DEADLINE_MS": "3000",
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with run_versitygw(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def faulty(s3: S3Server, rng: random.Random) -> Iterator[FaultyS3]:
    with FaultyS3(s3.endpoint, rng) as proxy:
        yield proxy


@pytest.fixture
def server(s3: S3Server, faulty: FaultyS3, tmp_path: Path) -> Iterator[TidelogProcess]:
    url = f"s3://{s3.new_bucket()}/records?endpoint={faulty.endpoint}&region={REGION}"
    with TidelogProcess(tmp_path / "data", settings=S3_SETTINGS, storage=url, environment=ENVIRONMENT) as process:
        yield process


def test_faults_of_every_kind_under_load(server: TidelogProcess, faulty: FaultyS3) -> None:
    world = World(server, plain_ordered=False)
    world.wait_for_acknowledgements()
    faulty.set_faults(FLAKY)
    deadline = time.monotonic() + 60
    while not set(FLAKY) <= set(faulty.counts) or sum(faulty.counts.values()) < 150:
        assert time.monotonic() < deadline, f"too few requests to inject every fault: {faulty.counts}"
        world.wait_for_acknowledgements()
    faulty.set_faults({})
    world.wait_for_acknowledgements(within_s=20)
    world.finish_and_judge()


@pytest.mark.parametrize("act", [Act.SLOW_DOWN, Act.INTERNAL_ERROR, Act.ERROR_AFTER, Act.LOSE_ANSWER, Act.HANG])
def test_an_outage_ends_and_everything_goes_on(server: TidelogProcess, faulty: FaultyS3, act: Act) -> None:
    world = World(server, plain_ordered=False)
    world.wait_for_acknowledgements()
    faulty.set_faults({act: 1.0})
    time.sleep(4)
    assert server.running(), server.log_tail()
    faulty.set_faults({})
    world.wait_for_acknowledgements(within_s=30)
    world.finish_and_judge()


def test_kill_9_while_the_object_store_fails(server: TidelogProcess, faulty: FaultyS3, rng: random.Random) -> None:
    world = World(server, plain_ordered=False)
    world.wait_for_acknowledgements()
    for _ in range(4):
        faulty.set_faults(FLAKY)
        time.sleep(rng.uniform(0.3, 1.5))
        server.kill()
        # The check of the storage at the start is not retried: an orchestrator would start it until it passes.
        faulty.set_faults({})
        server.start()
        faulty.set_faults(FLAKY)
        world.ask_committed()
        world.wait_for_acknowledgements(100)
    faulty.set_faults({})
    world.wait_for_acknowledgements(within_s=20)
    world.finish_and_judge()


def test_producers_are_told_to_retry_and_a_stored_record_is_not_denied(
    server: TidelogProcess, faulty: FaultyS3
) -> None:
    with RawKafka(server.bootstrap, timeout_s=30) as connection:
        connection.create_topic("told")
        assert connection.produce("told", record_batch(b"before")).error_code == 0
        faulty.set_faults({Act.SLOW_DOWN: 1.0})
        answer = connection.ask(produce_request("told", record_batch(b"during"))).responses[0].partition_responses[0]
        assert answer.error_code.retriable, answer
        faulty.set_faults({})
        deadline = time.monotonic() + 20
        while (answer := connection.produce("told", record_batch(b"after"))).error_code != 0:
            assert answer.error_code.retriable, answer
            assert time.monotonic() < deadline, "it does not recover"
        stored = [value for _, value in records(connection.fetch("told", 0).records)]
    assert stored[0] == b"before"
    assert stored[-1] == b"after"
    assert answer.base_offset == len(stored) - 1
