"""The members of one consumer group as a set: who they are, what all of them support, what they vote for. Pure.

Source: Kafka's ClassicGroup and ClassicGroupMember (3.9, 4.x).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from metadata.group_model import DescribedMember, JoinedMember, JoinGroup, MemberRecord
from metadata.model import Refusal


@dataclass(slots=True)
class Member:
    """A member of a group. A ticket says that a join or a sync of it is parked."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocols: tuple[tuple[str, bytes], ...]
    """In the member's order of preference; no name twice."""
    assignment: bytes = b""
    session_deadline_ms: int | None = None
    """None while it is parked beyond its deadline: whoever is being kept waiting is alive."""
    join_ticket: int | None = None
    sync_ticket: int | None = None
    is_new: bool = False
    """It has not had an answer to its first join, so it cannot have sent a heartbeat."""
    synced: bool = True
    """It has sent its sync of this generation."""

    @classmethod
    def joining(cls, join: JoinGroup, member_id: str) -> Member:
        return cls(
            member_id,
            join.group_instance_id,
            join.client_id,
            join.client_host,
            join.rebalance_timeout_ms,
            join.session_timeout_ms,
            unique_protocols(join.protocols),
            is_new=True,
        )

    @classmethod
    def restored(cls, record: MemberRecord) -> Member:
        return cls(
            record.member_id,
            record.group_instance_id,
            record.client_id,
            record.client_host,
            record.rebalance_timeout_ms,
            record.session_timeout_ms,
            record.protocols,
            record.assignment,
        )

    def record(self) -> MemberRecord:
        return MemberRecord(
            self.member_id,
            self.group_instance_id,
            self.client_id,
            self.client_host,
            self.rebalance_timeout_ms,
            self.session_timeout_ms,
            self.protocols,
            self.assignment,
        )

    def metadata(self, protocol_name: str) -> bytes:
        """What it said under ``protocol_name``, empty when it does not support it."""
        return next((metadata for name, metadata in self.protocols if name == protocol_name), b"")

    def held_bytes(self) -> int:
        """Names and protocol metadata; the assignment is the leader's and counted with its sync."""
        names = len(self.member_id) + len(self.client_id) + len(self.group_instance_id or "")
        return names + protocols_bytes(self.protocols)


class Roster:
    """Members by id, in the order in which they came; and the static ones by instance id."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.held_bytes = 0
        self.joins_parked = 0
        """How many of the members have a join ticket."""
        self._static: dict[str, str] = {}
        self._support: Counter[str] = Counter()

    def add(self, member: Member) -> None:
        assert member.member_id not in self.members
        if member.group_instance_id is not None:
            assert member.group_instance_id not in self._static
            self._static[member.group_instance_id] = member.member_id
        self.members[member.member_id] = member
        self._count(member, 1)

    def remove(self, member: Member) -> None:
        del self.members[member.member_id]
        if member.group_instance_id is not None:
            del self._static[member.group_instance_id]
        self._count(member, -1)

    def update(self, member: Member, join: JoinGroup) -> None:
        """It joined again: what it supports and its timeouts are as it says now."""
        self._count(member, -1)
        member.protocols = unique_protocols(join.protocols)
        member.rebalance_timeout_ms = join.rebalance_timeout_ms
        member.session_timeout_ms = join.session_timeout_ms
        self._count(member, 1)

    def static_member(self, group_instance_id: str | None) -> Member | None:
        """The static member of that instance id, if there is one."""
        if group_instance_id is None or (member_id := self._static.get(group_instance_id)) is None:
            return None
        return self.members[member_id]

    def check(self, member_id: str, group_instance_id: str | None) -> Refusal | None:
        """Is this a member, and, of a static one, the current holder of its instance id?"""
        if group_instance_id is not None:
            current = self._static.get(group_instance_id)
            if current is None:
                return Refusal.UNKNOWN_MEMBER_ID
            if current != member_id:
                return Refusal.FENCED_INSTANCE_ID
        return None if member_id in self.members else Refusal.UNKNOWN_MEMBER_ID

    def supports_any(self, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        """Is one of these supported by every member?"""
        return any(self._support[name] == len(self.members) for name, _ in protocols)

    def select_protocol(self) -> str:
        """Each member votes for the first of its protocols that all support; the most votes win, the earliest a tie."""
        common = {name for name, count in self._support.items() if count == len(self.members)}
        votes: Counter[str] = Counter()
        for member in self.members.values():
            votes[next(name for name, _ in member.protocols if name in common)] += 1
        return votes.most_common(1)[0][0]

    def rebalance_timeout_ms(self) -> int:
        """The longest of all members'; 0 without any."""
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    def joined(self, protocol_name: str) -> tuple[JoinedMember, ...]:
        """Everybody and what they said under the protocol, as the leader is told."""
        return tuple(
            JoinedMember(member.member_id, member.group_instance_id, member.metadata(protocol_name))
            for member in self.members.values()
        )

    def described(self, protocol_name: str | None) -> tuple[DescribedMember, ...]:
        """Everybody; metadata and assignment only under an agreed protocol."""
        return tuple(
            DescribedMember(
                member.member_id,
                member.group_instance_id,
                member.client_id,
                member.client_host,
                b"" if protocol_name is None else member.metadata(protocol_name),
                b"" if protocol_name is None else member.assignment,
            )
            for member in self.members.values()
        )

    def _count(self, member: Member, sign: int) -> None:
        self.held_bytes += sign * member.held_bytes()
        for name, _ in member.protocols:
            self._support[name] += sign
            if not self._support[name]:
                del self._support[name]


def unique_protocols(protocols: tuple[tuple[str, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    """Without repeated names; the first counts."""
    unique: dict[str, bytes] = {}
    for name, metadata in protocols:
        unique.setdefault(name, metadata)
    return tuple(unique.items())


def protocols_bytes(protocols: tuple[tuple[str, bytes], ...]) -> int:
    return sum(len(name) + len(metadata) for name, metadata in protocols)
