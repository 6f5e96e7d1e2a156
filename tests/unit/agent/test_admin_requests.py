"""What tools ask of an agent beyond topics and configs: partitions, sizes, producers, and deletions in groups.

Requests go through kio and the codec to the handlers, over a real metadata service, and the answers back, in every
version.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader
from prometheus_client import CollectorRegistry

from agent.context import Agent, AgentIdentity, Call
from agent.dispatch import HANDLERS
from agent.handlers import answer_limit, describe_topic_partitions
from agent.handlers.describe_log_dirs import log_dir_name
from agent.topics import TopicDirectory
from agent.wire import apis
from agent.wire.codec import decode_request, encode_response
from agent.wire.endpoints import NodeEndpoint
from agent.wire.schema import EntityPlan, entity_plan
from metadata.agent_model import AgentCondition
from metadata.group_model import JoinGroup, OffsetCommit, OffsetRecord, SyncGroup
from metadata.metrics import MetadataMetrics
from metadata.model import MetadataUnavailable, TopicsChanged
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import AgentsSettings, GroupSettings, Settings, TopicSettings
from runtime.tasks import Supervisor
from tests.support.agents import agent_info, lone_roster
from tests.support.kio_bodies import build, written
from tests.support.metadata import batch, registration, segment

NODE = 7
NEW_APIS = (
    apis.CREATE_PARTITIONS,
    apis.DELETE_GROUPS,
    apis.OFFSET_DELETE,
    apis.ALTER_CONFIGS,
    apis.DESCRIBE_LOG_DIRS,
    apis.DESCRIBE_TOPIC_PARTITIONS,
    apis.DESCRIBE_PRODUCERS,
)


def versions(key: int) -> list[int]:
    api = apis.API_BY_KEY[key]
    return list(range(api.served_min, api.max_version + 1))


class Listener:
    """Keeps the agent's view of the topics, unless it is to be behind."""

    def __init__(self, directory: TopicDirectory) -> None:
        self.directory = directory
        self.is_behind = False

    def topics_changed(self, change: TopicsChanged) -> None:
        if not self.is_behind:
            self.directory.apply(change)

    def extents_committed(self, _extents: Any) -> None: ...

    def agents_changed(self, _agents: Any) -> None: ...

    def resynchronize(self) -> None: ...


class Away:
    """A metadata service that cannot answer."""

    def __getattr__(self, _name: str) -> Any:
        async def unavailable(*_: Any) -> Any:
            raise MetadataUnavailable("planted")

        return unavailable


def filled(plan: EntityPlan, values: dict[str, Any]) -> dict[str, Any]:
    """``values``, and Kafka's default for what they leave out; nested alike."""
    body = {}
    for field in plan.fields + plan.tagged:
        value = values.get(field.name, field.default)
        if field.kafka_type == "timedelta_i32":
            value = timedelta(0)
        if field.entity is not None and value is not None:
            nested = field.entity
            value = tuple(filled(nested, row) for row in value) if field.is_array else filled(nested, value)
        body[field.name] = value
    return body


