"""What a consumer group's states mean, as data; its limits, and what its decisions ask of the driver. Pure.

Source: Kafka's ClassicGroupState, GroupMetadataManager (3.9, 4.x).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from metadata.group_model import JoinGroupAnswer, SyncGroupAnswer
from metadata.model import Refusal

GROUP_BYTES_MAX = 16 * 1024 * 1024
"""Names, protocol metadata and assignments of one group, which is one durable record: ten thousand members with
1.6 KiB each. Kafka's bound is one record batch of its offsets topic, 1 MiB."""


class GroupState(enum.StrEnum):
    """Kafka's names, as DescribeGroups shows them."""

    EMPTY = "Empty"
    PREPARING_REBALANCE = "PreparingRebalance"
    COMPLETING_REBALANCE = "CompletingRebalance"
    STABLE = "Stable"
    DEAD = "Dead"


class Rejoin(enum.Enum):
    """When a member of the current generation that joins again causes a rebalance."""

    PARKS = "it is awaited: its join parks"
    IF_CHANGED = "when what it supports changed; else it hears the current generation again"
    IF_CHANGED_OR_LEADER = "as above; and the leader always, for it rejoins when the topics changed"


@dataclass(frozen=True, slots=True)
class StateRules:
    """What a state answers a *known* member of the right generation (None: it is served), and what may follow."""

    next_states: frozenset[GroupState]
    heartbeat: Refusal | None
    sync: Refusal | None
    commit: Refusal | None
    rejoin: Rejoin


RULES: dict[GroupState, StateRules] = {
    GroupState.EMPTY: StateRules(
        next_states=frozenset({GroupState.PREPARING_REBALANCE, GroupState.DEAD}),
        heartbeat=Refusal.UNKNOWN_MEMBER_ID,
        sync=Refusal.UNKNOWN_MEMBER_ID,
        commit=Refusal.UNKNOWN_MEMBER_ID,
        rejoin=Rejoin.PARKS,
    ),
    GroupState.PREPARING_REBALANCE: StateRules(
        next_states=frozenset({GroupState.COMPLETING_REBALANCE, GroupState.EMPTY}),
        heartbeat=Refusal.REBALANCE_IN_PROGRESS,
        sync=Refusal.REBALANCE_IN_PROGRESS,
        commit=None,
        rejoin=Rejoin.PARKS,
    ),
    GroupState.COMPLETING_REBALANCE: StateRules(
        next_states=frozenset({GroupState.STABLE, GroupState.PREPARING_REBALANCE}),
        heartbeat=None,
        sync=None,
        commit=Refusal.REBALANCE_IN_PROGRESS,
        rejoin=Rejoin.IF_CHANGED,
    ),
    GroupState.STABLE: StateRules(
        next_states=frozenset({GroupState.PREPARING_REBALANCE}),
        heartbeat=None,
        sync=None,
        commit=None,
        rejoin=Rejoin.IF_CHANGED_OR_LEADER,
    ),
    GroupState.DEAD: StateRules(
        next_states=frozenset(),
        heartbeat=Refusal.COORDINATOR_NOT_AVAILABLE,
        sync=Refusal.COORDINATOR_NOT_AVAILABLE,
        commit=Refusal.COORDINATOR_NOT_AVAILABLE,
        rejoin=Rejoin.PARKS,
    ),
}


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """The settings that are rules of a group; Kafka's broker settings of the same names."""

    initial_rebalance_delay_ms: int
    session_timeout_ms_min: int
    session_timeout_ms_max: int
    members_max: int
    bytes_max: int = GROUP_BYTES_MAX


class InitialDelay:
    """How long the first rebalance of a group waits for more members (Kafka's InitialDelayedJoin).

    It begins with ``step_ms``; each step in which somebody joined is followed by another, up to the rebalance timeout.
    """

    __slots__ = ("_remaining_ms", "_step_ms", "delay_ms", "joined")

    def __init__(self, step_ms: int, rebalance_timeout_ms: int) -> None:
        self.delay_ms = step_ms
        self.joined = False
        self._step_ms = step_ms
        self._remaining_ms = max(rebalance_timeout_ms - step_ms, 0)

    def extend(self) -> bool:
        """The step is over: True when there is another one, of ``delay_ms``."""
        if not self.joined or not self._remaining_ms:
            return False
        self.joined = False
        delay_ms = min(self._step_ms, self._remaining_ms)
        self._remaining_ms = max(self._remaining_ms - self.delay_ms, 0)
        self.delay_ms = delay_ms
        return True


@dataclass(slots=True)
class Effects:
    """What the driver must do: make the group's record durable if ``persist``, and only then answer the tickets."""

    persist: bool = False
    joins: list[tuple[int, JoinGroupAnswer]] = field(default_factory=list)
    syncs: list[tuple[int, SyncGroupAnswer]] = field(default_factory=list)
