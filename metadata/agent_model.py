"""The words of the agent registry: what agents say of themselves, and what everybody hears of them.

Frozen ``msgspec.Struct``s like :mod:`metadata.model`. An agent has one *epoch* at a time; a fenced one never commits.
"""

from __future__ import annotations

import enum

import msgspec


class AgentCondition(enum.StrEnum):
    """Whether clients should be sent to an agent. Only ``READY`` ones are named in Metadata answers."""

    READY = "ready"
    STARTING = "starting"
    DRAINING = "draining"
    SICK = "sick"
    """It says so itself (a stalled loop, failing uploads), or the metadata service finds it silent or failing."""


class AgentRegistration(msgspec.Struct, frozen=True):
    """An agent says hello. ``agent_uid`` is stable over restarts of the same agent, so that it keeps its node id."""

    agent_uid: str
    zone: str
    group: str
    host: str
    port: int
    """Where clients of the group reach its Kafka listener."""
    version: str
    http_address: str = ""
    """host:port where other agents of its zone and group reach its peer reads; empty: nowhere."""
    roles: tuple[str, ...] = ("proxy", "jobs")


class AgentRegistered(msgspec.Struct, frozen=True):
    """The previous epoch of the same ``agent_uid`` is fenced from now on."""

    cluster_id: str
    node_id: int
    agent_epoch: int
    session_timeout_ms: int = 10_000
    """Silence for so long fences the epoch; a heartbeat is wanted every tenth of it."""


class AgentLoad(msgspec.Struct, frozen=True):
    """What an agent measured of itself since its last heartbeat. Rates are per second."""

    bytes_in: float = 0.0
    bytes_out: float = 0.0
    requests: float = 0.0
    connections: int = 0
    cpu_cores: float = 0.0
    """CPU seconds a second of the process."""
    memory_held_bytes: int = 0
    """Counted against the budget, of ``memory_budget_bytes``."""
    memory_budget_bytes: int = 0
    loop_lag_ms: float = 0.0
    """The longest the event loop came late."""
    cross_zone_bytes: float = 0.0
    """Bytes to and from clients and peers whose zone is known to be another."""
    cross_zone_bytes_total: int = 0
    """The same since the process began: not a rate."""


class AgentHeartbeat(msgspec.Struct, frozen=True):
    agent_epoch: int
    condition: AgentCondition
    reason: str = ""
    """One sentence for people when the condition is not READY."""
    load: AgentLoad = AgentLoad()


class AgentInfo(msgspec.Struct, frozen=True):
    """A registered agent as others see it. Agents of fenced epochs are not in any roster."""

    node_id: int
    agent_epoch: int
    agent_uid: str
    zone: str
    group: str
    host: str
    port: int
    http_address: str
    version: str
    roles: tuple[str, ...]
    condition: AgentCondition
    """What the metadata service makes of it: its own word, or SICK when it fell silent."""


class AgentDescription(msgspec.Struct, frozen=True):
    """For people and the autoscaler."""

    info: AgentInfo
    load: AgentLoad
    reason: str
    registered_ms: int
    heard_ms: int
    """Wall clock of the last heartbeat, as the metadata service heard it; 0: not since it became active."""