class World:
    """An agent beside a metadata service in memory, with a topic ``logs`` of two partitions."""

    def __init__(self, service: MetadataService) -> None:
        self.service = service
        self.listener = Listener(TopicDirectory())
        nothing = cast(Any, SimpleNamespace())
        identity = AgentIdentity("cluster", NODE, 1, "agent.example", 9092, "a", "default")
        self.agent = Agent(
            Settings(storage="s3://bucket/logs/?endpoint=http://127.0.0.1:9000&region=x"),
            SystemClock(),
            SeededEntropy(1),
            identity,
            service,
            self.listener.directory,
            nothing,
            nothing,
            nothing,
            nothing,
            lone_roster(identity),
        )

    async def ask(self, key: int, version: int | None = None, **values: Any) -> Any:
        version = apis.API_BY_KEY[key].max_version if version is None else version
        schema = load_request_schema(key, version)
        body = written(build(schema, filled(entity_plan(schema), values)))
        answer = await HANDLERS[key](
            Call(key, version, 5, "test-client", "/10.1.2.3"), decode_request(key, version, body), self.agent
        )
        assert isinstance(answer, dict)
        frame = encode_response(key, version, 5, answer)
        response = load_response_schema(key, version)
        header_bytes = 9 if response.__flexible__ else 8
        decoded, size = entity_reader(response)(frame, header_bytes)
        assert header_bytes + size == len(frame)
        return decoded

    async def commit_offsets(self, group: str, *partitions: int) -> None:
        offsets = tuple(OffsetRecord(self.topic_id, partition, 1, -1, "", 0) for partition in partitions)
        assert (await self.service.commit_offsets(OffsetCommit(group, -1, "", None, offsets))).refusal is None

    async def member(self, group: str, protocol_type: str = "consumer", topic: str = "logs") -> None:
        name = topic.encode()
        subscription = struct.pack(">hih", 1, 1, len(name)) + name
        protocols = (("range", subscription),)
        join = JoinGroup(group, "", None, "c", "/h", 60_000, 60_000, protocol_type, protocols, False)
        joined = await self.service.join_group(join)
        sync = SyncGroup(group, joined.generation_id, joined.member_id, None, None, None, ())
        assert (await self.service.sync_group(sync)).refusal is None

    @property
    def topic_id(self) -> bytes:
        view = self.listener.directory.by_name("logs")
        assert view is not None
        return view.topic_id


@pytest.fixture
async def world() -> AsyncIterator[World]:
    supervisor = Supervisor()
    service = MetadataService(
        MemoryMetadataStore(),
        SystemClock(),
        SeededEntropy(2),
        supervisor,
        MetadataMetrics(CollectorRegistry()),
        GroupSettings(initial_rebalance_delay_ms=0),
        TopicSettings(),
        AgentsSettings(),
    )
    await service.start()
    world = World(service)
    await service.subscribe(world.listener)
    await service.create_topic("logs", 2, {})
    yield world
    await service.stop()
    await supervisor.stop()


def codes(rows: Any) -> list[ErrorCode]:
    return [row.error_code for row in rows]


# --- CreatePartitions -----------------------------------------------------------------------------------------


def growth(name: str, count: int, assignments: Any = None) -> dict[str, Any]:
    rows = None if assignments is None else tuple({"broker_ids": tuple(replicas)} for replicas in assignments)
    return {"name": name, "count": count, "assignments": rows}


@pytest.mark.parametrize("version", versions(apis.CREATE_PARTITIONS))
async def test_a_topic_gets_more_partitions(world: World, version: int) -> None:
    checked = await world.ask(apis.CREATE_PARTITIONS, version, topics=(growth("logs", 5),), validate_only=True)
    assert codes(checked.results) == [ErrorCode.none]
    view = world.listener.directory.by_name("logs")
    assert view is not None and view.partition_count == 2
    answer = await world.ask(apis.CREATE_PARTITIONS, version, topics=(growth("logs", 5),))
    assert [(row.name, row.error_code, row.error_message) for row in answer.results] == [("logs", ErrorCode.none, None)]
    view = world.listener.directory.by_name("logs")
    assert view is not None and view.partition_count == 5


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (growth("absent", 5), ErrorCode.unknown_topic_or_partition, "does not host"),
        (growth("logs", 2), ErrorCode.invalid_partitions, "Topic already has 2 partition(s)."),
        (growth("logs", 1), ErrorCode.invalid_partitions, "currently has 2 partition(s); 1 would not be an increase."),
        (growth("logs", -5), ErrorCode.invalid_partitions, "would not be an increase"),
        (growth("logs", 1, [[NODE]]), ErrorCode.invalid_partitions, "would not be an increase"),
        (growth("logs", 20_000), ErrorCode.invalid_partitions, "between 1 and"),
        (growth("logs", 4, [[NODE]]), ErrorCode.invalid_replica_assignment, "Attempted to add 2 additional partition"),
        (growth("logs", 3, []), ErrorCode.invalid_replica_assignment, "but only 0 assignment(s) were specified."),
        (growth("logs", 3, [[99]]), ErrorCode.invalid_replica_assignment, "includes broker 99, but no such broker"),
        (growth("logs", 3, [[]]), ErrorCode.invalid_replica_assignment, "partition 2 includes no brokers"),
        (growth("logs", 3, [[NODE, NODE]]), ErrorCode.invalid_replica_assignment, "names a broker twice"),
    ],
)
async def test_partitions_that_cannot_be_created(
    world: World, wanted: dict[str, Any], code: ErrorCode, message: str
) -> None:
    (row,) = (await world.ask(apis.CREATE_PARTITIONS, topics=(wanted,))).results
    assert row.error_code is code
    assert message in row.error_message
    assert (await world.service.partition_offsets([(world.topic_id, 2)])) == [None]


