"""FindCoordinator (key 10), versions 0-5: KIP-98 (key types, version 1), KIP-699 (many keys, version 4), KIP-890.

Any agent takes the requests of any group, for the metadata service decides them: the coordinator is the agent asked.

Left out: transaction coordinators. They are TRANSACTIONAL_ID_AUTHORIZATION_FAILED, as in InitProducerId: the one error
that makes every client stop instead of asking again without end. Share groups (key type 2, version 6).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, AgentIdentity, Body, Call

GROUP = 0
TRANSACTION = 1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Name this agent for groups, and nobody for anything else."""
    row = _coordinator(getattr(request, "key_type", GROUP), agent.identity)
    if call.api_version < 4:
        return row
    return {"coordinators": tuple({"key": key, **row} for key in request.coordinator_keys)}


def _coordinator(key_type: int, identity: AgentIdentity) -> Body:
    if key_type == GROUP:
        return {
            "error_code": ErrorCode.none,
            "error_message": None,
            "node_id": identity.node_id,
            "host": identity.host,
            "port": identity.port,
        }
    if key_type == TRANSACTION:
        code, message = ErrorCode.transactional_id_authorization_failed, "Transactions are not supported."
    else:
        code, message = ErrorCode.invalid_request, f"Unknown coordinator key type {key_type}."
    return {"error_code": code, "error_message": message, "node_id": -1, "host": "", "port": -1}
