"""AlterConfigs (key 33), versions 0-2: KIP-133. Older tools send it; newer ones IncrementalAlterConfigs (key 44).

Topics only. The configs of the request *replace* those that are set on the topic: what is not named goes back to its
default, in one transaction. The new configs take effect on an agent when it hears of the change, a moment later.

Left out: brokers' configs (they are settings of the process, see docs/configuration.md) and every other resource:
INVALID_REQUEST.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import named_failure_code
from agent.handlers.incremental_alter_configs import alterable_topic, check_configs, check_once, resource_row
from metadata.model import MetadataError, Refusal, Refused


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Alter every resource on its own: one that fails does not disturb the others."""
    counts = Counter((resource.resource_type, resource.resource_name) for resource in request.resources)
    rows = await asyncio.gather(
        *(
            _alter(resource, counts[resource.resource_type, resource.resource_name] > 1, request.validate_only, agent)
            for resource in request.resources
        )
    )
    return {"throttle_time": 0, "responses": tuple(rows)}


async def _alter(resource: Any, is_duplicate: bool, validate_only: bool, agent: Agent) -> Body:
    try:
        if is_duplicate:
            raise Refused(Refusal.INVALID_REQUEST, "Each resource must appear at most once.")
        view = alterable_topic(resource, agent)
        configs = replacement(resource.configs)
        check_configs(configs)
        if not validate_only:
            await agent.metadata.alter_topic_configs(view.topic_id, dict(configs), True)
    except MetadataError as error:
        return resource_row(resource, named_failure_code(error), str(error))
    return resource_row(resource, ErrorCode.none, None)


def replacement(rows: Any) -> dict[str, str]:
    """The configs that one resource shall have, and no others. Pure.

    :raises Refused: INVALID_REQUEST, in Kafka's words.
    """
    check_once(rows)
    nulls = [row.name for row in rows if row.value is None]
    if nulls:
        raise Refused(Refusal.INVALID_REQUEST, f"Null value not supported for : {', '.join(nulls)}")
    return {row.name: row.value for row in rows}
