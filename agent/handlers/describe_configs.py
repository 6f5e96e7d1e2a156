"""DescribeConfigs (key 32), versions 1-4: KIP-133, KIP-226 (sources, synonyms), KIP-569 (types, documentation).

Topics show every config of Kafka's list with its value and source; the documentation ends with what the config does
here. A broker shows the settings that exist in this agent under Kafka's names, read-only: they are changed in
its configuration file (docs/configuration.md).

A resource that comes twice is answered once. Resources beyond what one answer may carry are INVALID_REQUEST.

Left out: broker loggers, client metrics and groups as resources (INVALID_REQUEST).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from kio.schema.errors import ErrorCode

from agent.broker_configs import broker_configs
from agent.context import Agent, Body, Call
from agent.errors import error_code
from agent.handlers.answer_limit import ANSWER_BYTES_MAX, AnswerLimit
from metadata.config_definitions import ConfigDefinition
from metadata.model import Refused
from metadata.topic_configs import TOPIC_CONFIGS
from metadata.topics import check_topic_name

TOPIC_RESOURCE = 2
BROKER_RESOURCE = 4

DYNAMIC_TOPIC_CONFIG = 1
STATIC_BROKER_CONFIG = 4
DEFAULT_CONFIG = 5

TOO_MUCH = f"The answer would exceed {ANSWER_BYTES_MAX >> 20} MiB: ask for fewer resources at a time."


async def handle(_call: Call, request: Any, agent: Agent) -> Body:
    """Answer from the agent's own view of topics and its settings."""
    with_documentation = getattr(request, "include_documentation", False)
    limit = AnswerLimit()
    results: dict[tuple[int, str], Body] = {}
    for resource in request.resources:
        key = (resource.resource_type, resource.resource_name)
        if key in results:
            continue
        if limit.reached():
            result = _result(resource, ErrorCode.invalid_request, TOO_MUCH)
        else:
            result = _describe(resource, agent, request.include_synonyms, with_documentation)
        results[key] = result
        if limit.add(_byte_count(result)):
            await limit.pause()
    return {"throttle_time": 0, "results": tuple(results.values())}


def _describe(resource: Any, agent: Agent, with_synonyms: bool, with_documentation: bool) -> Body:
    if resource.resource_type == TOPIC_RESOURCE:
        return _describe_topic(resource, agent, with_synonyms, with_documentation)
    if resource.resource_type == BROKER_RESOURCE:
        return _describe_broker(resource, agent, with_synonyms, with_documentation)
    return _result(resource, ErrorCode.invalid_request, f"Unsupported resource type: {resource.resource_type}")


def _describe_topic(resource: Any, agent: Agent, with_synonyms: bool, with_documentation: bool) -> Body:
    view = agent.topics.by_name(resource.resource_name)
    if view is None:
        try:
            check_topic_name(resource.resource_name)
        except Refused as refused:
            return _result(resource, error_code(refused.refusal), str(refused))
        return _result(
            resource, ErrorCode.unknown_topic_or_partition, "This server does not host this topic-partition."
        )
    rows = [
        topic_config_row(definition, view.topic.configs, with_synonyms, with_documentation)
        for definition in TOPIC_CONFIGS.values()
    ]
    return _result(resource, ErrorCode.none, None, _filtered(rows, resource.configuration_keys))


def _describe_broker(resource: Any, agent: Agent, with_synonyms: bool, with_documentation: bool) -> Body:
    if resource.resource_name == "":  # the cluster-wide dynamic configs: there are none
        return _result(resource, ErrorCode.none, None)
    node_id = agent.identity.node_id
    if resource.resource_name != str(node_id):
        return _result(
            resource,
            ErrorCode.invalid_request,
            f"Unexpected broker id, expected {node_id} or empty string, but received {resource.resource_name}",
        )
    rows = [
        {
            "name": config.name,
            "value": config.value,
            "read_only": True,
            "config_source": (source := DEFAULT_CONFIG if config.value == config.default else STATIC_BROKER_CONFIG),
            "is_sensitive": False,
            "synonyms": ({"name": config.name, "value": config.value, "source": source},) if with_synonyms else (),
            "config_type": int(config.kind),
            "documentation": config.documentation if with_documentation else None,
        }
        for config in broker_configs(agent.settings, agent.identity)
    ]
    return _result(resource, ErrorCode.none, None, _filtered(rows, resource.configuration_keys))


def topic_config_row(
    definition: ConfigDefinition, configs: Mapping[str, str], with_synonyms: bool, with_documentation: bool
) -> Body:
    """One config of a topic on which ``configs`` are set, as DescribeConfigs shows it."""
    is_set = definition.name in configs
    synonyms: list[Body] = []
    if with_synonyms and is_set:
        value = configs[definition.name]
        synonyms.append({"name": definition.name, "value": value, "source": DYNAMIC_TOPIC_CONFIG})
    if with_synonyms:
        name = definition.broker_name or definition.name
        synonyms.append({"name": name, "value": definition.default, "source": DEFAULT_CONFIG})
    return {
        "name": definition.name,
        "value": configs.get(definition.name, definition.default),
        "read_only": False,
        "config_source": DYNAMIC_TOPIC_CONFIG if is_set else DEFAULT_CONFIG,
        "is_sensitive": False,
        "synonyms": tuple(synonyms),
        "config_type": int(definition.kind),
        "documentation": _documentation(definition) if with_documentation else None,
    }


def creation_rows(configs: Mapping[str, str]) -> tuple[Body, ...]:
    """All configs of a new topic, as the answer to CreateTopics shows them (version 5+)."""
    shown = ("name", "value", "read_only", "config_source", "is_sensitive")
    rows = (topic_config_row(definition, configs, False, False) for definition in TOPIC_CONFIGS.values())
    return tuple({field: row[field] for field in shown} for row in rows)


@cache
def _documentation(definition: ConfigDefinition) -> str:
    return f"{definition.documentation} In Tidelog: {definition.support.value} ({definition.reason})."


def _filtered(rows: Iterable[Body], names: Iterable[str] | None) -> tuple[Body, ...]:
    """Null and empty both mean all, as in Kafka's ``ConfigHelper``."""
    wanted = set(names or ())
    return tuple(row for row in rows if not wanted or row["name"] in wanted)


def _byte_count(result: Body) -> int:
    """Roughly what a result takes when it is encoded."""
    count = len(result["resource_name"]) + len(result["error_message"] or "")
    for row in result["configs"]:
        count += 12 + len(row["name"]) + len(row["value"] or "") + len(row["documentation"] or "")
        for synonym in row["synonyms"]:
            count += 4 + len(synonym["name"]) + len(synonym["value"] or "")
    return count


def _result(resource: Any, code: ErrorCode, message: str | None, configs: tuple[Body, ...] = ()) -> Body:
    return {
        "error_code": code,
        "error_message": message,
        "resource_type": resource.resource_type,
        "resource_name": resource.resource_name,
        "configs": configs,
    }
