"""IncrementalAlterConfigs (key 44), versions 0-1: KIP-339.

Topics only. Set and delete work on every config, append and subtract on lists. Each resource is changed in one
transaction or not at all. The new configs take effect on an agent when it hears of the change, a moment later.

Lists are appended to as they are when the metadata service decides. Checks before that, and all there is of
``validate_only``, look at this agent's view of the topic.

Left out: brokers' configs (they are settings of the process, see docs/configuration.md) and every other resource:
INVALID_REQUEST.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import named_failure_code
from agent.handlers.describe_configs import BROKER_RESOURCE, TOPIC_RESOURCE
from agent.topics import TopicView
from metadata.config_definitions import ConfigType, split_list
from metadata.model import MetadataError, Refusal, Refused
from metadata.topic_configs import TOPIC_CONFIGS, ListEdit, changed_configs, validate_topic_configs

SET, DELETE, APPEND, SUBTRACT = range(4)


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
        await _alter_topic(resource, validate_only, agent)
    except MetadataError as error:
        return resource_row(resource, named_failure_code(error), str(error))
    return resource_row(resource, ErrorCode.none, None)


async def _alter_topic(resource: Any, validate_only: bool, agent: Agent) -> None:
    view = alterable_topic(resource, agent)
    changes = config_changes(resource.configs)
    check_configs(changed_configs(view.topic.configs, changes))
    if not validate_only and changes:
        await agent.metadata.alter_topic_configs(view.topic_id, changes)


def alterable_topic(resource: Any, agent: Agent) -> TopicView:
    """The topic that a resource names.

    :raises Refused: INVALID_REQUEST, UNKNOWN_TOPIC_OR_PARTITION: it names nothing that can be altered.
    """
    if resource.resource_type == BROKER_RESOURCE:
        raise Refused(Refusal.INVALID_REQUEST, "An agent's settings are read-only; change its configuration.")
    if resource.resource_type != TOPIC_RESOURCE:
        raise Refused(Refusal.INVALID_REQUEST, f"Unsupported resource type: {resource.resource_type}")
    view = agent.topics.by_name(resource.resource_name)
    if view is None:
        raise Refused(Refusal.UNKNOWN_TOPIC_OR_PARTITION, f"The topic '{resource.resource_name[:300]}' does not exist.")
    return view


def check_configs(configs: Mapping[str, str]) -> None:
    """:raises Refused: INVALID_CONFIG, in Kafka's words."""
    try:
        validate_topic_configs(configs)
    except ValueError as error:
        raise Refused(Refusal.INVALID_CONFIG, str(error)) from None


def check_once(rows: Any) -> None:
    """:raises Refused: INVALID_REQUEST: a config comes more than once."""
    twice = sorted(name for name, count in Counter(row.name for row in rows).items() if count > 1)
    if twice:
        raise Refused(Refusal.INVALID_REQUEST, f"Error due to duplicate config keys: {', '.join(twice)}")


def config_changes(operations: Any) -> dict[str, str | ListEdit | None]:
    """What the operations of one resource say. Pure.

    :raises Refused: INVALID_CONFIG or INVALID_REQUEST, in Kafka's words.
    """
    check_once(operations)
    return {row.name: _change(row) for row in operations}


def _change(row: Any) -> str | ListEdit | None:
    definition = TOPIC_CONFIGS.get(row.name)
    if definition is None:
        raise Refused(Refusal.INVALID_CONFIG, f"Unknown topic config name: {row.name}")
    if row.config_operation == DELETE:
        return None
    if row.value is None:
        raise Refused(Refusal.INVALID_REQUEST, f"Null value not supported for : {row.name}")
    if row.config_operation == SET:
        return str(row.value)
    if row.config_operation not in (APPEND, SUBTRACT):
        raise Refused(Refusal.INVALID_REQUEST, f"Unknown operation {row.config_operation} for config key: {row.name}")
    verb = "append" if row.config_operation == APPEND else "subtract"
    if definition.kind is not ConfigType.LIST:
        raise Refused(Refusal.INVALID_CONFIG, f"Config {verb} is not allowed for config key: {row.name}")
    items = tuple(split_list(row.value))
    return ListEdit(add=items) if row.config_operation == APPEND else ListEdit(remove=items)


def resource_row(resource: Any, code: ErrorCode, message: str | None) -> Body:
    """What became of one resource."""
    return {
        "error_code": code,
        "error_message": message,
        "resource_type": resource.resource_type,
        "resource_name": resource.resource_name,
    }
