"""Who of this agent's zone and group has bytes in memory, or reads them for everybody. Pure.

Only agents of the same zone *and* group are asked: nothing crosses a zone, and groups may sit in unconnected networks.
Every agent of the ring has the same members, so it names the same owner for a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.rendezvous import highest, seed
from ingest.segment import parse_segment_key
from metadata.agent_model import AgentCondition, AgentInfo


class Ring:
    """This agent and its peers. Alone until :meth:`update` says otherwise."""

    def __init__(self) -> None:
        self._members: tuple[AgentInfo, ...] = ()
        self._seeds: tuple[int, ...] = ()
        self._by_epoch: dict[int, AgentInfo] = {}
        self._node_id = -1

    def update(self, agents: Sequence[AgentInfo], node_id: int) -> None:
        """The roster changed. ``node_id`` is this agent's; while it is not in the roster it has no peers."""
        me = next((agent for agent in agents if agent.node_id == node_id), None)
        self._node_id = node_id
        if me is None:
            self._members, self._seeds, self._by_epoch = (), (), {}
            return
        neighbours = [agent for agent in agents if (agent.zone, agent.group) == (me.zone, me.group)]
        reachable = [agent for agent in neighbours if agent.http_address]
        # A draining agent owns no block any more, but still has what it wrote.
        self._by_epoch = {
            agent.agent_epoch: agent
            for agent in reachable
            if agent.node_id != node_id and agent.condition in (AgentCondition.READY, AgentCondition.DRAINING)
        }
        self._members = tuple(
            agent for agent in reachable if agent.condition is AgentCondition.READY or agent.node_id == node_id
        )
        self._seeds = tuple(seed(agent.node_id) for agent in self._members)

    def __len__(self) -> int:
        return len(self._members)

    def writer(self, segment_key: str) -> AgentInfo | None:
        """The peer that wrote the segment and may have it in memory; None: nobody near, or this agent."""
        if not self._by_epoch:
            return None
        try:
            return self._by_epoch.get(parse_segment_key(segment_key).agent_epoch)
        except ValueError:
            return None

    def owner(self, segment_key: str, index: int) -> AgentInfo | None:
        """The peer that reads the ``index``-th block of the object for the ring; None: this agent does."""
        if len(self._members) < 2:
            return None
        member = self._members[highest(f"{segment_key}/{index}".encode(), self._seeds)]
        return None if member.node_id == self._node_id else member
