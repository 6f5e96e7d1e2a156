"""Which agent serves whom: the client's zone, the agents it may be sent to, and who leads what among them. Pure.

Everybody decides alike: from the roster, the client's own words and a rendezvous hash, without asking anybody. When an
agent comes or goes, only the partitions (groups, clients) it gets or had change hands.
"""

from __future__ import annotations

import ipaddress
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.rendezvous import highest, highest_of_many, ranked, seed
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo
from metadata.model import TopicId

CHUNK_PARTITIONS: Final = 1_024
"""Leaders are worked out for so many partitions at a time: four milliseconds with thirty agents."""
CACHED_PARTITIONS_MAX: Final = 400_000
"""Leaders remembered for one set of agents; more, and they are forgotten and worked out again when asked for."""
SPARES: Final = 2
"""Agents named beside the one that leads everything, so that its death does not leave the client without an address."""

# --- what a client says of itself ---------------------------------------------------------------------------

_WORD: Final = re.compile(r"(?:^|[ ,;])(zone|ws_az|warpstream_az|diskless_az|strategy)=([^ ,;=]+)")
"""``name=value`` among other words of a client.id; comma, space and semicolon separate."""


class ClientWords(NamedTuple):
    """What a ``client.id`` says about routing; None where it says nothing."""

    zone: str | None
    strategy: str | None


def client_words(client_id: str | None) -> ClientWords:
    """The zone and the strategy in ``client_id``. Of several zones the first counts."""
    zone = strategy = None
    if client_id and "=" in client_id:
        for name, value in _WORD.findall(client_id):
            if name == "strategy":
                strategy = strategy or value
            elif zone is None:
                zone = value
    return ClientWords(zone, strategy)


class ZoneMap:
    """Networks to zones; the narrowest network that holds an address counts."""

    def __init__(self, cidrs: Mapping[str, str]) -> None:
        """``cidrs`` as in ``settings.routing.cidrs``."""
        networks = [(ipaddress.ip_network(cidr), zone) for cidr, zone in cidrs.items()]
        self._networks = sorted(networks, key=lambda entry: entry[0].prefixlen, reverse=True)

    def zone(self, host: str) -> str | None:
        """The zone of an address as sockets show it, None when no network holds it."""
        if not self._networks:
            return None
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        for network, zone in self._networks:
            if address.version == network.version and address in network:
                return zone
        return None


# --- who may serve ------------------------------------------------------------------------------------------


def candidates(agents: Iterable[AgentInfo], zone: str) -> tuple[list[AgentInfo], bool]:
    """The agents of one group that clients of ``zone`` are sent to, and whether the zone has none of them itself.

    READY ones of the zone, else READY ones of any zone. When nobody is READY, those who live: a store that fails them
    all makes all of them SICK, and clients are better spread than sent to whoever recovers a moment earlier.
    """
    everybody = list(agents)
    for wanted in (AgentCondition.READY, AgentCondition.SICK):
        living = [agent for agent in everybody if agent.condition is wanted]
        near = [agent for agent in living if agent.zone == zone]
        if near:
            return near, False
        if living:
            return living, True
    return [], True


class Servers:
    """The agents that share some clients, and who leads what among them. Remembers leaders; one event loop."""

    def __init__(self, endpoints: Sequence[NodeEndpoint], is_foreign: bool) -> None:
        """At least one endpoint. ``is_foreign``: they stand in for a zone that has none."""
        assert endpoints, "somebody has to serve"
        self.endpoints = tuple(sorted(endpoints, key=lambda endpoint: endpoint.node_id))
        self.is_foreign = is_foreign
        self._seeds = tuple(seed(endpoint.node_id) for endpoint in self.endpoints)
        self._chunks: dict[tuple[TopicId, int], array[int]] = {}
        self._cached_partitions = 0

    def leaders(self, topic_id: TopicId, partition_count: int, chunk: int) -> array[int]:
        """Node ids of the leaders of one chunk of a topic's partitions: those from ``chunk`` * 1,024 on."""
        count = min(CHUNK_PARTITIONS, partition_count - chunk * CHUNK_PARTITIONS)
        assert count > 0
        known = self._chunks.get((topic_id, chunk))
        if known is not None and len(known) == count:
            return known
        if self._cached_partitions + count > CACHED_PARTITIONS_MAX:
            self._chunks.clear()
            self._cached_partitions = 0
        nodes = [endpoint.node_id for endpoint in self.endpoints]
        indexes = highest_of_many(topic_id + chunk.to_bytes(4, "big"), count, self._seeds)
        found = self._chunks[topic_id, chunk] = array("i", [nodes[index] for index in indexes])
        self._cached_partitions += count
        return found

    def leader(self, topic_id: TopicId, partition_count: int, partition: int) -> NodeEndpoint:
        """Who leads one partition."""
        chunk, index = divmod(partition, CHUNK_PARTITIONS)
        node_id = self.leaders(topic_id, partition_count, chunk)[index]
        return next(endpoint for endpoint in self.endpoints if endpoint.node_id == node_id)

    def first(self, thing: bytes) -> NodeEndpoint:
        """Whom ``thing`` (a group) belongs to."""
        return self.endpoints[highest(thing, self._seeds)]

    def ranked(self, thing: bytes) -> list[NodeEndpoint]:
        """Everybody: the one that ``thing`` (a client) belongs to, then who would follow it."""
        return [self.endpoints[index] for index in ranked(thing, self._seeds)]


class Route(NamedTuple):
    """Where one client is sent. ``chosen``: the agent that does everything for it (strategy ``client``)."""

    servers: Servers
    chosen: NodeEndpoint | None
    endpoints: tuple[NodeEndpoint, ...]
    """Whom it hears of."""

    def leaders(self, topic_id: TopicId, partition_count: int, chunk: int) -> Sequence[int]:
        """As :meth:`Servers.leaders`."""
        if self.chosen is None:
            return self.servers.leaders(topic_id, partition_count, chunk)
        count = min(CHUNK_PARTITIONS, partition_count - chunk * CHUNK_PARTITIONS)
        return [self.chosen.node_id] * count

    def leader(self, topic_id: TopicId, partition_count: int, partition: int) -> NodeEndpoint:
        return self.chosen or self.servers.leader(topic_id, partition_count, partition)

    def coordinator(self, group_id: str) -> NodeEndpoint:
        return self.chosen or self.servers.first(b"group:" + group_id.encode())


def route_to(servers: Servers, client_key: str | None) -> Route:
    """``client_key``: the client's name and host when one agent shall do everything for it, else None."""
    if client_key is None:
        return Route(servers, None, servers.endpoints)
    ranked = servers.ranked(b"client:" + client_key.encode())
    named = sorted(ranked[: 1 + SPARES], key=lambda endpoint: endpoint.node_id)
    return Route(servers, ranked[0], tuple(named))
