"""ListGroups (key 16), versions 0-5: KIP-518 (states, version 4), KIP-848 (types, version 5).

Filters ignore case, as Kafka's do; a state or type that does not exist matches nothing. All groups are ``classic``.
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from metadata.model import MetadataUnavailable

CLASSIC = "classic"


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """List the groups of the states and types asked for; every group without a filter."""
    states = {state.lower() for state in getattr(request, "states_filter", ())}
    types = {group_type.lower() for group_type in getattr(request, "types_filter", ())}
    if types and CLASSIC not in types:
        return {"error_code": ErrorCode.none, "groups": ()}
    try:
        groups = await agent.metadata.list_groups()
    except MetadataUnavailable:
        # Tools ask every broker for its groups, not a coordinator: this is the code on which they ask again.
        return {"error_code": ErrorCode.coordinator_not_available, "groups": ()}
    return {
        "error_code": ErrorCode.none,
        "groups": tuple(
            {
                "group_id": group.group_id,
                "protocol_type": group.protocol_type,
                "group_state": group.state,
                "group_type": CLASSIC,
            }
            for group in groups
            if not states or group.state.lower() in states
        ),
    }
