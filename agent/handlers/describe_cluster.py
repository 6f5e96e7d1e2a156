"""DescribeCluster (key 60), versions 0-1: KIP-700, KIP-919 (endpoint types, version 1).

Left out: authorized operations (always "not known"); the controllers' endpoints (MISMATCHED_ENDPOINT_TYPE).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.handlers.metadata import controller_id
from agent.wire.metadata_codec import OPERATIONS_UNKNOWN

BROKERS = 1


async def handle(call: Call, request: Any, agent: Agent) -> Body:
    """The agents this client is sent to, as in the Metadata answer."""
    route = agent.roster.route_for(call)
    endpoint_type = getattr(request, "endpoint_type", BROKERS)
    body: Body = {
        "throttle_time": 0,
        "error_code": ErrorCode.none,
        "error_message": None,
        "endpoint_type": endpoint_type,
        "cluster_id": agent.identity.cluster_id,
        "controller_id": controller_id(route, agent.identity.node_id),
        "brokers": tuple(
            {"broker_id": endpoint.node_id, "host": endpoint.host, "port": endpoint.port, "rack": None}
            for endpoint in route.endpoints
        ),
        "cluster_authorized_operations": OPERATIONS_UNKNOWN,
    }
    if endpoint_type != BROKERS:
        body["error_code"] = ErrorCode.mismatched_endpoint_type
        body["error_message"] = "This is a broker endpoint; ask it for brokers (endpoint type 1)."
        body["brokers"] = ()
    return body
