"""DescribeCluster (key 60), versions 0-1: KIP-700, KIP-919 (endpoint types, version 1).

Left out: authorized operations (always "not known"); the controllers' endpoints (MISMATCHED_ENDPOINT_TYPE).
"""

from __future__ import annotations

from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.handlers.metadata import OPERATIONS_UNKNOWN

BROKERS = 1


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """This agent is the whole cluster, and stands in for the controller."""
    identity = agent.identity
    endpoint_type = getattr(request, "endpoint_type", BROKERS)
    body: Body = {
        "throttle_time": 0,
        "error_code": ErrorCode.none,
        "error_message": None,
        "endpoint_type": endpoint_type,
        "cluster_id": identity.cluster_id,
        "controller_id": identity.node_id,
        "brokers": ({"broker_id": identity.node_id, "host": identity.host, "port": identity.port, "rack": None},),
        "cluster_authorized_operations": OPERATIONS_UNKNOWN,
    }
    if endpoint_type != BROKERS:
        body["error_code"] = ErrorCode.mismatched_endpoint_type
        body["error_message"] = "This is a broker endpoint; ask it for brokers (endpoint type 1)."
        body["brokers"] = ()
    return body
