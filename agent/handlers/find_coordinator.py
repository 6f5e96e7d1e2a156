"""FindCoordinator (key 10), versions 0-5: KIP-98 (key types, version 1), KIP-699 (many keys, version 4), KIP-890.

Any agent takes the requests of any group, for the metadata service decides them. The coordinator of a group is one of
the agents of the client's zone and group, by a hash of the group (:mod:`agent.routing`).

Left out: transaction coordinators. They are TRANSACTIONAL_ID_AUTHORIZATION_FAILED, as in InitProducerId: the one error
that makes every client stop instead of asking again without end. Share groups (key type 2, version 6).
"""

from __future__ import annotations

import asyncio
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.routing import Route

GROUP = 0
TRANSACTION = 1
PAUSE_EVERY = 200


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """Name an agent for groups, and nobody for anything else."""
    key_type = getattr(request, "key_type", GROUP)
    route = agent.roster.route_for(call)
    if call.api_version < 4:
        return _coordinator(key_type, request.key, route)
    rows = []
    for number, key in enumerate(request.coordinator_keys, 1):
        rows.append({"key": key, **_coordinator(key_type, key, route)})
        if number % PAUSE_EVERY == 0:
            await asyncio.sleep(0)
    return {"coordinators": tuple(rows)}


def _coordinator(key_type: int, key: str, route: Route) -> Body:
    if key_type == GROUP:
        coordinator = route.coordinator(key)
        return {
            "error_code": ErrorCode.none,
            "error_message": None,
            "node_id": coordinator.node_id,
            "host": coordinator.host,
            "port": coordinator.port,
        }
    if key_type == TRANSACTION:
        code, message = ErrorCode.transactional_id_authorization_failed, "Transactions are not supported."
    else:
        code, message = ErrorCode.invalid_request, f"Unknown coordinator key type {key_type}."
    return {"error_code": code, "error_message": message, "node_id": -1, "host": "", "port": -1}
