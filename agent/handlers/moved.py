"""What an agent that is leaving answers to clients who should go on elsewhere (RFC 5, "Drain").

Partitions are NOT_LEADER_OR_FOLLOWER, with the new leader and its address where the version has room for them (KIP-951:
Produce 10+, Fetch 16+), groups NOT_COORDINATOR: clients ask Metadata or FindCoordinator, which name other agents, and
go on there. Kafka's brokers answer the same when a leader or a coordinator has moved away.

LeaveGroup is not here: it is carried out, for a member that says goodbye will not ask twice. Neither is what any agent
does once and for all: topics, configs, producer ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kio.schema.errors import ErrorCode

from agent.context import Agent, Body, Call
from agent.routing import Route
from agent.topics import TopicView
from agent.wire import apis
from agent.wire.codec import EncodedResponse
from agent.wire.endpoints import NO_LEADER, NodeEndpoint
from agent.wire.fetch_codec import NO_TOPIC_ID, TOPIC_ID_SINCE, PartitionRow, encode_fetch_response
from agent.wire.produce_codec import PartitionRefusal, ProduceRequest, TopicResults

NOT_LEADER: Final = ErrorCode.not_leader_or_follower
NOT_COORDINATOR: Final = ErrorCode.not_coordinator
_UNKNOWN: Final = PartitionRefusal(ErrorCode.unknown_topic_or_partition)

WHERE_TO: Final = frozenset({apis.METADATA, apis.FIND_COORDINATOR, apis.DESCRIBE_CLUSTER})
"""What is answered with the agents to go to."""


class _Leaders:
    """Looks leaders up, and keeps whose addresses the answer needs."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self.endpoints: dict[int, NodeEndpoint] = {}

    def of(self, view: TopicView | None, partition: int) -> int:
        """The node id of the leader, or NO_LEADER where there is no such partition."""
        if view is None or not 0 <= partition < view.partition_count:
            return NO_LEADER
        leader = self._route.leader(view.topic_id, view.partition_count, partition)
        self.endpoints[leader.node_id] = leader
        return leader.node_id


def produce_refusals(
    request: ProduceRequest, route: Route, agent: Agent
) -> tuple[list[TopicResults], list[NodeEndpoint]]:
    """Every partition of a Produce sent to its new leader, and the leaders' addresses."""
    leaders = _Leaders(route)
    refusals: dict[int, PartitionRefusal] = {NO_LEADER: _UNKNOWN}
    topics: list[TopicResults] = []
    for name, spans in request.topics:
        view = agent.topics.by_name(name)
        rows: list[tuple[int, PartitionRefusal]] = []
        for partition, _, _ in spans:
            leader = leaders.of(view, partition)
            if leader not in refusals:
                refusals[leader] = PartitionRefusal(NOT_LEADER, leader_id=leader)
            rows.append((partition, refusals[leader]))
        topics.append((name, rows))
    return topics, list(leaders.endpoints.values())


def answer(call: Call, request: Any, agent: Agent) -> Body | EncodedResponse | None:
    """What to answer instead of carrying the request out; None for one that is carried out all the same."""
    refuse = _REFUSALS.get(call.api_key)
    return None if refuse is None else refuse(call, request, agent)


def _fetch(call: Call, request: Any, agent: Agent) -> EncodedResponse:
    leaders = _Leaders(agent.roster.route_for(call))
    topics: list[tuple[str | bytes, list[PartitionRow]]] = []
    for topic in request.topics:
        named: str | bytes
        if call.api_version >= TOPIC_ID_SINCE:
            named = NO_TOPIC_ID if topic.topic_id is None else topic.topic_id.bytes
            view = agent.topics.by_id(named)
        else:
            named = str(topic.topic)
            view = agent.topics.by_name(named)
        rows = [
            PartitionRow(asked.partition, NOT_LEADER.value, -1, -1, (), 0, leader_id=leaders.of(view, asked.partition))
            for asked in topic.partitions
        ]
        topics.append((named, rows))
    pieces, byte_length, _ = encode_fetch_response(call.api_version, topics, endpoints=list(leaders.endpoints.values()))
    return EncodedResponse(pieces, byte_length)


def _list_offsets(_call: Call, request: Any, _agent: Agent) -> Body:
    return {
        "topics": tuple(
            {
                "name": topic.name,
                "partitions": tuple(
                    {
                        "partition_index": row.partition_index,
                        "error_code": NOT_LEADER,
                        "timestamp": -1,
                        "offset": -1,
                        "leader_epoch": -1,
                    }
                    for row in topic.partitions
                ),
            }
            for topic in request.topics
        )
    }


def _offset_for_leader_epoch(_call: Call, request: Any, _agent: Agent) -> Body:
    return {
        "topics": tuple(
            {
                "topic": topic.topic,
                "partitions": tuple(
                    {"error_code": NOT_LEADER, "partition": row.partition, "leader_epoch": -1, "end_offset": -1}
                    for row in topic.partitions
                ),
            }
            for topic in request.topics
        )
    }


def _offset_commit(_call: Call, request: Any, _agent: Agent) -> Body:
    return {
        "topics": tuple(
            {
                "name": topic.name,
                "partitions": tuple(
                    {"partition_index": row.partition_index, "error_code": NOT_COORDINATOR} for row in topic.partitions
                ),
            }
            for topic in request.topics
        )
    }


def _offset_fetch(call: Call, request: Any, _agent: Agent) -> Body:
    if call.api_version >= 8:
        groups = dict.fromkeys(group.group_id for group in request.groups)
        return {"groups": tuple({"group_id": name, "error_code": NOT_COORDINATOR, "topics": ()} for name in groups)}
    rows: tuple[Body, ...] = ()
    if call.api_version < 2:  # which has no other place for an error
        rows = tuple(
            {
                "name": topic.name,
                "partitions": tuple(
                    {
                        "partition_index": index,
                        "committed_offset": -1,
                        "metadata": "",
                        "error_code": NOT_COORDINATOR,
                    }
                    for index in topic.partition_indexes
                ),
            }
            for topic in request.topics or ()
        )
    return {"error_code": NOT_COORDINATOR, "topics": rows}


def _join_group(call: Call, request: Any, _agent: Agent) -> Body:
    return {
        "error_code": NOT_COORDINATOR,
        "generation_id": -1,
        "protocol_type": None,
        "protocol_name": None if call.api_version >= 7 else "",
        "leader": "",
        "skip_assignment": False,
        "member_id": request.member_id,
        "members": (),
    }


def _sync_group(_call: Call, _request: Any, _agent: Agent) -> Body:
    return {"error_code": NOT_COORDINATOR, "protocol_type": None, "protocol_name": None, "assignment": b""}


def _heartbeat(_call: Call, _request: Any, _agent: Agent) -> Body:
    return {"error_code": NOT_COORDINATOR}


_REFUSALS: Final[dict[int, Callable[[Call, Any, Agent], Body | EncodedResponse]]] = {
    apis.FETCH: _fetch,
    apis.LIST_OFFSETS: _list_offsets,
    apis.OFFSET_FOR_LEADER_EPOCH: _offset_for_leader_epoch,
    apis.OFFSET_COMMIT: _offset_commit,
    apis.OFFSET_FETCH: _offset_fetch,
    apis.JOIN_GROUP: _join_group,
    apis.SYNC_GROUP: _sync_group,
    apis.HEARTBEAT: _heartbeat,
}
TELLS: Final = WHERE_TO | _REFUSALS.keys()
"""Answers from which a client learns that it has to go elsewhere."""