async def test_growth_by_assignment_and_a_topic_named_twice(world: World) -> None:
    answer = await world.ask(apis.CREATE_PARTITIONS, topics=(growth("logs", 4), growth("logs", 5)))
    assert codes(answer.results) == [ErrorCode.invalid_request]
    answer = await world.ask(apis.CREATE_PARTITIONS, topics=(growth("logs", 4, [[NODE], [NODE]]), growth("x", 2)))
    assert codes(answer.results) == [ErrorCode.none, ErrorCode.unknown_topic_or_partition]


async def test_changes_of_a_topic_that_was_deleted_meanwhile(world: World) -> None:
    world.listener.is_behind = True
    await world.service.delete_topic(world.topic_id)
    answer = await world.ask(apis.CREATE_PARTITIONS, topics=(growth("logs", 4),))
    assert codes(answer.results) == [ErrorCode.unknown_topic_or_partition]
    for key in (apis.ALTER_CONFIGS, apis.INCREMENTAL_ALTER_CONFIGS):
        answer = await world.ask(key, resources=(resource(("flush.ms", "1")),))
        assert codes(answer.responses) == [ErrorCode.unknown_topic_or_partition]


# --- DeleteGroups and OffsetDelete ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", versions(apis.DELETE_GROUPS))
async def test_groups_are_deleted_each_on_its_own(world: World, version: int) -> None:
    await world.commit_offsets("idle", 0)
    await world.member("busy")
    answer = await world.ask(apis.DELETE_GROUPS, version, groups_names=("idle", "busy", "absent", "idle"))
    assert [(row.group_id, row.error_code) for row in answer.results] == [
        ("idle", ErrorCode.none),
        ("busy", ErrorCode.non_empty_group),
        ("absent", ErrorCode.group_id_not_found),
    ]
    assert await world.service.fetch_offsets("idle", None) == []


def topics(name: str, *partitions: int) -> dict[str, Any]:
    return {"name": name, "partitions": tuple({"partition_index": number} for number in partitions)}


async def test_offsets_are_deleted_and_every_partition_answered(world: World) -> None:
    await world.commit_offsets("g", 0, 1)
    asked = (topics("absent", 0), topics("logs", 0, 9))
    answer = await world.ask(apis.OFFSET_DELETE, group_id="g", topics=asked)
    assert answer.error_code is ErrorCode.none
    unknown = ErrorCode.unknown_topic_or_partition
    assert [
        (topic.name, [(row.partition_index, row.error_code) for row in topic.partitions]) for topic in answer.topics
    ] == [("absent", [(0, unknown)]), ("logs", [(0, ErrorCode.none), (9, unknown)])]
    assert [record.partition for record in await world.service.fetch_offsets("g", None)] == [1]


async def test_offsets_that_cannot_be_deleted(world: World) -> None:
    async def code(group: str, *asked: dict[str, Any]) -> ErrorCode:
        answer = await world.ask(apis.OFFSET_DELETE, group_id=group, topics=asked or (topics("logs", 0),))
        assert answer.error_code is ErrorCode.none or answer.topics == ()
        return cast(ErrorCode, answer.error_code or answer.topics[0].partitions[0].error_code)

    for group in ("reads", "connect"):
        await world.commit_offsets(group, 0)
    await world.member("reads")
    await world.member("connect", "connect")
    assert await code("reads") is ErrorCode.group_subscribed_to_topic
    assert await code("connect") is ErrorCode.non_empty_group
    assert await code("absent") is ErrorCode.group_id_not_found
    assert await code("") is ErrorCode.invalid_group_id
    assert await code("absent", topics("absent", 0)) is ErrorCode.unknown_topic_or_partition


