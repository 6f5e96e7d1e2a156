"""The agents as last heard of, and this one's place among them: who is named to which client.

Fed by the metadata subscription, like :mod:`agent.topics`, and as stale as that: a client that is sent to the wrong
agent is served there all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import structlog

from agent.context import Call
from agent.metrics import AgentMetrics
from agent.routing import Route, Servers, ZoneMap, candidates, client_words, route_to
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo
from runtime.settings import RoutingSettings

UNKNOWN_ZONE: Final = "unknown"
"""What a zone is called in metrics that neither an agent nor a network of ours is in: clients choose the name."""

_log = structlog.get_logger("tidelog.agent.roster")


class Roster:
    """One agent's view of all agents. One event loop.

    What this agent thinks of itself counts at once, before everybody has heard of it: it is named to clients only while
    it and the metadata service both say READY. When there is nobody else to name, it names itself.
    """

    def __init__(self, zone: str, group: str, settings: RoutingSettings, metrics: AgentMetrics) -> None:
        self.zone = zone
        self._group = group
        self._metrics = metrics
        self._strategy = settings.strategy
        self._networks = ZoneMap(settings.cidrs)
        self._own = NodeEndpoint(-1, "", 0)
        self._condition = AgentCondition.STARTING
        self.agents: tuple[AgentInfo, ...] = ()
        """Every agent of the cluster whose epoch is not fenced, by node id."""
        self._zones = {zone, *settings.cidrs.values()}
        """Every zone that was ever heard of, but from clients: a bounded number."""
        self._group_agents: list[AgentInfo] = []
        """Those that clients may be sent to, as this agent sees them."""
        self._servers: dict[str, Servers] = {}
        """By the client's :meth:`zone_label`, as they were asked for."""
        self._zones_missed: set[str] = set()

    # --- what is known ------------------------------------------------------------------------------------

    def heard(self, agents: Sequence[AgentInfo]) -> None:
        """The whole roster, by node id."""
        self.agents = tuple(agents)
        self._update()

    def is_now(self, own: NodeEndpoint, condition: AgentCondition) -> None:
        """This agent's own address and what it thinks of itself."""
        if (own, condition) != (self._own, self._condition):
            self._own, self._condition = own, condition
            self._update()

    @property
    def own_condition(self) -> AgentCondition:
        return self._condition

    def told_condition(self) -> AgentCondition | None:
        """What everybody has been told of this agent; None while it is in no roster."""
        for agent in self.agents:
            if agent.node_id == self._own.node_id:
                return agent.condition
        return None

    def has_others(self) -> bool:
        """Whether there is another agent to send this one's clients to."""
        living = (AgentCondition.READY, AgentCondition.SICK)
        return any(agent.condition in living and agent.node_id != self._own.node_id for agent in self._group_agents)

    def _update(self) -> None:
        self._zones.update(agent.zone for agent in self.agents)
        self._servers.clear()
        self._group_agents = [self._as_seen(agent) for agent in self.agents if self._may_serve(agent)]
        served = {agent.zone for agent in self._group_agents if agent.condition is AgentCondition.READY}
        for zone in sorted(self._zones_missed & served):
            self._zones_missed.discard(zone)
            _log.info("zone_served_again", zone=zone, group=self._group)

    def _may_serve(self, agent: AgentInfo) -> bool:
        return agent.group == self._group and "proxy" in agent.roles

    def _as_seen(self, agent: AgentInfo) -> AgentInfo:
        """Ourselves in the worse of both opinions."""
        if agent.node_id != self._own.node_id or self._condition is AgentCondition.READY:
            return agent
        return msgspec.structs.replace(agent, condition=self._condition)

    # --- who serves whom ----------------------------------------------------------------------------------

    def client_zone(self, client_id: str | None, host: str) -> str:
        """The zone of a client at ``host``: as its ``client.id`` says, else by its network, else this agent's."""
        return client_words(client_id).zone or self._networks.zone(host) or self.zone

    def zone_label(self, zone: str) -> str:
        """``zone`` as metrics may name it: one of a bounded number."""
        return zone if zone in self._zones else UNKNOWN_ZONE

    def route_for(self, call: Call) -> Route:
        """Where the client that made ``call`` is sent."""
        return self.route(call.zone or self.zone, call.client_id, call.client_host.removeprefix("/"))

    def lone_neighbour(self, call: Call, route: Route) -> NodeEndpoint | None:
        """The only agent that ``route`` names, when it is of the client's zone, and this one of another, and READY."""
        if call.zone in ("", self.zone) or route.servers.is_foreign or len(route.endpoints) > 1:
            return None
        own = next((agent for agent in self._group_agents if agent.node_id == self._own.node_id), None)
        return route.endpoints[0] if own is not None and own.condition is AgentCondition.READY else None

    @property
    def own_endpoint(self) -> NodeEndpoint:
        """Where clients reach this agent."""
        return self._own

    def route(self, zone: str, client_id: str | None, host: str) -> Route:
        """Where a client of ``zone`` is sent; counted when its zone has nobody."""
        servers = self._servers_of(zone)
        if servers.is_foreign:
            self._metrics.foreign_answers += 1
        strategy = client_words(client_id).strategy or self._strategy
        return route_to(servers, f"{client_id} {host}" if strategy == "client" else None)

    def _servers_of(self, zone: str) -> Servers:
        key = self.zone_label(zone)
        servers = self._servers.get(key)
        if servers is None:
            agents, is_foreign = candidates(self._group_agents, zone)
            endpoints = [NodeEndpoint(agent.node_id, agent.host, agent.port) for agent in agents]
            if not endpoints:
                endpoints, is_foreign = [self._own], zone != self.zone
            servers = self._servers[key] = Servers(endpoints, is_foreign)
            if is_foreign and zone == key and zone not in self._zones_missed:
                self._zones_missed.add(zone)
                _log.warning("zone_without_agents", zone=zone, group=self._group, served_by=len(endpoints))
        return servers
