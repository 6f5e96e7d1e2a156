"""The words of consumer groups: what is kept of them, what their commands and answers carry, and the client's calls.

Group rules are Kafka's (GroupMetadataManager, ClassicGroup). Waiting calls (join, sync) return when the group's
state machine lets them, as on a Kafka coordinator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from metadata.model import Refusal, TopicId


class MemberRecord(msgspec.Struct, frozen=True):
    """A member as of the last completed rebalance; opaque bytes are the client's own."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    assignment: bytes


class GroupRecord(msgspec.Struct, frozen=True):
    """What survives a restart of the coordinator: generation, protocol, members and their assignments."""

    group_id: str
    generation_id: int
    protocol_type: str
    protocol_name: str
    leader_id: str
    members: tuple[MemberRecord, ...]
    state_changed_ms: int


class OffsetRecord(msgspec.Struct, frozen=True):
    """A committed offset. ``leader_epoch`` is -1 when the client gave none."""

    topic_id: TopicId
    partition: int
    offset: int
    leader_epoch: int
    metadata: str
    commit_ms: int


class JoinGroup(msgspec.Struct, frozen=True):
    """``member_id_required`` is true for callers that can handle MEMBER_ID_REQUIRED (JoinGroup v4+)."""

    group_id: str
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    member_id_required: bool
    skip_assignment_supported: bool = False
    """JoinGroup v9: the answer may tell a static leader to skip the assignment (KIP-814)."""


class JoinedMember(msgspec.Struct, frozen=True):
    member_id: str
    group_instance_id: str | None
    metadata: bytes


class JoinGroupAnswer(msgspec.Struct, frozen=True):
    refusal: Refusal | None
    member_id: str
    generation_id: int = -1
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader_id: str = ""
    skip_assignment: bool = False
    members: tuple[JoinedMember, ...] = ()


class SyncGroup(msgspec.Struct, frozen=True):
    group_id: str
    generation_id: int
    member_id: str
    group_instance_id: str | None
    protocol_type: str | None
    protocol_name: str | None
    assignments: tuple[tuple[str, bytes], ...]


class SyncGroupAnswer(msgspec.Struct, frozen=True):
    refusal: Refusal | None
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignment: bytes = b""


class LeavingMember(msgspec.Struct, frozen=True):
    member_id: str
    group_instance_id: str | None


class OffsetCommit(msgspec.Struct, frozen=True):
    group_id: str
    generation_id: int
    member_id: str
    group_instance_id: str | None
    offsets: tuple[OffsetRecord, ...]
    """``commit_ms`` is set by the service."""


class OffsetCommitAnswer(msgspec.Struct, frozen=True):
    """``refusal`` is for the whole commit; otherwise one entry per offset, in order."""

    refusal: Refusal | None
    offsets: tuple[Refusal | None, ...] = ()


class OffsetDeleteAnswer(msgspec.Struct, frozen=True):
    """``refusal`` is for the whole request; otherwise one entry per partition, in order."""

    refusal: Refusal | None
    partitions: tuple[Refusal | None, ...] = ()


class DescribedMember(msgspec.Struct, frozen=True):
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    assignment: bytes


class GroupDescription(msgspec.Struct, frozen=True):
    """``state`` is Kafka's: Empty, PreparingRebalance, CompletingRebalance, Stable, Dead."""

    group_id: str
    state: str
    protocol_type: str
    protocol_name: str
    members: tuple[DescribedMember, ...]


class GroupLag(msgspec.Struct, frozen=True):
    """How far a group is behind on one partition. ``seconds`` is the age of the first record not yet consumed's
    extent (0.0 when there is none)."""

    group_id: str
    topic: str
    partition: int
    records: int
    seconds: float


class GroupClient(Protocol):
    """The group calls of :class:`metadata.client.MetadataClient`; each may raise MetadataUnavailable."""

    async def join_group(self, join: JoinGroup) -> JoinGroupAnswer: ...

    async def sync_group(self, sync: SyncGroup) -> SyncGroupAnswer: ...

    async def heartbeat(
        self, group_id: str, generation_id: int, member_id: str, group_instance_id: str | None
    ) -> Refusal | None: ...

    async def leave_group(self, group_id: str, members: Sequence[LeavingMember]) -> list[Refusal | None]: ...

    async def commit_offsets(self, commit: OffsetCommit) -> OffsetCommitAnswer: ...

    async def fetch_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]] | None
    ) -> list[OffsetRecord]:
        """Committed offsets of the partitions asked for (None: all); those without one are left out.

        Never older than an offset whose commit was answered before this call.
        """

    async def describe_groups(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        """An unknown group is described as Dead."""

    async def list_groups(self) -> list[GroupDescription]:
        """Without members."""

    async def delete_group(self, group_id: str) -> Refusal | None:
        """The group and its offsets: GROUP_ID_NOT_FOUND, or NON_EMPTY_GROUP while it has members."""

    async def delete_offsets(self, group_id: str, partitions: Sequence[tuple[TopicId, int]]) -> OffsetDeleteAnswer:
        """Offsets of topics that no member subscribes to (GROUP_SUBSCRIBED_TO_TOPIC). One that was never committed is
        deleted as well. For the whole request: GROUP_ID_NOT_FOUND, or NON_EMPTY_GROUP while it has members that are no
        consumers.
        """

    async def group_lags(self) -> list[GroupLag]:
        """For metrics and the console; only groups with committed offsets."""
