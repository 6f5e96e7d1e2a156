"""LeaveGroup (key 13), versions 0-5: KIP-345 (many members, static ones by instance id; version 3), KIP-800 (reason).

Up to version 2 a request has one member, and its error is the answer's; then each member has its own. Left out: the
client's reason (version 5) is not kept.
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.group_model import LeavingMember
from metadata.model import MetadataUnavailable, Refusal


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Take the members out of the group; those that stay rebalance."""
    many = call.api_version >= 3
    if not request.group_id:
        return {"error_code": group_code(Refusal.INVALID_GROUP_ID)}
    leaving = [
        LeavingMember(member.member_id, getattr(member, "group_instance_id", None))
        for member in (request.members if many else (request,))
    ]
    try:
        refusals = await agent.metadata.leave_group(request.group_id, leaving)
    except MetadataUnavailable:
        return {"error_code": group_code(UNAVAILABLE)}
    if not many:
        return {"error_code": group_code(refusals[0])}
    return {
        "error_code": ErrorCode.none,
        "members": tuple(
            {
                "member_id": member.member_id,
                "group_instance_id": member.group_instance_id,
                "error_code": group_code(refusal),
            }
            for member, refusal in zip(leaving, refusals, strict=True)
        ),
    }
