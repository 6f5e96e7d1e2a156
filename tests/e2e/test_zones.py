"""Three zones: who is sent where, and who stands in for a zone that has nobody. What crosses zones in steady state is
counted by the kernel, in :mod:`tests.e2e.test_cross_zone_sockets`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.support.agent_process import AgentProcess
from tests.support.metadata_process import MetadataProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

ZONES = ("a", "b", "c")
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


def brokers(bootstrap: str, client_id: str) -> list[str]:
    """The addresses a client is told, asking at ``bootstrap``."""
    told = AdminClient({"bootstrap.servers": bootstrap, "client.id": client_id, "log_level": 0}).list_topics(timeout=10)
    return sorted(f"{broker.host}:{broker.port}" for broker in told.brokers.values())


def wait_for_brokers(bootstrap: str, client_id: str, expected: list[str], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while (told := brokers(bootstrap, client_id)) != expected:
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


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
