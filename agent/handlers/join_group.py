"""JoinGroup (key 11), versions 0-9: KIP-62 (rebalance timeout, version 1), KIP-394 (MEMBER_ID_REQUIRED, version 4),
KIP-345 (static members, version 5), KIP-559 (protocol type, version 7), KIP-800 (reason, version 8), KIP-814 (skipping
the assignment, version 9).

The answer comes when the rebalance has everybody, which may take its whole timeout; only the leader hears of the
others. Left out: the client's reason (version 8) is not kept.
"""

from __future__ import annotations

from typing import Any

from agent.context import Agent, Body, Call
from agent.group_errors import MILLISECOND, UNAVAILABLE, group_code
from metadata.group_model import JoinGroup, JoinGroupAnswer
from metadata.model import MetadataUnavailable


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Join, and wait for the group. Cancelled, it leaves the member to its session timeout, as Kafka does."""
    session_timeout_ms = request.session_timeout // MILLISECOND
    rebalance_timeout_ms = session_timeout_ms
    if call.api_version >= 1 and request.rebalance_timeout // MILLISECOND >= 0:
        rebalance_timeout_ms = request.rebalance_timeout // MILLISECOND
    join = JoinGroup(
        group_id=request.group_id,
        member_id=request.member_id,
        group_instance_id=getattr(request, "group_instance_id", None),
        client_id=call.client_id or "",
        client_host=call.client_host,
        session_timeout_ms=session_timeout_ms,
        rebalance_timeout_ms=rebalance_timeout_ms,
        protocol_type=request.protocol_type,
        protocols=tuple((protocol.name, protocol.metadata) for protocol in request.protocols),
        member_id_required=call.api_version >= 4,
        skip_assignment_supported=call.api_version >= 9,
    )
    try:
        answer = await agent.metadata.join_group(join)
    except MetadataUnavailable:
        answer = JoinGroupAnswer(UNAVAILABLE, request.member_id)
    return {
        "error_code": group_code(answer.refusal),
        "generation_id": answer.generation_id,
        "protocol_type": answer.protocol_type,
        "protocol_name": answer.protocol_name or (None if call.api_version >= 7 else ""),
        "leader": answer.leader_id,
        "skip_assignment": answer.skip_assignment,
        "member_id": answer.member_id,
        "members": tuple(
            {
                "member_id": member.member_id,
                "group_instance_id": member.group_instance_id,
                "metadata": member.metadata,
            }
            for member in answer.members
        ),
    }