async def test_groups_while_the_metadata_is_away_are_asked_for_again(world: World) -> None:
    world.agent.metadata = cast(Any, Away())
    assert codes((await world.ask(apis.DELETE_GROUPS, groups_names=("g",))).results) == [ErrorCode.not_coordinator]
    answer = await world.ask(apis.OFFSET_DELETE, group_id="g", topics=(topics("logs", 0),))
    assert (answer.error_code, answer.topics) == (ErrorCode.not_coordinator, ())


# --- AlterConfigs ---------------------------------------------------------------------------------------------


def resource(*configs: tuple[str, str | None], name: str = "logs", kind: int = 2) -> dict[str, Any]:
    rows = tuple({"name": config, "value": value} for config, value in configs)
    return {"resource_type": kind, "resource_name": name, "configs": rows}


async def topic_configs(world: World) -> dict[str, str]:
    (topic,) = (await world.service.subscribe(Listener(TopicDirectory()))).topics
    return topic.configs


@pytest.mark.parametrize("version", versions(apis.ALTER_CONFIGS))
async def test_alter_configs_replaces_all_configs(world: World, version: int) -> None:
    await world.service.alter_topic_configs(world.topic_id, {"retention.ms": "5", "flush.ms": "7"})
    asked = (resource(("max.message.bytes", "100"), ("flush.ms", "8")),)
    answer = await world.ask(apis.ALTER_CONFIGS, version, resources=asked, validate_only=True)
    assert codes(answer.responses) == [ErrorCode.none]
    assert await topic_configs(world) == {"retention.ms": "5", "flush.ms": "7"}
    answer = await world.ask(apis.ALTER_CONFIGS, version, resources=asked)
    assert [(row.error_code, row.resource_type, row.resource_name) for row in answer.responses] == [
        (ErrorCode.none, 2, "logs")
    ]
    assert await topic_configs(world) == {"max.message.bytes": "100", "flush.ms": "8"}
    await world.ask(apis.ALTER_CONFIGS, version, resources=(resource(),))
    assert await topic_configs(world) == {}


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (resource(("no.such", "1")), ErrorCode.invalid_config),
        (resource(("retention.ms", "soon")), ErrorCode.invalid_config),
        (resource(("retention.ms", None)), ErrorCode.invalid_request),
        (resource(("retention.ms", "1"), ("retention.ms", "2")), ErrorCode.invalid_request),
        (resource(("retention.ms", "1"), name="absent"), ErrorCode.unknown_topic_or_partition),
        (resource(("num.partitions", "1"), name=str(NODE), kind=4), ErrorCode.invalid_request),
        (resource(("x", "1"), kind=16), ErrorCode.invalid_request),
    ],
)
async def test_what_alter_configs_refuses_changes_nothing(world: World, asked: dict[str, Any], code: ErrorCode) -> None:
    await world.service.alter_topic_configs(world.topic_id, {"retention.ms": "5"})
    (row,) = (await world.ask(apis.ALTER_CONFIGS, resources=(asked,))).responses
    assert row.error_code is code
    assert row.error_message
    answer = await world.ask(apis.ALTER_CONFIGS, resources=(resource(), resource()))
    assert codes(answer.responses) == [ErrorCode.invalid_request] * 2
    assert await topic_configs(world) == {"retention.ms": "5"}


# --- DescribeLogDirs ------------------------------------------------------------------------------------------


async def write_some(world: World) -> None:
    """100 and 30 bytes to the partitions of ``logs``, by two producers."""
    epoch = (await world.service.register_agent(registration())).agent_epoch
    for number, (partition, size) in enumerate(((0, 60), (0, 40), (1, 30))):
        producer = (await world.service.grant_producer_id(-1, -1)).producer_id
        drafts = (world.topic_id, partition, [batch(5, size=size, producer=producer, epoch=0, sequence=0)])
        await world.service.commit_segments(epoch, -1, [segment(number, drafts)])


