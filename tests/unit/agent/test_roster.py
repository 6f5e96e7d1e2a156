"""Who is named to whom, as the roster and this agent's own condition change."""

from structlog.testing import capture_logs

from agent.roster import UNKNOWN_ZONE, Roster
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo
from runtime.settings import RoutingSettings
from tests.support.agents import agent_info, roster

READY, SICK, DRAINING, STARTING = (
    AgentCondition.READY,
    AgentCondition.SICK,
    AgentCondition.DRAINING,
    AgentCondition.STARTING,
)


def of_agent_1(
    *others: AgentInfo, condition: AgentCondition = READY, settings: RoutingSettings | None = None
) -> Roster:
    """As agent 1 of zone a sees it."""
    known = roster("a", settings=settings)
    known.is_now(NodeEndpoint(1, "agent-1", 9092), condition)
    known.heard([agent_info(1, "a"), *others])
    return known


def named(known: Roster, zone: str) -> list[int]:
    return [endpoint.node_id for endpoint in known.route(zone, None, "10.0.0.1").endpoints]


def test_clients_hear_of_the_agents_of_their_zone_and_group_alone() -> None:
    known = of_agent_1(agent_info(2, "a"), agent_info(3, "b"), agent_info(4, "a", group="vip"))
    assert named(known, "a") == [1, 2]
    assert named(known, "b") == [3]


def test_an_agent_that_serves_no_clients_is_not_named() -> None:
    assert named(of_agent_1(agent_info(2, "a", roles=("jobs",))), "a") == [1]


def test_own_illness_counts_at_once_and_while_others_have_not_heard() -> None:
    known = of_agent_1(agent_info(2, "a"), condition=SICK)
    assert named(known, "a") == [2]
    known.is_now(NodeEndpoint(1, "agent-1", 9092), READY)
    assert named(known, "a") == [1, 2]
    known.heard([agent_info(1, "a", condition=SICK), agent_info(2, "a")])
    assert named(known, "a") == [2], "nor while everybody says that it is sick"


def test_alone_it_names_itself_whatever_its_condition() -> None:
    for condition in (STARTING, READY, SICK, DRAINING):
        known = of_agent_1(condition=condition)
        assert named(known, "a") == [1]
        assert not known.has_others()
    fresh = roster("a")
    fresh.is_now(NodeEndpoint(1, "agent-1", 9092), STARTING)
    assert named(fresh, "a") == [1], "nor does it need to be in the roster"


def test_there_is_somebody_to_go_to_while_another_agent_of_the_group_lives() -> None:
    assert of_agent_1(agent_info(2, "b"), condition=DRAINING).has_others()
    assert of_agent_1(agent_info(2, "b", condition=SICK), condition=DRAINING).has_others()
    assert not of_agent_1(agent_info(2, "b", condition=DRAINING), condition=DRAINING).has_others()
    assert not of_agent_1(agent_info(2, "b", condition=STARTING), condition=DRAINING).has_others()
    assert not of_agent_1(agent_info(2, "a", group="vip"), condition=DRAINING).has_others()


def test_what_everybody_was_told_of_this_agent() -> None:
    known = of_agent_1()
    assert known.told_condition() is READY
    known.heard([agent_info(2, "a")])
    assert known.told_condition() is None


def test_a_zone_without_agents_is_served_by_others_counted_and_logged_once_per_change() -> None:
    known = of_agent_1(agent_info(2, "b"))
    with capture_logs() as lines:
        assert named(known, "b") == [2]
        known.heard([agent_info(1, "a"), agent_info(2, "b", condition=SICK)])
        for _ in range(5):
            assert named(known, "b") == [1]
        known.heard([agent_info(1, "a")])
        assert named(known, "b") == [1]
        known.heard([agent_info(1, "a"), agent_info(3, "b")])
        assert named(known, "b") == [3]
    assert [(line["event"], line["zone"]) for line in lines] == [
        ("zone_without_agents", "b"),
        ("zone_served_again", "b"),
    ]
    assert known._metrics.foreign_answers == 6


def test_zones_that_clients_make_up_cost_nothing() -> None:
    known = of_agent_1(settings=RoutingSettings(cidrs={"10.0.0.0/8": "c"}))
    with capture_logs() as lines:
        for number in range(10_000):
            assert named(known, f"made-up-{number}") == [1]
    assert lines == []
    assert len(known._servers) == 1
    assert [known.zone_label(zone) for zone in ("a", "c", "made-up-1")] == ["a", "c", UNKNOWN_ZONE]


def test_the_zone_of_a_client_is_what_it_says_then_its_network_then_ours() -> None:
    known = of_agent_1(settings=RoutingSettings(cidrs={"10.0.0.0/8": "b"}))
    assert known.client_zone("x,zone=c", "10.0.0.1") == "c"
    assert known.client_zone("x", "10.0.0.1") == "b"
    assert known.client_zone(None, "192.168.0.1") == "a"


def test_one_agent_for_everything_by_setting_or_by_the_clients_own_word() -> None:
    others = [agent_info(number, "a") for number in range(2, 9)]
    assert of_agent_1(*others).route("a", "x", "h").chosen is None
    assert of_agent_1(*others).route("a", "x,strategy=client", "h").chosen is not None
    by_setting = of_agent_1(*others, settings=RoutingSettings(strategy="client"))
    assert by_setting.route("a", "x", "h").chosen is not None
    assert by_setting.route("a", "x,strategy=partition", "h").chosen is None
