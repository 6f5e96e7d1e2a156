"""Three zones, real clients: who is sent where, and that nothing crosses a zone once everybody is where they belong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.support.agent_process import AgentProcess
from tests.support.librdkafka import create_topic
from tests.support.metadata_process import MetadataProcess
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

ZONES = ("a", "b", "c")
PARTITIONS = 6
SETTINGS = {"GROUPS__INITIAL_REBALANCE_DELAY_MS": "100", "LOG__FORM": "json", "INGEST__LINGER_MS": "50"}


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[dict[str, AgentProcess]]:
    """An agent in each zone; those that serve other zones too, and a metadata process."""
    metadata = MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", SETTINGS)
    metadata.start()
    started = {
        zone: AgentProcess(
            tmp_path, f"agent-{zone}", [metadata.url], f"file://{tmp_path}/objects", zone=zone, settings=SETTINGS
        )
        for zone in ZONES
    }
    for agent in started.values():
        agent.spawn()
    for agent in started.values():
        agent.wait_ready()
    yield started
    for agent in started.values():
        agent.stop()
    metadata.stop()


def crossed(agents: dict[str, AgentProcess]) -> dict[str, float]:
    """Bytes to and from clients of other zones, by (zone of the agent) metric."""
    return {
        f"{zone}: {name}": value
        for zone, agent in agents.items()
        for name, value in agent.metrics().items()
        if name.startswith("tidelog_agent_cross_zone_bytes_total")
    }


def served(agents: dict[str, AgentProcess]) -> dict[str, tuple[float, float]]:
    """Bytes received and sent by each zone's agent."""
    metrics = {zone: agent.metrics() for zone, agent in agents.items()}
    return {
        zone: (of["tidelog_agent_received_bytes_total"], of["tidelog_agent_sent_bytes_total"])
        for zone, of in metrics.items()
    }


def brokers(bootstrap: str, client_id: str) -> list[str]:
    """The addresses a client is told, asking at ``bootstrap``."""
    told = AdminClient({"bootstrap.servers": bootstrap, "client.id": client_id, "log_level": 0}).list_topics(timeout=10)
    return sorted(f"{broker.host}:{broker.port}" for broker in told.brokers.values())


def wait_for_brokers(bootstrap: str, client_id: str, expected: list[str], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while (told := brokers(bootstrap, client_id)) != expected:
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def test_in_steady_state_no_byte_crosses_a_zone(agents: dict[str, AgentProcess], tmp_path: Path) -> None:
    topic = "zones"
    create_topic(agents["a"].bootstrap, topic, PARTITIONS)
    clients: list[RecordedClient] = []
    bootstrap = ",".join(agent.bootstrap for agent in agents.values())
    try:
        for zone in ZONES:
            for library in ("confluent", "aiokafka"):
                name = f"{library}-{zone}"
                client_id = f"{name},zone={zone}"
                common = {"client": library, "client_id": client_id}
                clients.append(
                    start_producer(tmp_path, f"p-{name}", bootstrap, topic, PARTITIONS, rate=40, **common)  # type: ignore[arg-type]
                )
                clients.append(
                    start_consumer(tmp_path, f"c-{name}", bootstrap, topic, f"g-{name}", **common)  # type: ignore[arg-type]
                )
        for client in clients:
            if client.recording.group is not None:
                wait_for_members([client], PARTITIONS, 90)
        time.sleep(3)
        before, at_work = crossed(agents), served(agents)
        polled = {client.name: client.follow().polled_count for client in clients}
        time.sleep(15)  # three of their metadata refreshes
        after, now = crossed(agents), served(agents)
        print(f"crossed before and after: {before} {after}")
        assert after == before, "bytes crossed zones"
        assert sum(before.values()) > 0, "but those with which clients asked where to go"
        for zone in ZONES:
            received, sent = (later - earlier for later, earlier in zip(now[zone], at_work[zone], strict=True))
            print(f"zone {zone}: {received:,.0f} bytes received, {sent:,.0f} sent")
            assert received > 15_000 and sent > 30_000, "every zone's agent is at work"
        for client in clients:
            if client.recording.group is not None:
                assert client.follow().polled_count - polled[client.name] > 15 * 200, "everybody reads everything"
            assert client.recording.errors == []
    finally:
        for client in clients:
            client.kill()


def test_clients_follow_their_zone_wherever_they_ask_and_others_serve_a_zone_that_has_nobody(
    agents: dict[str, AgentProcess],
) -> None:
    addresses = {zone: agent.bootstrap for zone, agent in agents.items()}
    for asked in ZONES:
        for zone in ZONES:
            wait_for_brokers(addresses[asked], f"x,zone={zone}", [addresses[zone]])
        wait_for_brokers(addresses[asked], "x", [addresses[asked]])
    counted = sum(value for name, value in crossed({"a": agents["a"]}).items() if 'zone="b"' in name)
    assert counted > 0, "who asks elsewhere is counted"

    agents["b"].kill()
    wait_for_brokers(addresses["a"], "x,zone=b", sorted([addresses["a"], addresses["c"]]))
    assert agents["a"].metrics()["tidelog_agent_foreign_zone_answers_total"] > 0
    assert agents["a"].log().count('"zone_without_agents"') == 1
    agents["b"].start()
    wait_for_brokers(addresses["a"], "x,zone=b", [addresses["b"]])
    assert '"zone_served_again"' in agents["a"].log()
