"""DescribeGroups (key 15), versions 0-5: KIP-430 (authorized operations, version 3), KIP-345 (instance ids, version 4).

An unknown group is in state Dead, without an error. Protocol, subscriptions and assignments are shown while the group
is stable, as on Kafka. A group that comes twice is answered once.

Groups beyond what one answer may carry are COORDINATOR_LOAD_IN_PROGRESS: tools then ask again, for these alone.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from agent.handlers.answer_limit import AnswerLimit
from agent.wire.metadata_codec import OPERATIONS_UNKNOWN
from metadata.group_model import GroupDescription
from metadata.model import MetadataUnavailable, Refusal

READ, DELETE, DESCRIBE = 3, 6, 8
ALL_OPERATIONS: Final = 1 << READ | 1 << DELETE | 1 << DESCRIBE
"""AclOperation codes as bits: without an authorizer everybody may do whatever can be done with a group."""
DESCRIBED_AT_ONCE: Final = 100


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Describe each group asked for, in order."""
    operations = ALL_OPERATIONS if getattr(request, "include_authorized_operations", False) else OPERATIONS_UNKNOWN
    limit = AnswerLimit()
    rows: list[Body] = []
    wanted = iter(dict.fromkeys(request.groups))
    while group_ids := list(islice(wanted, DESCRIBED_AT_ONCE)):
        if limit.reached():
            rows += [_refused(group_id, Refusal.COORDINATOR_LOAD_IN_PROGRESS) for group_id in group_ids]
            await limit.pause()
            continue
        try:
            described = await agent.metadata.describe_groups(group_ids)
        except MetadataUnavailable:
            rows += [_refused(group_id, UNAVAILABLE) for group_id in group_ids]
            continue
        for group in described:
            if limit.reached():
                rows.append(_refused(group.group_id, Refusal.COORDINATOR_LOAD_IN_PROGRESS))
            else:
                rows.append(_group(group, operations))
                if limit.add(_byte_count(group)):
                    await limit.pause()
    return {"groups": tuple(rows)}


def _byte_count(group: GroupDescription) -> int:
    """Roughly what a group takes when it is encoded."""
    return sum(
        64 + len(member.member_id) + len(member.client_id) + len(member.metadata) + len(member.assignment)
        for member in group.members
    )


def _group(group: GroupDescription, operations: int) -> Body:
    return {
        "error_code": ErrorCode.none,
        "group_id": group.group_id,
        "group_state": group.state,
        "protocol_type": group.protocol_type,
        "protocol_data": group.protocol_name,
        "members": tuple(
            {
                "member_id": member.member_id,
                "group_instance_id": member.group_instance_id,
                "client_id": member.client_id,
                "client_host": member.client_host,
                "member_metadata": member.metadata,
                "member_assignment": member.assignment,
            }
            for member in group.members
        ),
        "authorized_operations": operations,
    }


def _refused(group_id: str, refusal: Refusal) -> Body:
    return {"error_code": group_code(refusal), "group_id": group_id, "authorized_operations": OPERATIONS_UNKNOWN}
