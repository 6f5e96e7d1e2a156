"""Addresses, names and command lines of a local cluster."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tidelog.cluster.plan import (
    AgentPlan,
    ClusterSpec,
    PlanError,
    Ports,
    TlsFiles,
    agent_command,
    environment,
    metadata_command,
    plan_agent,
    plan_metadata,
)

SPEC = ClusterSpec(("a", "b"), ("plaintext", "tls"), Path("/data"))
TLS = TlsFiles(Path("/tls/ca.pem"), Path("/tls/server.pem"), Path("/tls/server.key"))


def _no_free_port() -> int:
    raise AssertionError("the base is not 0")


def test_ports_follow_from_the_base() -> None:
    ports = Ports(9092, _no_free_port)
    assert [plan.listen for plan in plan_metadata(ports)] == ["127.0.0.1:9492", "127.0.0.1:9493"]
    first = plan_agent("a", "tls", [], ports)
    second = plan_agent("a", "tls", [first], ports)
    assert first == AgentPlan("agent-a-tls-1", "a", "tls", 1, "127.0.0.1:9092", "127.0.0.1:9592")
    assert second == AgentPlan("agent-a-tls-2", "a", "tls", 2, "127.0.0.1:9093", "127.0.0.1:9593")


def test_with_base_0_every_port_is_a_free_one_and_nobody_elses() -> None:
    offered = iter([5, 5, 6, 7])
    ports = Ports(0, lambda: next(offered))
    assert [ports.kafka(), ports.http(), ports.metadata()] == ["127.0.0.1:5", "127.0.0.1:6", "127.0.0.1:7"]


def test_an_agent_that_left_makes_room_for_its_number_but_not_its_port() -> None:
    ports = Ports(9092, _no_free_port)
    agents: list[AgentPlan] = []
    for _ in range(3):
        agents.append(plan_agent("a", "tls", agents, ports))
    del agents[1]
    assert plan_agent("a", "tls", agents, ports).name == "agent-a-tls-2"
    assert plan_agent("b", "tls", agents, ports).name == "agent-b-tls-1"


def test_commands_are_what_an_operator_would_type() -> None:
    ports = Ports(9092, _no_free_port)
    metadata = plan_metadata(ports)
    agent = plan_agent("a", "tls", [], ports)
    assert " ".join(metadata_command(metadata[0], SPEC)[2:]) == (
        "tidelog metadata --listen 127.0.0.1:9492 --store sqlite:////data/metadata.sqlite"
        " --storage file:///data/objects"
    )
    assert " ".join(agent_command(agent, SPEC, metadata)[2:]) == (
        "tidelog agent --metadata http://127.0.0.1:9492,http://127.0.0.1:9493 --storage file:///data/objects "
        "--zone a --group tls --kafka 127.0.0.1:9092 --advertise 127.0.0.1:9092 --http 127.0.0.1:9592"
    )


def test_settings_asked_for_beat_inherited_ones_and_those_beat_modest_ones() -> None:
    ports = Ports(0, count(1).__next__)
    agent, metadata = plan_agent("a", "plaintext", [], ports), plan_metadata(ports)[0]
    inherited = {"PATH": "/bin", "TIDELOG_INGEST__LINGER_MS": "9", "TIDELOG_MEMORY__BUDGET_BYTES": "70000000"}
    spec = ClusterSpec(("a",), ("plaintext",), Path("/d"), settings={"ingest.linger_ms": "5"})
    assert environment(agent, spec, inherited, None) == inherited | {"TIDELOG_INGEST__LINGER_MS": "5"}
    assert environment(agent, spec, {}, None)["TIDELOG_MEMORY__BUDGET_BYTES"] == "134217728"
    assert environment(metadata, spec, {}, None) == {"TIDELOG_INGEST__LINGER_MS": "5"}


def test_only_the_tls_group_has_certificates() -> None:
    ports = Ports(0, count(1).__next__)
    secured = environment(plan_agent("a", "tls", [], ports), SPEC, {}, TLS)
    assert secured["TIDELOG_TLS__CERTIFICATE"] == "/tls/server.pem"
    assert secured["TIDELOG_TLS__KEY"] == "/tls/server.key"
    assert "TIDELOG_TLS__KEY" not in environment(plan_agent("a", "plaintext", [], ports), SPEC, {}, TLS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"zones": ()}, "--zones"),
        ({"zones": ("a", "a")}, "--zones"),
        ({"zones": ("../x",)}, "--zones"),
        ({"groups": ("vip", "")}, "--groups"),
        ({"agents_per_zone": 200}, "--agents-per-zone"),
        ({"kafka_port": 65_000}, "--kafka-port"),
        ({"storage": "memory://"}, "--storage"),
        ({"metadata_store": "memory://"}, "--metadata-store"),
        ({"metadata_store": "mysql://x/y"}, "--metadata-store"),
    ],
)
def test_what_cannot_be_is_refused_with_the_options_name(change: dict[str, Any], named: str) -> None:
    fields: dict[str, Any] = {"zones": ("a", "b"), "groups": ("plaintext", "tls"), "data": Path("/data")}
    with pytest.raises(PlanError, match=named):
        ClusterSpec(**(fields | change)).check()
    SPEC.check()
