"""DescribeGroups (key 15), versions 0-5: KIP-430 (authorized operations, version 3), KIP-345 (instance ids, version 4).

An unknown group is in state Dead, without an error. Protocol, subscriptions and assignments are shown while the group
is stable, as on Kafka.
"""

from __future__ import annotations

from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from agent.handlers.metadata import OPERATIONS_UNKNOWN
from metadata.group_model import GroupDescription
from metadata.model import MetadataUnavailable

READ, DELETE, DESCRIBE = 3, 6, 8
ALL_OPERATIONS: Final = 1 << READ | 1 << DELETE | 1 << DESCRIBE
"""AclOperation codes as bits: without an authorizer everybody may do whatever can be done with a group."""


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Describe each group asked for, in order."""
    operations = ALL_OPERATIONS if getattr(request, "include_authorized_operations", False) else OPERATIONS_UNKNOWN
    try:
        described = await agent.metadata.describe_groups(request.groups)
    except MetadataUnavailable:
        return {"groups": tuple(_unavailable(group_id) for group_id in request.groups)}
    return {"groups": tuple(_group(group, operations) for group in described)}


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


def _unavailable(group_id: str) -> Body:
    return {"error_code": group_code(UNAVAILABLE), "group_id": group_id, "authorized_operations": OPERATIONS_UNKNOWN}
