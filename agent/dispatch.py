"""From an API key to its handler, and from whatever the handler does to an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.errors import failure_code
from agent.failure_log import FailureLog
from agent.handlers import (
    alter_configs,
    api_versions,
    create_partitions,
    create_topics,
    delete_groups,
    delete_records,
    delete_topics,
    describe_cluster,
    describe_configs,
    describe_groups,
    describe_log_dirs,
    describe_producers,
    describe_topic_partitions,
    fetch,
    find_coordinator,
    heartbeat,
    incremental_alter_configs,
    init_producer_id,
    join_group,
    leave_group,
    list_groups,
    list_offsets,
    metadata,
    moved,
    offset_commit,
    offset_delete,
    offset_fetch,
    offset_for_leader_epoch,
    sync_group,
)
from agent.wire import apis
from agent.wire.codec import EncodedResponse, encode_response, has_error_code, response_prefix
from metadata.model import MetadataUnavailable

Handler = Callable[[Call, Any, Agent], Awaitable[Body | EncodedResponse]]

HANDLERS: Final[dict[int, Handler]] = {
    apis.FETCH: fetch.handle,
    apis.LIST_OFFSETS: list_offsets.handle,
    apis.METADATA: metadata.handle,
    apis.OFFSET_COMMIT: offset_commit.handle,
    apis.OFFSET_FETCH: offset_fetch.handle,
    apis.FIND_COORDINATOR: find_coordinator.handle,
    apis.JOIN_GROUP: join_group.handle,
    apis.HEARTBEAT: heartbeat.handle,
    apis.LEAVE_GROUP: leave_group.handle,
    apis.SYNC_GROUP: sync_group.handle,
    apis.DESCRIBE_GROUPS: describe_groups.handle,
    apis.LIST_GROUPS: list_groups.handle,
    apis.API_VERSIONS: api_versions.handle,
    apis.CREATE_TOPICS: create_topics.handle,
    apis.DELETE_TOPICS: delete_topics.handle,
    apis.DELETE_RECORDS: delete_records.handle,
    apis.INIT_PRODUCER_ID: init_producer_id.handle,
    apis.OFFSET_FOR_LEADER_EPOCH: offset_for_leader_epoch.handle,
    apis.DESCRIBE_CONFIGS: describe_configs.handle,
    apis.INCREMENTAL_ALTER_CONFIGS: incremental_alter_configs.handle,
    apis.DESCRIBE_CLUSTER: describe_cluster.handle,
    apis.OFFSET_DELETE: offset_delete.handle,
    apis.DESCRIBE_TOPIC_PARTITIONS: describe_topic_partitions.handle,
    apis.DESCRIBE_PRODUCERS: describe_producers.handle,
    apis.DESCRIBE_LOG_DIRS: describe_log_dirs.handle,
    apis.DELETE_GROUPS: delete_groups.handle,
    apis.CREATE_PARTITIONS: create_partitions.handle,
    apis.ALTER_CONFIGS: alter_configs.handle,
}
"""Every API of the table but Produce, which the connection takes in itself."""

_GROUP_APIS: Final = frozenset(
    {
        apis.OFFSET_COMMIT,
        apis.OFFSET_FETCH,
        apis.FIND_COORDINATOR,
        apis.JOIN_GROUP,
        apis.HEARTBEAT,
        apis.LEAVE_GROUP,
        apis.SYNC_GROUP,
        apis.DESCRIBE_GROUPS,
        apis.LIST_GROUPS,
        apis.DELETE_GROUPS,
        apis.OFFSET_DELETE,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response frame; ``payload`` follows ``head`` when the handler encoded its answer itself."""

    head: bytes
    payload: EncodedResponse | None = None


class Dispatcher:
    """Calls handlers. A handler's exception disturbs nobody but the client that asked."""

    def __init__(self, agent: Agent, failures: FailureLog, handlers: Mapping[int, Handler] = HANDLERS) -> None:
        self._agent = agent
        self._failures = failures
        self._handlers = handlers

    async def answer(self, call: Call, request: Any) -> Answer | None:
        """The answer to one decoded request; None when the connection has to be closed instead.

        Cancellation passes through: the client is gone or the agent is leaving.
        """
        if self._agent.moving and (sent_away := self.sent_away(call, request)) is not None:
            return sent_away
        api = self._agent.metrics.apis[call.api_key]
        try:
            body = await self._handlers[call.api_key](call, request, self._agent)
            if isinstance(body, EncodedResponse):
                api.ok += 1
                head = response_prefix(call.api_key, call.api_version, call.correlation_id, body.byte_length)
                return Answer(head, body)
            answer = Answer(encode_response(call.api_key, call.api_version, call.correlation_id, body))
        except Exception as error:
            return self._failed(call, error)
        if body.get("error_code", 0):
            api.error += 1
        else:
            api.ok += 1
        return answer

    def sent_away(self, call: Call, request: Any) -> Answer | None:
        """The answer of an agent that leaves; None to a request that it carries out all the same."""
        api = self._agent.metrics.apis[call.api_key]
        try:
            body = moved.answer(call, request, self._agent)
            if body is None:
                return None
            api.error += 1
            if isinstance(body, EncodedResponse):
                head = response_prefix(call.api_key, call.api_version, call.correlation_id, body.byte_length)
                return Answer(head, body)
            return Answer(encode_response(call.api_key, call.api_version, call.correlation_id, body))
        except Exception as error:
            return self._failed(call, error)

    def _failed(self, call: Call, error: Exception) -> Answer | None:
        """What a failed handler's client hears: Kafka's error where the API has one place for it, else nothing."""
        api = self._agent.metrics.apis[call.api_key]
        api.failed += 1
        known = isinstance(error, MetadataUnavailable)
        self._failures.report(
            "metadata_unavailable" if known else "handler_failed",
            None if known else error,
            api=api.name,
            api_version=call.api_version,
            client=call.client_host,
            reason=repr(error),
        )
        if not has_error_code(call.api_key, call.api_version):
            return None
        code = failure_code(error)
        if known and call.api_key in _GROUP_APIS:
            code = ErrorCode.coordinator_not_available
        body = {"error_code": code}
        return Answer(encode_response(call.api_key, call.api_version, call.correlation_id, body))
