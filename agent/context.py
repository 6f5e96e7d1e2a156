"""What a handler is given: the call it answers and the agent it belongs to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.neighbours import Neighbours
from agent.topics import TopicDirectory
from metadata.client import MetadataClient
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from runtime.settings import Settings

if TYPE_CHECKING:
    from agent.fetch.fetcher import Fetcher
    from agent.metrics import AgentMetrics
    from agent.roster import Roster
    from ingest.writer import SegmentWriter

Body = dict[str, Any]
"""A response as kio field names to values, nested tuples of dicts for nested entities. It may carry the fields of
every version of the API; the codec drops those the call's version does not have, and refuses names that no
version has."""


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """Who this agent is to clients and to the metadata service. Set once it has registered."""

    cluster_id: str
    node_id: int
    agent_epoch: int
    host: str
    port: int
    zone: str
    group: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request's circumstances. ``client_host`` is the peer's address, as Kafka shows it (``/10.0.0.1``); ``zone``
    is the client's (:meth:`agent.roster.Roster.client_zone`), empty for the agent's own; ``principals`` are the names
    in the client's certificate, its CN first: none where it showed none."""

    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    client_host: str
    zone: str = ""
    principals: tuple[str, ...] = ()


@dataclass(slots=True)
class Agent:
    """One agent's parts, built by ``tidelog.app`` and passed to every handler."""

    settings: Settings
    clock: Clock
    entropy: Entropy
    identity: AgentIdentity
    metadata: MetadataClient
    topics: TopicDirectory
    writer: SegmentWriter
    fetcher: Fetcher
    budget: Budget
    metrics: AgentMetrics
    roster: Roster
    moving: bool = False
    """It is leaving, and sends its clients to other agents."""
    neighbours: Neighbours = field(init=False)
    large_answers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    """Answers that keep the event loop busy for long are made one at a time."""

    def __post_init__(self) -> None:
        self.neighbours = Neighbours(self.clock)
