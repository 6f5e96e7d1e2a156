"""The whole database is lost under load, and built anew from the bucket: every acknowledged record is there, at its
offset, and the clients go on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_world import ClusterWorld
from tests.support.metadata_stores import DURABLE_STORES
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings
from tests.tools.postgres import PostgresServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

TOPIC, GROUP, PARTITIONS = "kept", "readers", 4
LOAD_SECONDS = 3.0
RESUME_SECONDS = 30.0


class LosableWorld:
    """A cluster of one zone whose database can be taken away, and recorded clients."""

    def __init__(self, folder: Path, url: str, postgres: PostgresServer | None) -> None:
        self.folder = folder
        self.url = url
        self._postgres = postgres
        self.world = ClusterWorld(
            folder, zones=("a",), agents_per_zone=2, metadata_store=url, proxied=False, settings={"log.form": "json"}
        )
        self.clients: list[RecordedClient] = []

    def lose_database(self) -> None:
        """Every metadata process is killed, and not a row of theirs is left."""
        for process in self.world.metadata:
            process.kill()
        if self._postgres is not None:
            self._postgres.drop_database(self.url)
            self._postgres.execute(f"CREATE DATABASE {self.url.rpartition('/')[2]} OWNER tidelog")
        else:
            for path in self.folder.glob("*.sqlite*"):
                path.unlink()

    def start_clients(self) -> None:
        self.world.create_topic(TOPIC, PARTITIONS)
        bootstrap = self.world.bootstrap()
        self.clients = [
            start_producer(self.folder, "producer-1", bootstrap, TOPIC, PARTITIONS, rate=200, value_bytes=100),
            start_producer(self.folder, "producer-2", bootstrap, TOPIC, PARTITIONS, client="aiokafka", rate=200),
            start_consumer(self.folder, "consumer-1", bootstrap, TOPIC, GROUP),
        ]
        wait_for_members(self.clients, PARTITIONS, 40)

    def recordings(self) -> Recordings:
        return Recordings([client.follow() for client in self.clients])

    def wait_for_progress(self, within_s: float = RESUME_SECONDS) -> None:
        """Until every producer and the group get on in every partition."""
        since, deadline = time.monotonic(), time.monotonic() + within_s
        while None in (resumed := self.recordings().resumed(since)).values():
            assert time.monotonic() < deadline, f"{resumed}\n{self.world.logs_tail()}\n" + "\n".join(
                client.log_tail() for client in self.clients
            )
            time.sleep(0.2)

    def restore(self, *more: str) -> subprocess.CompletedProcess[str]:
        return run_tidelog("restore", "--from", self.world.spec.storage_url(), "--metadata", self.url, "--json", *more)

    def start_metadata(self) -> None:
        for process in self.world.metadata:
            process.start()

    def finish_and_judge(self) -> str:
        for client in self.clients[:2]:
            client.finish(40)
        log = self.world.read_log(TOPIC, PARTITIONS)
        ends = {number: sum(partition == number for partition, _ in log) for number in range(PARTITIONS)}
        deadline = time.monotonic() + 40
        while self.recordings().unread(GROUP, ends):
            assert time.monotonic() < deadline, f"the group misses {self.recordings().unread(GROUP, ends)} records"
            time.sleep(0.2)
        self.clients[2].finish(40)
        recordings = self.recordings()
        # What the group committed within the journal's last second may be lost, as the report says.
        violations = [each for each in recordings.violations(log) if each.kind != "went back"]
        assert not violations, "\n".join(map(str, violations[:20]))
        return recordings.counts()

    def close(self) -> None:
        for client in self.clients:
            client.kill()
        self.world.close()


def run_tidelog(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tidelog")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@contextmanager
def losable(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[LosableWorld]:
    postgres: PostgresServer | None = request.getfixturevalue("postgres") if kind == "postgresql" else None
    url = f"sqlite:///{tmp_path}/metadata.sqlite" if postgres is None else postgres.create_empty_database()
    lost = LosableWorld(tmp_path, url, postgres)
    with lost.world:
        try:
            lost.start_clients()
            yield lost
        finally:
            lost.close()
    if postgres is not None:
        postgres.drop_database(url)


@pytest.mark.parametrize("kind", DURABLE_STORES)
def test_the_database_is_lost_under_load(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with losable(kind, tmp_path, request) as lost:
        lost.wait_for_progress()
        time.sleep(LOAD_SECONDS)
        lost.lose_database()
        time.sleep(1)  # the agents live on, and put what they cannot commit
        report = report_of(lost.restore())
        assert report["journal_ended_by"] is None and not report["refused_batches"], report
        assert not report["unreadable_segments"] and not report["unknown_topics"], report
        lost.start_metadata()
        lost.wait_for_progress()
        print({name: value for name, value in report.items() if name != "put_back"}, lost.finish_and_judge())
