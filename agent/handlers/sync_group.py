"""SyncGroup (key 14), versions 0-5: KIP-345 (static members, version 3), KIP-559 (protocol type and name, version 5).

The leader's request carries everybody's assignments; each member is answered with its own once they are durable.
"""

from __future__ import annotations

from typing import Any

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.group_model import SyncGroup, SyncGroupAnswer
from metadata.model import MetadataUnavailable, Refusal


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Sync, and wait for the leader. Cancelled, it leaves the member to its session timeout, as Kafka does."""
    answer = await _sync(request, agent)
    return {
        "error_code": group_code(answer.refusal),
        "protocol_type": answer.protocol_type,
        "protocol_name": answer.protocol_name,
        "assignment": answer.assignment,
    }


async def _sync(request: Any, agent: Agent) -> SyncGroupAnswer:
    if not request.group_id:
        return SyncGroupAnswer(Refusal.INVALID_GROUP_ID)
    sync = SyncGroup(
        group_id=request.group_id,
        generation_id=request.generation_id,
        member_id=request.member_id,
        group_instance_id=getattr(request, "group_instance_id", None),
        protocol_type=getattr(request, "protocol_type", None),
        protocol_name=getattr(request, "protocol_name", None),
        assignments=tuple((assigned.member_id, assigned.assignment) for assigned in request.assignments),
    )
    try:
        return await agent.metadata.sync_group(sync)
    except MetadataUnavailable:
        return SyncGroupAnswer(UNAVAILABLE)
