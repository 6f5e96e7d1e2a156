"""What a leaving agent answers, in every version of every API that it does not carry out any more."""

from __future__ import annotations

import uuid
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kio.index import load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader

from agent.context import Agent, AgentIdentity, Call
from agent.handlers import moved
from agent.topics import TopicDirectory
from agent.wire import apis
from agent.wire.codec import EncodedResponse, encode_response, response_prefix
from agent.wire.endpoints import NodeEndpoint
from agent.wire.produce_codec import NO_RECORDS, ProduceRequest
from metadata.agent_model import AgentCondition
from metadata.model import Topic
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import Settings
from tests.support.agents import agent_info, roster

TOPIC_ID = uuid.UUID("00000000-0000-4000-8000-00000000002a")
NOT_LEADER, NOT_COORDINATOR = ErrorCode.not_leader_or_follower, ErrorCode.not_coordinator


@pytest.fixture
def agent() -> Agent:
    """Agent 1 of zone a, leaving; 2 and 3 stay."""
    directory = TopicDirectory()
    directory.reset([Topic(TOPIC_ID.bytes, "logs", 4, {}, 0)])
    known = roster("a")
    known.is_now(NodeEndpoint(1, "agent-1", 9092), AgentCondition.DRAINING)
    known.heard([agent_info(node) for node in (1, 2, 3)])
    nothing = cast(Any, None)
    identity = AgentIdentity("cluster", 1, 1, "agent-1", 9092, "a", "default")
    return Agent(
        *(Settings(), SystemClock(), SeededEntropy(1), identity, nothing, directory),
        *(nothing, nothing, nothing, nothing, known),
        moving=True,
    )


def entity(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(**values)


def codes(answer: Any) -> set[ErrorCode]:
    """Every error code in an answer that is not NONE."""
    found = set()
    for field in fields(answer):
        value = getattr(answer, field.name)
        if isinstance(value, ErrorCode) and value is not ErrorCode.none:
            found.add(value)
        elif isinstance(value, tuple):
            found |= {code for each in value if hasattr(each, "__dataclass_fields__") for code in codes(each)}
    return found


PARTITION = entity(
    partition=1, partition_index=1, fetch_offset=0, partition_max_bytes=1, committed_offset=1, timestamp=-1
)
BY_NAME = (entity(topic="logs", name="logs", topic_id=TOPIC_ID, partitions=(PARTITION,), partition_indexes=(1,)),)
REQUEST = entity(
    group_id="g", member_id="m", topics=BY_NAME, groups=(entity(group_id="g", topics=None), entity(group_id="h"))
)
REFUSED = {
    apis.FETCH: NOT_LEADER,
    apis.LIST_OFFSETS: NOT_LEADER,
    apis.OFFSET_FOR_LEADER_EPOCH: NOT_LEADER,
    apis.OFFSET_COMMIT: NOT_COORDINATOR,
    apis.OFFSET_FETCH: NOT_COORDINATOR,
    apis.JOIN_GROUP: NOT_COORDINATOR,
    apis.SYNC_GROUP: NOT_COORDINATOR,
    apis.HEARTBEAT: NOT_COORDINATOR,
}


def decoded(key: int, version: int, body: Any) -> Any:
    if isinstance(body, EncodedResponse):
        frame = response_prefix(key, version, 5, body.byte_length) + b"".join(body.chunks)
    else:
        frame = encode_response(key, version, 5, body)
    schema = load_response_schema(key, version)
    header = 9 if schema.__flexible__ else 8
    answer, size = entity_reader(schema)(frame, header)
    assert header + size == len(frame)
    return answer


@pytest.mark.parametrize(
    ("key", "version"),
    [(api.key, version) for api in apis.APIS for version in range(api.served_min, api.max_version + 1)],
)
def test_clients_are_told_that_partitions_and_groups_have_moved(key: int, version: int, agent: Agent) -> None:
    body = moved.answer(Call(key, version, 5, "test", "/10.0.0.1"), REQUEST, agent)
    if key not in REFUSED:
        assert body is None, "it is carried out all the same"
        return
    assert codes(decoded(key, version, body)) == {REFUSED[key]}


@pytest.mark.parametrize("version", range(4, 17))
def test_a_fetch_hears_of_the_new_leaders_where_there_is_room(version: int, agent: Agent) -> None:
    body = moved.answer(Call(apis.FETCH, version, 5, "test", "/10.0.0.1"), REQUEST, agent)
    answer = decoded(apis.FETCH, version, body)
    (row,) = answer.responses[0].partitions
    assert (row.partition_index, row.records or b"") == (1, b"")
    if version >= 16:
        leader = agent.roster.route("a", None, "").leader(TOPIC_ID.bytes, 4, 1)
        assert leader.node_id in (2, 3)
        assert row.current_leader.leader_id == leader.node_id
        assert [(node.node_id, node.host) for node in answer.node_endpoints] == [(leader.node_id, leader.host)]


def test_a_produce_hears_of_all_its_new_leaders_and_unknown_topics_are_unknown(agent: Agent) -> None:
    spans = [(number, NO_RECORDS, NO_RECORDS) for number in (0, 1, 2, 3, 4)]
    request = ProduceRequest(10, 1, topics=[("logs", spans), ("absent", spans[:1])])
    topics, endpoints = moved.produce_refusals(request, agent.roster.route("a", None, ""), agent)
    assert {endpoint.node_id for endpoint in endpoints} <= {2, 3}
    rows = cast(Any, dict(topics))
    assert [refusal.error_code for _, refusal in rows["logs"]] == [NOT_LEADER] * 4 + [3]
    assert all(refusal.leader_id in (2, 3) for _, refusal in rows["logs"][:4])
    assert [refusal.error_code for _, refusal in rows["absent"]] == [3]


@pytest.mark.parametrize("version", [12, 13, 16])
def test_a_topic_that_nobody_knows_has_no_leader(version: int, agent: Agent) -> None:
    topics = (
        entity(topic="absent", topic_id=uuid.uuid4(), partitions=(PARTITION,)),
        entity(topic="absent", topic_id=None, partitions=(PARTITION,)),
    )
    call = Call(apis.FETCH, version, 5, None, "/10.0.0.1")
    answer = decoded(apis.FETCH, version, moved.answer(call, entity(topics=topics), agent))
    assert [topic.partitions[0].current_leader.leader_id for topic in answer.responses] == [-1, -1]
