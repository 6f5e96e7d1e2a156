"""Heartbeat (key 12), versions 0-4: KIP-345 (static members, version 3)."""

from __future__ import annotations

from typing import Any

from agent.context import Agent, Body, Call
from agent.group_errors import UNAVAILABLE, group_code
from metadata.model import MetadataUnavailable, Refusal


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Prolong the member's session; REBALANCE_IN_PROGRESS asks it to join again."""
    refusal: Refusal | None
    if not request.group_id:
        refusal = Refusal.INVALID_GROUP_ID
    else:
        instance_id = getattr(request, "group_instance_id", None)
        try:
            refusal = await agent.metadata.heartbeat(
                request.group_id, request.generation_id, request.member_id, instance_id
            )
        except MetadataUnavailable:
            refusal = UNAVAILABLE
    return {"error_code": group_code(refusal)}
