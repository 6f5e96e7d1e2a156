"""The rules by which agents are judged, without a service."""

from __future__ import annotations

import pytest

from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentLoad
from metadata.agents import HEARTBEATS_LAGGING, LOOP_LAG_SICK_MS, AgentRegistry
from metadata.model import Fenced
from metadata.store.port import AgentSaved

STEP_MS = 500


def saved(epoch: int, agent_uid: str = "") -> AgentSaved:
    return AgentSaved(agent_uid or f"agent-{epoch}", 100 - epoch, epoch, "a", "g", registered_ms=7)


class World:
    """Suspected after 3 seconds, silent after 10. Time passes in steps, as for a service that looks in time."""

    def __init__(self) -> None:
        self.registry = AgentRegistry(3_000, 10_000)
        self.now = 1_000_000

    def hear(
        self, epoch: int, condition: AgentCondition = AgentCondition.READY, reason: str = "", lag_ms: float = 0
    ) -> None:
        load = AgentLoad(loop_lag_ms=lag_ms)
        self.registry.heard(AgentHeartbeat(epoch, condition, reason, load), self.now, self.now + 5)

    def wait(self, milliseconds: int) -> None:
        for _ in range(milliseconds // STEP_MS):
            self.now += STEP_MS
            self.registry.look(self.now)

    @property
    def conditions(self) -> list[str]:
        return [info.condition.value for info in self.registry.roster]


@pytest.fixture
def world() -> World:
    return World()


def test_the_roster_is_the_same_object_until_something_in_it_changes(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    world.registry.registered(saved(2), world.now)
    roster = world.registry.roster
    assert [info.node_id for info in roster] == [98, 99]
    world.wait(1_000)
    assert world.registry.roster is roster
    world.hear(1)
    ready = world.registry.roster
    assert ready is not roster
    world.hear(1, lag_ms=5)
    assert world.registry.roster is ready


def test_silence_counts_from_the_last_word(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    world.hear(1)
    world.wait(2_500)
    assert world.conditions == ["ready"]
    world.wait(500)
    assert world.conditions == ["sick"]
    world.hear(1)
    assert world.conditions == ["ready"]
    world.wait(9_500)
    assert (world.conditions, world.registry.silent(world.now)) == (["sick"], [])
    world.wait(500)
    assert world.registry.silent(world.now) == [1]


def test_an_agent_that_does_not_want_clients_stays_what_it_said(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    world.hear(1, AgentCondition.DRAINING, "shutting down")
    world.wait(5_000)
    assert world.conditions == ["draining"]
    assert world.registry.describe()[0].reason == "shutting down"


def test_a_stalled_loop_is_seen_when_the_agent_does_not_say_so(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    for _ in range(HEARTBEATS_LAGGING - 1):
        world.hear(1, lag_ms=LOOP_LAG_SICK_MS + 1)
    world.hear(1, lag_ms=LOOP_LAG_SICK_MS)
    for _ in range(HEARTBEATS_LAGGING):
        assert world.conditions == ["ready"], "not in a row"
        world.hear(1, lag_ms=LOOP_LAG_SICK_MS + 500)
    assert world.conditions == ["sick"]
    assert world.registry.describe()[0].reason == "its event loop came 2.5 s late, again and again"
    world.hear(1)
    assert world.conditions == ["ready"]


def test_the_time_this_process_stood_still_is_nobodys_silence(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    world.hear(1)
    world.wait(2_000)
    world.now += 60_000
    world.registry.look(world.now)
    assert (world.conditions, world.registry.silent(world.now)) == (["sick"], []), "2 s and the second a look may take"
    world.wait(7_500)
    assert world.registry.silent(world.now) == [1]


def test_excused_agents_are_heard_now(world: World) -> None:
    world.registry.registered(saved(1), world.now)
    world.hear(1)
    world.wait(9_500)
    world.registry.excuse(world.now)
    assert world.conditions == ["ready"]
    world.wait(9_500)
    assert world.registry.silent(world.now) == []


def test_only_the_newest_epoch_of_an_agent_is_known(world: World) -> None:
    world.registry.registered(saved(1, "a"), world.now)
    world.registry.registered(saved(2, "a"), world.now)
    assert [info.agent_epoch for info in world.registry.roster] == [2]
    with pytest.raises(Fenced):
        world.hear(1)
    world.registry.gone(2)
    world.registry.gone(2)
    assert world.registry.roster == ()


def test_loading_keeps_what_is_known_and_leaves_out_who_is_fenced(world: World) -> None:
    world.registry.load([saved(1), saved(2), saved(-1)], AgentCondition.READY, world.now)
    assert world.conditions == ["ready", "ready"]
    world.wait(4_000)
    world.hear(2, AgentCondition.SICK, "uploads fail")
    world.registry.load([saved(2), saved(3), saved(1)], AgentCondition.STARTING, world.now)
    assert {info.agent_epoch: info.condition.value for info in world.registry.roster} == {
        1: "sick",
        2: "sick",
        3: "starting",
    }
    world.registry.load([saved(3)], AgentCondition.READY, world.now)
    assert [info.agent_epoch for info in world.registry.roster] == [3]
