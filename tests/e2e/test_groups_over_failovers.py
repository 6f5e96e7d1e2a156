"""Consumer groups outlive the metadata process that leads, however it ends: same generations, same members, nobody
joins again. A coordinator that forgot its groups would have every member of every group at its door at the same moment.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.support.cluster_world import ClusterWorld
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings
from tests.support.server_process import ServerProcess
from tests.tools.postgres import PostgresServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(240)]

TOPIC, PARTITIONS, MEMBERS = "failovers", 4, 2
GROUPS = {
    "g-rdkafka-1": "confluent",
    "g-rdkafka-2": "confluent",
    "g-aiokafka-1": "aiokafka",
    "g-aiokafka-2": "aiokafka",
}
SESSIONS = {"confluent": {"session.timeout.ms": "45000"}, "aiokafka": {"session_timeout_ms": "10000"}}
"""Their own defaults."""
GOES_ON_WITHIN_SECONDS = 10.0


@pytest.fixture
def world(tmp_path: Path, postgres: PostgresServer) -> Iterator[ClusterWorld]:
    """On PostgreSQL, where a frozen leader is replaced."""
    url = postgres.create_database()
    with ClusterWorld(
        tmp_path, zones=("a",), agents_per_zone=2, metadata_store=url, proxied=False, settings={"log.form": "json"}
    ) as running:
        yield running
    postgres.release_database(url)


def generations(world: ClusterWorld) -> dict[str, int]:
    """The newest generation of each group that any leader has made durable."""
    found: dict[str, int] = {}
    for process in world.metadata:
        for line in process.log().splitlines():
            if '"group_saved"' in line:
                event = json.loads(line)
                found[event["group"]] = max(found.get(event["group"], 0), event["generation"])
    return found


def member_ids(world: ClusterWorld) -> dict[str, set[str]]:
    admin = AdminClient({"bootstrap.servers": world.bootstrap(), "log_level": 0})
    described = admin.describe_consumer_groups(list(GROUPS), request_timeout=15)
    return {group: {member.member_id for member in future.result(20).members} for group, future in described.items()}


def joins(world: ClusterWorld) -> float:
    """JoinGroup requests that agents have answered so far, of all groups."""
    return sum(
        value
        for agent in world.agents
        for name, value in agent.metrics().items()
        if re.match(r'tidelog_agent_requests_total\{.*api="JoinGroup"', name)
    )


def kill(leader: ServerProcess) -> Callable[[], None]:
    leader.kill()
    return leader.start


def terminate(leader: ServerProcess) -> Callable[[], None]:
    assert leader.terminate() == 0
    return leader.start


def freeze(leader: ServerProcess) -> Callable[[], None]:
    leader.freeze()
    return leader.thaw


def test_no_group_rebalances_when_the_leader_dies_stops_or_freezes(world: ClusterWorld, tmp_path: Path) -> None:
    world.create_topic(TOPIC, PARTITIONS)
    producer = start_producer(tmp_path, "producer", world.bootstrap(), TOPIC, PARTITIONS, rate=200)
    members: dict[str, list[RecordedClient]] = {
        group: [
            start_consumer(
                tmp_path, f"{group}-{n}", world.bootstrap(), TOPIC, group, client=client, config=SESSIONS[client]
            )
            for n in range(MEMBERS)
        ]
        for group, client in GROUPS.items()
    }
    everybody = [member for of_group in members.values() for member in of_group]
    try:
        for of_group in members.values():
            wait_for_members(of_group, PARTITIONS, 60)
            _wait(
                lambda of_group=of_group: all(one.follow().assignment for one in of_group), 30, "both have their share"
            )
        _go_on(everybody)
        before = (generations(world), member_ids(world), joins(world))
        assigned = {member.name: _assignments(member) for member in everybody}
        assert set(before[0]) == set(GROUPS)

        for end in (kill, terminate, freeze):
            leader = world.leader()
            term = world.page()["generation"]
            began = time.monotonic()
            come_back = end(leader)
            _wait_for_the_other(world, leader, term)
            led = time.monotonic() - began
            _go_on(everybody)
            went_on = time.monotonic() - began
            print(f"{end.__name__}: another led after {led:.1f} s, all groups read on after {went_on:.1f} s")
            come_back()
            _go_on(everybody)
        time.sleep(4)  # a heartbeat of everybody, under the last leader

        after = (generations(world), member_ids(world), joins(world))
        print(f"generations {after[0]}, JoinGroup requests {after[2]:g}")
        assert after == before, "generations, member ids and JoinGroup requests"
        assert {member.name: _assignments(member) for member in everybody} == assigned, "rebalances of each member"
        recordings = Recordings([one.follow() for one in (producer, *everybody)])
        producer.finish(60)
        log = world.read_log(TOPIC, PARTITIONS)
        ends = {number: 1 + max(at for one, at in log if one == number) for number in range(PARTITIONS)}
        _wait(lambda: _all_read(recordings, everybody, ends), 30, "every group reads to the end")
        for member in everybody:
            member.finish(60)
        assert recordings.violations(log) == []
        assert producer.recording.failed == []
    finally:
        for client in (producer, *everybody):
            client.kill()


def _wait_for_the_other(world: ClusterWorld, old: ServerProcess, term: int) -> None:
    """Until the other metadata process leads, in a later term than ``term``."""
    (other,) = (process for process in world.metadata if process is not old)

    def leads() -> bool:
        page = world.page_of(other, 1)
        return page is not None and page["leader"] and page["generation"] > term

    _wait(leads, 15, "the other metadata process leads")


def _assignments(member: RecordedClient) -> int:
    """How often it was given partitions."""
    return sum(len(event) == 2 for event in member.follow().polls)


def _go_on(members: list[RecordedClient]) -> None:
    """Every member is given records that it has not had before."""
    before = [member.follow().polled_count for member in members]
    _wait(
        lambda: all(member.follow().polled_count > count + 20 for member, count in zip(members, before, strict=True)),
        GOES_ON_WITHIN_SECONDS,
        "every member reads on",
    )


def _all_read(recordings: Recordings, members: list[RecordedClient], ends: dict[int, int]) -> bool:
    for member in members:
        member.follow()
    return not any(recordings.unread(group, ends) for group in GROUPS)


def _wait(holds: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)