@pytest.mark.parametrize("version", versions(apis.DESCRIBE_LOG_DIRS))
async def test_log_dirs_have_the_bytes_of_their_partitions(world: World, version: int) -> None:
    await write_some(world)
    await world.service.create_topic("empty", 1, {})

    async def sizes(asked: Any) -> list[tuple[str, list[tuple[int, int]]]]:
        (log_dir,) = (await world.ask(apis.DESCRIBE_LOG_DIRS, version, topics=asked)).results
        assert (log_dir.error_code, log_dir.log_dir) == (ErrorCode.none, "s3://bucket/logs/")
        assert version < 4 or (log_dir.total_bytes, log_dir.usable_bytes) == (-1, -1)
        assert all((row.offset_lag, row.is_future_key) == (0, False) for t in log_dir.topics for row in t.partitions)
        return [(t.name, [(row.partition_index, row.partition_size) for row in t.partitions]) for t in log_dir.topics]

    assert await sizes(None) == [("empty", [(0, 0)]), ("logs", [(0, 100), (1, 30)])]
    assert await sizes(()) == []
    named = ({"topic": "logs", "partitions": (1, 9)}, {"topic": "absent", "partitions": (0,)})
    assert await sizes(named) == [("logs", [(1, 30)])]
    world.agent.metadata = cast(Any, Away())
    (log_dir,) = (await world.ask(apis.DESCRIBE_LOG_DIRS, version, topics=None)).results
    assert (log_dir.error_code, log_dir.topics) == (ErrorCode.kafka_storage_error, ())


async def test_each_partition_is_in_the_log_dir_of_one_agent(world: World) -> None:
    await world.service.create_partitions(world.topic_id, 1_500)
    roster = world.agent.roster
    roster.heard((agent_info(NODE), agent_info(8), agent_info(9)))
    found: list[int] = []
    for node_id in (NODE, 8, 9):
        identity = AgentIdentity("cluster", node_id, 1, f"agent-{node_id}", 9092, "a", "default")
        world.agent.identity = identity
        roster.is_now(NodeEndpoint(node_id, identity.host, 9092), AgentCondition.READY)
        (log_dir,) = (await world.ask(apis.DESCRIBE_LOG_DIRS, topics=None)).results
        numbers = [row.partition_index for topic in log_dir.topics for row in topic.partitions]
        assert len(numbers) > 300
        found += numbers
    assert sorted(found) == list(range(1_500))


def test_a_log_dir_is_named_without_how_it_is_reached() -> None:
    assert log_dir_name("s3://bucket?endpoint=http://127.0.0.1:1&region=r") == "s3://bucket/"
    assert log_dir_name("memory://?capacity_bytes=1000000") == "memory://"
    assert log_dir_name("file:///some/where?put_p50_ms=1&put_p99_ms=2&get_p50_ms=1&get_p99_ms=2") == "/some/where"


# --- DescribeProducers ----------------------------------------------------------------------------------------


