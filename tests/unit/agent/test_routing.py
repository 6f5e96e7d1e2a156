"""Client words, networks, and who serves whom."""

from collections import Counter
from uuid import UUID

import pytest

from agent.routing import CHUNK_PARTITIONS, SPARES, Servers, ZoneMap, candidates, client_words, route_to
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition
from tests.support.agents import agent_info

TOPIC = UUID("00000000-0000-4000-8000-00000000002a").bytes
READY, SICK, DRAINING, STARTING = (
    AgentCondition.READY,
    AgentCondition.SICK,
    AgentCondition.DRAINING,
    AgentCondition.STARTING,
)


@pytest.mark.parametrize(
    ("client_id", "zone", "strategy"),
    [
        (None, None, None),
        ("", None, None),
        ("rdkafka", None, None),
        ("zone=a", "a", None),
        ("shipper-7,zone=eu-1a", "eu-1a", None),
        ("shipper zone=eu-1a;strategy=client", "eu-1a", "client"),
        ("ws_az=us-east-1a", "us-east-1a", None),
        ("warpstream_az=us-east-1a,ws_pt=proxy-produce", "us-east-1a", None),
        ("my-producer,diskless_az=use1-az2", "use1-az2", None),
        ("timezone=CET", None, None),
        ("my_zone=x", None, None),
        ("zone=", None, None),
        ("zone=,ws_az=b", "b", None),
        ("zone=a,ws_az=b", "a", None),
        ("strategy=partition", None, "partition"),
    ],
)
def test_words_of_a_client_id(client_id: str | None, zone: str | None, strategy: str | None) -> None:
    assert client_words(client_id) == (zone, strategy)


def test_the_narrowest_network_counts() -> None:
    networks = ZoneMap({"10.0.0.0/8": "a", "10.1.0.0/16": "b", "10.1.2.3/32": "c", "fd00::/8": "d"})
    found = [networks.zone(host) for host in ("10.9.9.9", "10.1.9.9", "10.1.2.3", "::ffff:10.1.2.3", "fd00::1%eth0")]
    assert found == ["a", "b", "c", "c", "d"]
    assert [networks.zone(host) for host in ("11.0.0.1", "unknown", "::1")] == [None, None, None]
    assert ZoneMap({}).zone("10.0.0.1") is None


def test_candidates_are_near_and_ready_before_anything_else() -> None:
    near, far = agent_info(1, "a"), agent_info(2, "b")
    assert candidates([near, far], "a") == ([near], False)
    assert candidates([near, far], "b") == ([far], False)
    assert candidates([near, far], "c") == ([near, far], True)


@pytest.mark.parametrize("condition", [SICK, DRAINING, STARTING])
def test_who_is_not_ready_is_not_named_while_somebody_is(condition: AgentCondition) -> None:
    near, far = agent_info(1, "a", condition=condition), agent_info(2, "b")
    assert candidates([near, far], "a") == ([far], True)


def test_when_all_are_sick_they_serve_as_if_they_were_not() -> None:
    near, far = agent_info(1, "a", condition=SICK), agent_info(2, "b", condition=SICK)
    assert candidates([near, far], "a") == ([near], False)
    assert candidates([agent_info(1, "a", condition=DRAINING)], "a") == ([], True)


def servers(*node_ids: int) -> Servers:
    return Servers([NodeEndpoint(node_id, f"agent-{node_id}", 9092) for node_id in node_ids], False)


def all_leaders(of: Servers, count: int, topic: bytes = TOPIC) -> list[int]:
    return [leader for chunk in range(-(-count // CHUNK_PARTITIONS)) for leader in of.leaders(topic, count, chunk)]


def test_partitions_are_spread_evenly_over_agents_and_topics() -> None:
    count = 20_000
    shares = Counter(all_leaders(servers(*range(1, 11)), count))
    assert len(shares) == 10
    assert all(abs(share - count / 10) < count / 10 * 0.1 for share in shares.values()), shares
    of = servers(*range(1, 11))
    firsts = Counter(of.leader(number.to_bytes(16, "big"), 1, 0).node_id for number in range(2_000))
    assert all(abs(share - 200) < 60 for share in firsts.values()), "topics of one partition do not gather"


def test_only_what_an_agent_gets_or_had_changes_hands() -> None:
    before, after = all_leaders(servers(1, 2, 3, 4), 5_000), all_leaders(servers(1, 2, 3, 4, 5), 5_000)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {5}
    assert abs(len(moved) - 1_000) < 150
    without = all_leaders(servers(1, 3, 4), 5_000)
    assert all(old == new or old == 2 for old, new in zip(before, without, strict=True))


def test_everybody_decides_alike_in_whatever_order_it_heard() -> None:
    assert all_leaders(servers(3, 1, 2), 2_500) == all_leaders(servers(2, 3, 1), 2_500)
    assert all_leaders(servers(1, 2, 3), 100) == all_leaders(servers(1, 2, 3), 2_500)[:100], "topics may grow"
    known = all_leaders(servers(1, 2, 3), 2_500)
    of = servers(1, 2, 3)
    assert [of.leader(TOPIC, 2_500, index).node_id for index in (0, 1_023, 1_024, 2_499)] == [
        known[index] for index in (0, 1_023, 1_024, 2_499)
    ]


def test_leaders_are_the_same_in_every_release() -> None:
    """Agents of two releases run side by side during an upgrade."""
    assert all_leaders(servers(1, 2, 3), 12) == [2, 2, 3, 1, 3, 1, 2, 3, 3, 2, 1, 2]
    assert [endpoint.node_id for endpoint in servers(1, 2, 3, 4, 5).ranked(b"group:logs")] == [4, 3, 1, 2, 5]


def test_leaders_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.routing.CACHED_PARTITIONS_MAX", 3_000)
    of = servers(1, 2, 3)
    expected = all_leaders(servers(1, 2, 3), 2_500)
    for number in range(20):
        all_leaders(of, 2_500, number.to_bytes(16, "big"))
        assert of._cached_partitions <= 3_000
        assert sum(map(len, of._chunks.values())) == of._cached_partitions
    assert all_leaders(of, 2_500) == expected


def test_strategy_client_gives_one_agent_for_everything_and_spares() -> None:
    of = servers(*range(1, 21))
    chosen = Counter[int]()
    for number in range(2_000):
        route = route_to(of, f"shipper 10.0.{number // 256}.{number % 256}")
        assert route.chosen is not None
        chosen[route.chosen.node_id] += 1
        assert {route.leader(TOPIC, 64, index) for index in range(64)} == {route.chosen}
        assert route.coordinator("any") == route.chosen
        assert route.chosen in route.endpoints
        assert len(route.endpoints) == 1 + SPARES
    assert all(abs(share - 100) < 50 for share in chosen.values()), chosen


def test_strategy_partition_names_everybody_and_spreads_coordinators() -> None:
    of = servers(1, 2, 3)
    route = route_to(of, None)
    assert route.endpoints == of.endpoints
    coordinators = Counter(route.coordinator(f"group-{number}").node_id for number in range(900))
    assert all(abs(share - 300) < 80 for share in coordinators.values()), coordinators
