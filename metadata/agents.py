"""What the leader knows of living agents: their conditions, loads, and when each was last heard. Pure.

Soft state beside the durable registrations. ``now`` is in milliseconds that never go back (any zero).

=====================================  ==========================================================================
an agent that                          is
=====================================  ==========================================================================
has registered                         STARTING, until its first heartbeat
was registered when the leader began   taken for alive, heard at that moment, and READY
sends heartbeats                       what it says it is; SICK when it says READY and its load says otherwise
READY, and silent for ``suspect_ms``    SICK in the roster, until it is heard again
is silent for ``session_timeout_ms``   named by :meth:`AgentRegistry.silent`, to be fenced durably
=====================================  ==========================================================================

Silence is only counted while somebody listened: when looks come late, this process itself stood still, and the agents
get that time on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from metadata.agent_model import AgentCondition, AgentDescription, AgentHeartbeat, AgentInfo, AgentLoad
from metadata.model import Fenced
from metadata.store.port import AgentSaved

LOOP_LAG_SICK_MS = 2_000.0
"""An event loop that comes later than this serves nobody well, whatever the agent says of itself."""
HEARTBEATS_LAGGING = 3
"""So many in a row make it SICK; the first better one ends it."""
LOOK_LATE_MS = 1_000
"""Looks further apart than this were late: the time above it is no agent's silence."""

_NO_LOAD = AgentLoad()


@dataclass(slots=True)
class _Agent:
    saved: AgentSaved
    condition: AgentCondition
    heard: int
    reason: str = ""
    load: AgentLoad = _NO_LOAD
    heard_ms: int = 0
    """Wall clock, for people."""
    lagging: int = 0
    """Heartbeats in a row whose event loop came too late."""


class AgentRegistry:
    """Every agent whose epoch is not fenced. What it holds is bounded by the registrations in the store."""

    def __init__(self, suspect_ms: int, session_timeout_ms: int) -> None:
        self._suspect_ms = suspect_ms
        self._session_timeout_ms = session_timeout_ms
        self._agents: dict[int, _Agent] = {}
        self._infos: dict[int, AgentInfo] = {}
        self._roster: tuple[AgentInfo, ...] | None = ()
        self._looked: int | None = None

    @property
    def roster(self) -> tuple[AgentInfo, ...]:
        """Everybody, by node id; the same object as long as nothing in it changes."""
        if self._roster is None:
            self._roster = tuple(sorted(self._infos.values(), key=lambda info: info.node_id))
        return self._roster

    def describe(self) -> list[AgentDescription]:
        """Everybody with what is not in the roster, by node id."""
        described = []
        for info in self.roster:
            agent = self._agents[info.agent_epoch]
            _, reason = _verdict(agent)
            if info.condition is AgentCondition.SICK and not reason:
                reason = "no heartbeat"
            described.append(AgentDescription(info, agent.load, reason, agent.saved.registered_ms, agent.heard_ms))
        return described

    def load(self, saved: Iterable[AgentSaved], condition: AgentCondition, now: int) -> None:
        """What is durable, whatever was thought before. Epochs that are known already stay as they are; others
        are heard now and in ``condition``."""
        self._looked = now if self._looked is None else self._looked
        known = self._agents
        self._agents, self._infos, self._roster = {}, {}, None
        for registered in saved:
            if registered.agent_epoch >= 0:
                agent = known.get(registered.agent_epoch) or _Agent(registered, condition, now)
                self._agents[registered.agent_epoch] = agent
                self._show(agent, now)

    def registered(self, saved: AgentSaved, now: int) -> None:
        """An agent has a new epoch; its earlier one is gone."""
        for epoch, agent in list(self._agents.items()):
            if agent.saved.agent_uid == saved.agent_uid:
                self.gone(epoch)
        self._agents[saved.agent_epoch] = agent = _Agent(saved, AgentCondition.STARTING, now)
        self._show(agent, now)

    def gone(self, agent_epoch: int) -> None:
        """The epoch is fenced. Nothing happens when it is not known."""
        if self._agents.pop(agent_epoch, None) is not None:
            del self._infos[agent_epoch]
            self._roster = None

    def heard(self, heartbeat: AgentHeartbeat, now: int, wall_ms: int) -> None:
        """:raises Fenced: the epoch is not that of any agent here."""
        agent = self._agents.get(heartbeat.agent_epoch)
        if agent is None:
            raise Fenced(f"agent epoch {heartbeat.agent_epoch} was fenced, replaced or never existed: register again")
        agent.condition, agent.reason, agent.load = heartbeat.condition, heartbeat.reason, heartbeat.load
        agent.heard, agent.heard_ms = now, wall_ms
        agent.lagging = agent.lagging + 1 if heartbeat.load.loop_lag_ms > LOOP_LAG_SICK_MS else 0
        self._show(agent, now)

    def look(self, now: int) -> None:
        """See who fell silent; call it several times in ``suspect_ms``."""
        late = 0 if self._looked is None else now - self._looked - LOOK_LATE_MS
        self._looked = now
        for agent in self._agents.values():
            if late > 0:
                agent.heard = min(agent.heard + late, now)
            self._show(agent, now)

    def silent(self, now: int) -> list[int]:
        """Epochs that were not heard for the session timeout, as of the last look and ``now``."""
        return [epoch for epoch, agent in self._agents.items() if now - agent.heard >= self._session_timeout_ms]

    def excuse(self, now: int) -> None:
        """Nobody could be heard for a while, which is no agent's fault: everybody counts as heard now."""
        for agent in self._agents.values():
            agent.heard = now
            self._show(agent, now)

    def _show(self, agent: _Agent, now: int) -> None:
        """Put the agent into the roster as others should see it."""
        condition, _ = _verdict(agent)
        if condition is AgentCondition.READY and now - agent.heard >= self._suspect_ms:
            condition = AgentCondition.SICK
        saved = agent.saved
        shown = self._infos.get(saved.agent_epoch)
        if shown is not None and shown.condition is condition:
            return
        self._infos[saved.agent_epoch] = AgentInfo(
            saved.node_id,
            saved.agent_epoch,
            saved.agent_uid,
            saved.zone,
            saved.group,
            saved.host,
            saved.port,
            saved.http_address,
            saved.version,
            saved.roles,
            condition,
        )
        self._roster = None


def _verdict(agent: _Agent) -> tuple[AgentCondition, str]:
    """What to make of what an agent said, leaving silence aside."""
    if agent.condition is AgentCondition.READY and agent.lagging >= HEARTBEATS_LAGGING:
        return AgentCondition.SICK, f"its event loop came {agent.load.loop_lag_ms / 1000:.1f} s late, again and again"
    return agent.condition, agent.reason