async def test_producers_of_partitions_that_exist(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await write_some(world)
    asked = ({"name": "logs", "partition_indexes": (0, 1, 2)}, {"name": "no", "partition_indexes": (0,)})
    answer = await world.ask(apis.DESCRIBE_PRODUCERS, topics=(*asked, {"name": "a b", "partition_indexes": (0,)}))
    rows = [row for topic in answer.topics for row in topic.partitions]
    unknown = ErrorCode.unknown_topic_or_partition
    assert codes(rows) == [ErrorCode.none, ErrorCode.none, unknown, unknown, ErrorCode.invalid_topic_exception]
    assert all(row.error_message for row in rows[2:])
    first, second = rows[0].active_producers
    (third,) = rows[1].active_producers
    assert len({first.producer_id, second.producer_id, third.producer_id}) == 3
    for producer in (first, second, third):
        assert (producer.producer_epoch, producer.last_sequence) == (0, 4)
        assert (producer.coordinator_epoch, producer.current_txn_start_offset) == (-1, -1)
        assert abs(producer.last_timestamp - world.agent.clock.now_ms()) < 60_000
    monkeypatch.setattr(answer_limit, "ANSWER_BYTES_MAX", 100)
    asked = ({"name": "logs", "partition_indexes": (0,) * 8}, {"name": "logs", "partition_indexes": (1,)})
    answer = await world.ask(apis.DESCRIBE_PRODUCERS, topics=asked)
    assert codes(answer.topics[0].partitions) == [ErrorCode.none] * 8
    assert codes(answer.topics[1].partitions) == [ErrorCode.invalid_request]
    world.agent.metadata = cast(Any, Away())
    answer = await world.ask(apis.DESCRIBE_PRODUCERS, topics=asked[1:])
    assert codes(answer.topics[0].partitions) == [ErrorCode.request_timed_out]


# --- DescribeTopicPartitions ----------------------------------------------------------------------------------


async def test_topics_are_described_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe_topic_partitions, "PARTITIONS_MAX", 1_100)
    await world.service.create_topic("big", 2_500, {})
    await world.service.create_topic("a", 1, {})
    world.agent.roster.heard((agent_info(NODE), agent_info(8)))
    found: dict[str, list[int]] = {}
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        asked = None if cursor is None else {"topic_name": cursor.topic_name, "partition_index": cursor.partition_index}
        answer = await world.ask(apis.DESCRIBE_TOPIC_PARTITIONS, cursor=asked)
        for topic in answer.topics:
            assert topic.error_code is ErrorCode.none
            assert topic.topic_id == world.listener.directory.by_name(topic.name).uuid  # type: ignore[union-attr]
            for row in topic.partitions:
                found.setdefault(topic.name, []).append(row.partition_index)
                assert (row.error_code, row.leader_epoch) == (ErrorCode.none, 0)
                assert row.replica_nodes == row.isr_nodes == (row.leader_id,)
                assert row.leader_id in (NODE, 8)
        assert sum(len(topic.partitions) for topic in answer.topics) <= 1_100
        cursor, pages = answer.next_cursor, pages + 1
    assert found == {"a": [0], "big": list(range(2_500)), "logs": [0, 1]}
    assert pages == 3


async def test_named_topics_and_the_ends_of_pages(world: World) -> None:
    await world.service.create_topic("other", 2, {})

    async def ask(*names: str, limit: int = 2_000, cursor: tuple[str, int] | None = None) -> Any:
        return await world.ask(
            apis.DESCRIBE_TOPIC_PARTITIONS,
            topics=tuple({"name": name} for name in names),
            response_partition_limit=limit,
            cursor=None if cursor is None else {"topic_name": cursor[0], "partition_index": cursor[1]},
        )

    answer = await ask("other", "absent", "a b", "logs", "logs")
    unknown = ErrorCode.unknown_topic_or_partition
    assert [(topic.name, topic.error_code, len(topic.partitions)) for topic in answer.topics] == [
        ("a b", ErrorCode.invalid_topic_exception, 0),
        ("absent", unknown, 0),
        ("logs", ErrorCode.none, 2),
        ("other", ErrorCode.none, 2),
    ]
    assert answer.next_cursor is None
    answer = await ask("logs", "other", limit=2)
    assert ([topic.name for topic in answer.topics], answer.next_cursor.topic_name) == (["logs"], "other")
    assert answer.next_cursor.partition_index == 0
    answer = await ask("logs", limit=0)
    assert [row.partition_index for row in answer.topics[0].partitions] == [0]
    assert (answer.next_cursor.topic_name, answer.next_cursor.partition_index) == ("logs", 1)
    answer = await ask("logs", "other", cursor=("logs", 1))
    assert [[row.partition_index for row in topic.partitions] for topic in answer.topics] == [[1], [0, 1]]
    for cursor in (("other", 0), ("logs", -1)):
        assert codes((await ask("logs", cursor=cursor)).topics) == [ErrorCode.invalid_request]
    answer = await ask(cursor=("m", 1))
    assert [(topic.name, len(topic.partitions)) for topic in answer.topics] == [("other", 2)]
