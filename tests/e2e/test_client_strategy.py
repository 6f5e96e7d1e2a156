"""Strategy ``client``: whatever a client does, it does with one agent. Chosen for a whole group by its setting, or by
one client for itself in its ``client.id``; counted in connections, as the kernel shows them.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.cluster_world import read_log
from tests.support.librdkafka import create_topic
from tests.support.metadata_process import MetadataProcess
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings
from tests.support.sockets import between, require_ss
from tests.tools import kafka_java

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(240)]

TOPIC, PARTITIONS = "fan-in", 12
IDLE_MS = 3_000
"""Connections on which a client asked where to go, and which it leaves open, are closed after so long."""
SETTINGS = {
    "GROUPS__INITIAL_REBALANCE_DELAY_MS": "100",
    "CONNECTION__IDLE_MS": str(IDLE_MS),
    "LOG__FORM": "json",
    "INGEST__LINGER_MS": "20",
}
AIOKAFKA = {"metadata_max_age_ms": "60000"}
"""It asks anybody it has heard of for metadata, now and then: that is a connection too, until it is idle for long."""
RDKAFKA = {"coordinator.query.interval.ms": "1000"}
"""Else it asks every ten minutes only, and stays with the agent that served its group meanwhile: that one serves on."""
SETTLED_SECONDS = 30.0


@dataclass
class World:
    """``fan``: the agents of a group with the strategy ``client``; ``spread``: those of one with ``partition``."""

    fan: list[AgentProcess]
    spread: list[AgentProcess]
    pids: dict[str, int] = field(default_factory=dict)
    """Of the clients, by name."""

    @property
    def agents(self) -> list[AgentProcess]:
        return [*self.fan, *self.spread]

    def connections(self) -> dict[str, dict[str, int]]:
        """For each client, its connections by agent."""
        agents = {agent.pid: agent.name for agent in self.agents if agent.running()}
        found = between(self.pids.values(), agents)
        return {name: {agents[one]: count for one, count in found[pid].items()} for name, pid in self.pids.items()}


def bootstrap(agents: list[AgentProcess]) -> str:
    return ",".join(agent.bootstrap for agent in agents)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    require_ss()
    metadata = MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", SETTINGS)
    metadata.start()

    def agents(group: str, count: int, strategy: str) -> list[AgentProcess]:
        settings = {**SETTINGS, "ROUTING__STRATEGY": strategy}
        return [
            AgentProcess(
                tmp_path,
                f"{group}-{number}",
                [metadata.url],
                f"file://{tmp_path}/objects",
                group=group,
                settings=settings,
            )
            for number in range(count)
        ]

    made = World(agents("fan", 3, "client"), agents("spread", 2, "partition"))
    for agent in made.agents:
        agent.spawn()
    for agent in made.agents:
        agent.wait_ready()
    yield made
    for agent in made.agents:
        agent.stop()
    metadata.stop()


def wait_until(holds: Callable[[], bool], what: Callable[[], object], within_s: float = SETTLED_SECONDS) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        time.sleep(0.25)


def test_each_client_process_keeps_to_one_agent(world: World, tmp_path: Path) -> None:
    fan, spread = bootstrap(world.fan), bootstrap(world.spread)
    create_topic(fan, TOPIC, PARTITIONS)
    producers = [
        start_producer(tmp_path, "p-rdkafka", fan, TOPIC, PARTITIONS, rate=200),
        start_producer(tmp_path, "p-aiokafka", fan, TOPIC, PARTITIONS, client="aiokafka", config=AIOKAFKA),
        start_producer(tmp_path, "p-itself", spread, TOPIC, PARTITIONS, client_id="p,strategy=client"),
        start_producer(tmp_path, "p-spread", spread, TOPIC, PARTITIONS),
    ]
    consumers = [
        start_consumer(tmp_path, "c-rdkafka", fan, TOPIC, "g-rdkafka", config=RDKAFKA),
        start_consumer(tmp_path, "c-aiokafka", fan, TOPIC, "g-aiokafka", client="aiokafka", config=AIOKAFKA),
    ]
    clients = [*producers, *consumers]
    world.pids = {client.name: client.process.pid for client in clients}
    java = _start_java(fan, tmp_path)
    try:
        world.pids["c-java"] = java.pid
        for consumer in consumers:
            wait_for_members([consumer], PARTITIONS, 60)
        # A group's member has a second connection to the same agent: its heartbeats do not wait for a fetch.
        expected = {"p-rdkafka": 1, "p-aiokafka": 1, "p-itself": 1, "c-rdkafka": 2, "c-aiokafka": 2, "c-java": 2}

        def settled(leader: str | None = None) -> bool:
            """Everybody is with one agent, and ``p-rdkafka`` with ``leader``."""
            seen = world.connections()
            return all(list(seen[name].values()) == [count] for name, count in expected.items()) and (
                leader is None or leader in seen["p-rdkafka"]
            )

        wait_until(settled, world.connections)
        before = world.connections()
        print(f"connections: {before}")
        assert set(before["p-spread"]) == {"spread-0", "spread-1"}, "without the strategy: one to every agent"

        # Agents leave and come: only their own clients move, and each is with one agent again.
        places = {name: next(iter(before[name])) for name in expected}
        leaver = next(agent for agent in world.fan if agent.name == places["p-rdkafka"])
        assert leaver.terminate(30) == 0, leaver.log_tail()
        assert "closed without having moved" not in leaver.drained()[-1]
        wait_until(settled, world.connections)
        between_times = world.connections()
        assert leaver.name not in {agent for seen in between_times.values() for agent in seen}
        stayed = [name for name, place in places.items() if place != leaver.name]
        assert [next(iter(between_times[name])) for name in stayed] == [places[name] for name in stayed]

        leaver.start()
        wait_until(lambda: settled(leaver.name), world.connections)
        print(f"after {leaver.name} left and came: {world.connections()}")
        for producer in producers:
            producer.finish(60)
        recordings = Recordings([client.follow() for client in clients])
        log = read_log(fan, TOPIC, PARTITIONS)
        ends = {number: 1 + max(at for one, at in log if one == number) for number in range(PARTITIONS)}
        wait_until(lambda: _all_read(recordings, consumers, ends), lambda: "a consumer is stuck")
        for consumer in consumers:
            consumer.finish(60)
    finally:
        for client in clients:
            client.kill()
        java.kill()
        java.wait()
    assert recordings.violations(log) == []
    for client in clients:
        assert client.recording.failed == [] and client.recording.errors == []


def _start_java(servers: str, folder: Path) -> subprocess.Popen[bytes]:
    kafka_java.require_java_tools()
    arguments = ["--bootstrap-server", servers, "--topic", TOPIC, "--group-id", "g-java"]
    arguments += ["--command-config", str(kafka_java.CONSUMER_CONFIG)]
    return kafka_java.spawn("org.apache.kafka.tools.VerifiableConsumer", arguments, folder / "c-java.txt")


def _all_read(recordings: Recordings, consumers: list[RecordedClient], ends: dict[int, int]) -> bool:
    for consumer in consumers:
        consumer.follow()
    return not any(recordings.unread(group, ends) for group in ("g-rdkafka", "g-aiokafka"))
