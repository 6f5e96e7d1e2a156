"""Who may join a consumer group. Pure.

Source: Kafka's GroupMetadataManager (``acceptJoiningMember``) and ClassicGroup (``supportsProtocols``).
"""

from __future__ import annotations

from collections.abc import Mapping

from metadata.group_model import JoinGroup
from metadata.group_roster import Roster, protocols_bytes
from metadata.group_states import GroupLimits, GroupState
from metadata.model import Refusal


def check_join(join: JoinGroup, limits: GroupLimits) -> Refusal | None:
    """What is wrong with a join whatever group it is for."""
    if not join.group_id:
        return Refusal.INVALID_GROUP_ID
    if not limits.session_timeout_ms_min <= join.session_timeout_ms <= limits.session_timeout_ms_max:
        return Refusal.INVALID_SESSION_TIMEOUT
    return None


def refuse_join(
    join: JoinGroup,
    state: GroupState,
    protocol_type: str,
    roster: Roster,
    pending: Mapping[str, int],
    limits: GroupLimits,
) -> Refusal | None:
    """Why a group of this state and ``protocol_type`` does not take the join, None when it does."""
    if state is GroupState.DEAD:
        return Refusal.COORDINATOR_NOT_AVAILABLE
    if not _has_room(join, state, roster, pending, limits):
        return Refusal.GROUP_MAX_SIZE_REACHED
    if state is GroupState.EMPTY:
        understood = bool(join.protocol_type and join.protocols)
    else:
        understood = join.protocol_type == protocol_type and roster.supports_any(join.protocols)
    if not understood:
        return Refusal.INCONSISTENT_GROUP_PROTOCOL
    if join.member_id in pending:
        return None if join.group_instance_id is None else Refusal.UNKNOWN_MEMBER_ID
    return roster.check(join.member_id, join.group_instance_id) if join.member_id else None


def _has_room(
    join: JoinGroup, state: GroupState, roster: Roster, pending: Mapping[str, int], limits: GroupLimits
) -> bool:
    """While preparing, those who are here first stay (the group may have to shrink to a new maximum)."""
    successor_to = None if join.member_id else roster.static_member(join.group_instance_id)
    member = successor_to or roster.members.get(join.member_id)
    others_bytes = roster.held_bytes - (0 if member is None else member.held_bytes())
    if others_bytes + protocols_bytes(join.protocols) > limits.bytes_max:
        return False
    if not join.member_id and len(pending) >= limits.members_max:
        return False
    if state is GroupState.EMPTY or successor_to is not None:
        return True
    if state is GroupState.PREPARING_REBALANCE:
        parked = member is not None and member.join_ticket is not None
        return parked or roster.joins_parked < limits.members_max
    return member is not None or len(roster.members) < limits.members_max
