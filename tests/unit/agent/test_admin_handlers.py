"""The administrative handlers against a metadata service in memory; every answer is encoded in every version."""

import asyncio
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kio.index import load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader
from msgspec import structs

from agent.context import Agent, AgentIdentity, Body, Call
from agent.handlers import (
    answer_limit,
    create_topics,
    delete_records,
    delete_topics,
    describe_cluster,
    describe_configs,
    incremental_alter_configs,
    init_producer_id,
    metadata,
)
from agent.neighbours import Neighbours
from agent.topics import TopicDirectory
from agent.wire.codec import EncodedResponse, encode_response, response_prefix
from metadata.config_definitions import LONG_MAX
from metadata.model import (
    MetadataUnavailable,
    ProducerIdGranted,
    RecordsDeleted,
    RecordsDeletion,
    Refusal,
    Refused,
    Topic,
    TopicsChanged,
)
from metadata.topic_configs import TOPIC_CONFIGS, ConfigChanges, changed_configs, validate_topic_configs
from metadata.topics import check_topic_name
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import Settings, TopicSettings
from tests.support.agents import agent_info, lone_roster

NODE = 7
Handler = Callable[[Call, Any, Agent], Awaitable[Body]]


class FakeMetadata:
    """Topics and producer ids in memory; tells ``directory`` of every change unless it is told to lag."""

    def __init__(self, directory: TopicDirectory) -> None:
        self.topics: dict[str, Topic] = {}
        self.directory = directory
        self.lagging = False
        self.unavailable = False
        self.producer_ids = 0
        self.epochs: dict[int, int] = {}
        self.alterations: list[ConfigChanges] = []

    def _ask(self) -> None:
        if self.unavailable:
            raise MetadataUnavailable("the store is away")

    def _tell(self, change: TopicsChanged) -> None:
        if not self.lagging:
            self.directory.apply(change)

    async def create_topic(
        self, name: str, partition_count: int, configs: dict[str, str], validate_only: bool = False
    ) -> Topic:
        self._ask()
        check_topic_name(name)
        if name in self.topics:
            raise Refused(Refusal.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
        try:
            validate_topic_configs(configs)
        except ValueError as error:
            raise Refused(Refusal.INVALID_CONFIG, str(error)) from error
        topic = Topic(uuid.uuid4().bytes, name, partition_count, configs, 0)
        if not validate_only:
            self.topics[name] = topic
            self._tell(TopicsChanged(upserted=(topic,)))
        return topic

    async def delete_records(self, deletions: list[RecordsDeletion]) -> list[RecordsDeleted]:
        """Every log has ten records; of partition 9 nobody has heard, and 8 has gone with its topic."""
        self._ask()
        refusals = {9: Refusal.UNKNOWN_TOPIC_OR_PARTITION, 8: Refusal.UNKNOWN_TOPIC_ID, 7: Refusal.POLICY_VIOLATION}
        answers = []
        for deletion in deletions:
            refusal = refusals.get(deletion.partition)
            if refusal is None and deletion.before_offset > 10:
                refusal = Refusal.OFFSET_OUT_OF_RANGE
            offset = 10 if deletion.before_offset == -1 else deletion.before_offset
            answers.append(RecordsDeleted(offset) if refusal is None else RecordsDeleted(-1, refusal))
        return answers

    async def delete_topic(self, topic_id: bytes) -> None:
        self._ask()
        for name, topic in self.topics.items():
            if topic.topic_id == topic_id:
                del self.topics[name]
                self._tell(TopicsChanged(deleted=(topic_id,)))
                return
        raise Refused(Refusal.UNKNOWN_TOPIC_ID, "no such topic")

    async def alter_topic_configs(self, topic_id: bytes, changes: ConfigChanges) -> Topic:
        self._ask()
        self.alterations.append(changes)
        (topic,) = (topic for topic in self.topics.values() if topic.topic_id == topic_id)
        merged = changed_configs(topic.configs, changes)
        topic = Topic(topic.topic_id, topic.name, topic.partition_count, merged, topic.created_ms)
        self.topics[topic.name] = topic
        self._tell(TopicsChanged(upserted=(topic,)))
        return topic

    async def grant_producer_id(self, producer_id: int, producer_epoch: int) -> ProducerIdGranted:
        self._ask()
        if producer_id == -1:
            self.producer_ids += 1
            self.epochs[self.producer_ids] = 0
            return ProducerIdGranted(self.producer_ids, 0)
        if self.epochs.get(producer_id) != producer_epoch:
            raise Refused(Refusal.INVALID_PRODUCER_EPOCH, "not the epoch we know")
        self.epochs[producer_id] += 1
        return ProducerIdGranted(producer_id, self.epochs[producer_id])


@pytest.fixture
def store() -> FakeMetadata:
    return FakeMetadata(TopicDirectory())


@pytest.fixture
def agent(store: FakeMetadata) -> Agent:
    identity = AgentIdentity("cluster-1", NODE, 1, "10.0.0.1", 9092, "a", "default")
    missing = cast(Any, None)
    return Agent(
        Settings(),
        SystemClock(),
        SeededEntropy(1),
        identity,
        cast(Any, store),
        store.directory,
        missing,
        missing,
        missing,
        missing,
        lone_roster(identity),
    )


def entity(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


async def ask(
    handler: Any, api_key: int, version: int, request: Any, agent: Agent, zone: str = "", client_id: str = "test"
) -> Any:
    """The answer as a client of this version decodes it."""
    call = Call(api_key, version, 5, client_id, "/127.0.0.1", zone)
    body = await handler.handle(call, request, agent)
    if isinstance(body, EncodedResponse):
        frame = response_prefix(api_key, version, 5, body.byte_length) + b"".join(body.chunks)
    else:
        frame = encode_response(api_key, version, 5, body)
    schema = load_response_schema(api_key, version)
    header = 5 if schema.__flexible__ and api_key != 18 else 4
    answer, size = entity_reader(schema)(frame, 4 + header)
    assert 4 + header + size == len(frame)
    return answer


def wanted_topic(name: str | None = None, topic_id: uuid.UUID | None = None) -> SimpleNamespace:
    return entity(name=name, topic_id=topic_id)


async def ask_metadata(
    agent: Agent, topics: Any, version: int = 13, *, zone: str = "", client_id: str = "test", **fields: Any
) -> Any:
    return await ask(metadata, 3, version, entity(topics=topics, **fields), agent, zone, client_id)


# --- Metadata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(14))
async def test_metadata_describes_topics_in_every_version(version: int, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 3, {})
    answer = await ask_metadata(agent, (entity(name="logs"),), version)
    (broker,) = answer.brokers
    assert (broker.node_id, broker.host, broker.port) == (NODE, "10.0.0.1", 9092)
    if version >= 1:
        assert answer.controller_id == NODE
        assert broker.rack is None
    if version >= 2:
        assert answer.cluster_id == "cluster-1"
    (topic,) = answer.topics
    assert (topic.error_code, topic.name) == (ErrorCode.none, "logs")
    assert [row.partition_index for row in topic.partitions] == [0, 1, 2]
    for row in topic.partitions:
        assert (row.leader_id, row.replica_nodes, row.isr_nodes) == (NODE, (NODE,), (NODE,))
        if version >= 7:
            assert row.leader_epoch == 0
    if version >= 10:
        assert topic.topic_id == uuid.UUID(bytes=store.topics["logs"].topic_id)
    if version >= 8:
        assert topic.topic_authorized_operations == -(2**31)


async def test_an_empty_list_means_all_topics_only_in_version_0(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("b", 1, {})
    await store.create_topic("a", 1, {})
    assert [topic.name for topic in (await ask_metadata(agent, (), 0)).topics] == ["a", "b"]
    assert (await ask_metadata(agent, (), 1)).topics == ()
    for version in range(1, 14):
        assert len((await ask_metadata(agent, None, version)).topics) == 2


async def test_a_missing_topic_is_created_and_answered_at_once_even_when_the_view_lags(
    agent: Agent, store: FakeMetadata
) -> None:
    store.lagging = True
    (topic,) = (await ask_metadata(agent, (wanted_topic("new"),), allow_auto_topic_creation=True)).topics
    assert (topic.error_code, len(topic.partitions)) == (ErrorCode.none, 4)
    assert store.topics["new"].partition_count == 4


@pytest.mark.parametrize("version", [0, 3])
async def test_versions_that_cannot_forbid_it_create_topics(version: int, agent: Agent, store: FakeMetadata) -> None:
    (topic,) = (await ask_metadata(agent, (entity(name="new"),), version)).topics
    assert topic.error_code is ErrorCode.none
    assert "new" in store.topics


async def test_a_missing_topic_is_not_created_when_the_client_or_the_settings_forbid_it(
    agent: Agent, store: FakeMetadata
) -> None:
    (topic,) = (await ask_metadata(agent, (wanted_topic("new"),), allow_auto_topic_creation=False)).topics
    assert topic.error_code is ErrorCode.unknown_topic_or_partition
    agent.settings = Settings(topics=TopicSettings(auto_create=False))
    (topic,) = (await ask_metadata(agent, (wanted_topic("new"),), allow_auto_topic_creation=True)).topics
    assert topic.error_code is ErrorCode.unknown_topic_or_partition
    assert store.topics == {}


async def test_a_topic_somebody_else_created_first_is_described_or_asked_for_again(
    agent: Agent, store: FakeMetadata
) -> None:
    store.lagging = True
    await store.create_topic("new", 2, {})
    (topic,) = (await ask_metadata(agent, (wanted_topic("new"),), allow_auto_topic_creation=True)).topics
    assert topic.error_code is ErrorCode.leader_not_available


async def test_auto_creation_while_the_metadata_is_away_is_retriable(agent: Agent, store: FakeMetadata) -> None:
    store.unavailable = True
    (topic,) = (await ask_metadata(agent, (wanted_topic("new"),))).topics
    assert topic.error_code is ErrorCode.leader_not_available


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 250, "é"])
async def test_an_invalid_name_is_refused_whether_or_not_it_could_be_created(name: str, agent: Agent) -> None:
    for may_create in (True, False):
        answer = await ask_metadata(agent, (wanted_topic(name),), allow_auto_topic_creation=may_create)
        assert answer.topics[0].error_code is ErrorCode.invalid_topic_exception


async def test_topics_are_found_by_id_from_version_12_on(agent: Agent, store: FakeMetadata) -> None:
    topic_id = uuid.UUID(bytes=(await store.create_topic("logs", 1, {})).topic_id)
    absent = uuid.uuid4()
    for version in (12, 13):
        found, lost = (
            await ask_metadata(agent, (wanted_topic(None, topic_id), wanted_topic(None, absent)), version)
        ).topics
        assert (found.name, found.topic_id, found.error_code) == ("logs", topic_id, ErrorCode.none)
        assert (lost.name, lost.topic_id, lost.error_code) == (None, absent, ErrorCode.unknown_topic_id)
    for version in (10, 11):
        (row,) = (await ask_metadata(agent, (wanted_topic(None, topic_id),), version)).topics
        assert row.error_code is ErrorCode.invalid_request


@pytest.mark.parametrize("version", range(14))
async def test_leaders_are_spread_over_the_agents_of_the_clients_zone(
    version: int, agent: Agent, store: FakeMetadata
) -> None:
    agent.roster.heard([agent_info(NODE, "a"), agent_info(8, "a"), agent_info(9, "b"), agent_info(10, "b")])
    await store.create_topic("logs", 3_000, {})
    near = await ask_metadata(agent, (entity(name="logs"),), version)
    assert {broker.node_id for broker in near.brokers} == {NODE, 8}
    (topic,) = near.topics
    assert [row.partition_index for row in topic.partitions] == list(range(3_000))
    led = Counter(row.leader_id for row in topic.partitions)
    assert set(led) == {NODE, 8}
    assert min(led.values()) > 1_300
    assert all(row.replica_nodes == row.isr_nodes == (row.leader_id,) for row in topic.partitions)
    far = await ask_metadata(agent, (entity(name="logs"),), version, zone="b")
    assert [(broker.node_id, broker.host) for broker in far.brokers] == [(9, "agent-9"), (10, "agent-10")]
    assert {row.leader_id for row in far.topics[0].partitions} == {9, 10}
    if version >= 1:
        assert (near.controller_id, far.controller_id) == (NODE, 9), "a broker of the answer"
    one = await ask_metadata(agent, (entity(name="logs"),), version, client_id="x,strategy=client")
    assert len({row.leader_id for row in one.topics[0].partitions}) == 1


async def test_a_client_is_not_left_with_one_agent_that_cannot_be_reached(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 4, {})
    with socket.create_server(("127.0.0.1", 0)) as living:
        lone = structs.replace(agent_info(9, "b"), host="127.0.0.1", port=living.getsockname()[1])
        agent.roster.heard([agent_info(NODE, "a"), lone])
        answer = await ask_metadata(agent, (entity(name="logs"),), 12, zone="b")
        assert {broker.node_id for broker in answer.brokers} == {9}, "nothing crosses zones while it lives"
    agent.neighbours = Neighbours(agent.clock)
    answer = await ask_metadata(agent, (entity(name="logs"),), 12, zone="b")
    assert {broker.node_id for broker in answer.brokers} == {9, NODE}, "whom it can ask until somebody else leads"
    assert {row.leader_id for row in answer.topics[0].partitions} == {9}


async def test_other_tasks_have_their_turns_while_all_of_a_large_cluster_is_described(
    agent: Agent, store: FakeMetadata
) -> None:
    agent.roster.heard([agent_info(NODE, "a"), *(agent_info(node, "a") for node in range(8, 38))])
    store.directory.reset(Topic(number.to_bytes(16, "big"), f"topic-{number}", 30, {}, 0) for number in range(1, 3_001))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    background = asyncio.create_task(others())
    encoded = await metadata.handle(Call(3, 13, 5, "test", "/127.0.0.1"), entity(topics=None), agent)
    background.cancel()
    assert encoded.byte_length > 90_000 * 20
    assert turns > 40, "one for every 2,048 partitions"


async def test_a_topic_named_twice_is_answered_once(agent: Agent) -> None:
    answer = await ask_metadata(agent, (wanted_topic("a"), wanted_topic("a")))
    assert len(answer.topics) == 1


# --- CreateTopics -----------------------------------------------------------------------------------------


def creation(
    name: str,
    num_partitions: int = -1,
    replication_factor: int = -1,
    assignments: Any = (),
    configs: dict[str, str | None] | None = None,
) -> SimpleNamespace:
    rows = tuple(entity(name=key, value=value) for key, value in (configs or {}).items())
    return entity(
        name=name,
        num_partitions=num_partitions,
        replication_factor=replication_factor,
        assignments=tuple(entity(partition_index=index, broker_ids=brokers) for index, brokers in assignments),
        configs=rows,
    )


async def create(agent: Agent, *topics: Any, version: int = 7, validate_only: bool = False) -> list[Any]:
    request = entity(topics=topics, timeout=timedelta(seconds=1), validate_only=validate_only)
    return list((await ask(create_topics, 19, version, request, agent)).topics)


@pytest.mark.parametrize("version", range(2, 8))
async def test_create_topics_in_every_version(version: int, agent: Agent, store: FakeMetadata) -> None:
    configs: dict[str, str | None] = {"cleanup.policy": "compact"}
    (row,) = await create(agent, creation("logs", 2, 3, configs=configs), version=version)
    assert (row.error_code, row.error_message, row.name) == (ErrorCode.none, None, "logs")
    assert store.topics["logs"].partition_count == 2
    assert store.topics["logs"].configs == configs
    if version >= 5:
        assert (row.num_partitions, row.replication_factor) == (2, 1)
        shown = {config.name: config for config in row.configs}
        assert set(shown) == set(TOPIC_CONFIGS)
        assert (shown["cleanup.policy"].value, shown["cleanup.policy"].config_source) == ("compact", 1)
        assert (shown["retention.ms"].value, shown["retention.ms"].config_source) == ("604800000", 5)
    if version >= 7:
        assert row.topic_id == uuid.UUID(bytes=store.topics["logs"].topic_id)


@pytest.mark.parametrize("replication_factor", [-1, 1, 3, 32_767])
async def test_any_positive_replication_factor_is_accepted(replication_factor: int, agent: Agent) -> None:
    (row,) = await create(agent, creation("logs", 1, replication_factor))
    assert row.error_code is ErrorCode.none


async def test_the_default_partition_count_is_the_settings(agent: Agent) -> None:
    (row,) = await create(agent, creation("logs"))
    assert row.num_partitions == 4


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (creation("a b", 1, 1), ErrorCode.invalid_topic_exception),
        (creation("t", 0, 1), ErrorCode.invalid_partitions),
        (creation("t", -2, 1), ErrorCode.invalid_partitions),
        (creation("t", 1, 0), ErrorCode.invalid_replication_factor),
        (creation("t", 1, -2), ErrorCode.invalid_replication_factor),
        (creation("t", 1, 1, configs={"no.such": "1"}), ErrorCode.invalid_config),
        (creation("t", 1, 1, configs={"retention.ms": None}), ErrorCode.invalid_config),
        (creation("t", 1, -1, [(0, (NODE,))]), ErrorCode.invalid_request),
        (creation("t", -1, 1, [(0, (NODE,))]), ErrorCode.invalid_request),
        (creation("t", assignments=[(1, (NODE,))]), ErrorCode.invalid_replica_assignment),
        (creation("t", assignments=[(0, (NODE,)), (0, (NODE,))]), ErrorCode.invalid_replica_assignment),
        (creation("t", assignments=[(0, (NODE + 1,))]), ErrorCode.invalid_replica_assignment),
        (creation("t", assignments=[(0, ())]), ErrorCode.invalid_replica_assignment),
        (creation("t", assignments=[(0, (NODE, NODE))]), ErrorCode.invalid_replica_assignment),
        (creation("exists", 1, 1), ErrorCode.topic_already_exists),
    ],
)
async def test_a_bad_creation_is_refused_alone(topic: Any, code: ErrorCode, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("exists", 1, {})
    rows = {row.name: row for row in await create(agent, topic, creation("good", 1, 1))}
    assert rows[topic.name].error_code is code
    assert rows[topic.name].error_message
    assert rows["good"].error_code is ErrorCode.none
    assert set(store.topics) == {"exists", "good"}


async def test_an_assignment_of_known_brokers_gives_the_partition_count(agent: Agent) -> None:
    (row,) = await create(agent, creation("t", assignments=[(1, (NODE,)), (0, (NODE,))]))
    assert (row.error_code, row.num_partitions) == (ErrorCode.none, 2)


async def test_validate_only_creates_nothing(agent: Agent, store: FakeMetadata) -> None:
    (row,) = await create(agent, creation("t", 1, 1), validate_only=True)
    assert (row.error_code, row.topic_id) == (ErrorCode.none, None)
    assert store.topics == {}


async def test_a_name_that_comes_twice_is_refused(agent: Agent, store: FakeMetadata) -> None:
    (row,) = await create(agent, creation("t", 1, 1), creation("t", 2, 1))
    assert row.error_code is ErrorCode.invalid_request
    assert store.topics == {}


async def test_creation_while_the_metadata_is_away_has_an_unknown_outcome(agent: Agent, store: FakeMetadata) -> None:
    store.unavailable = True
    (row,) = await create(agent, creation("t", 1, 1))
    assert row.error_code is ErrorCode.request_timed_out


# --- DeleteTopics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_delete_records_answers_each_partition(version: int, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 1, {})

    def named(name: str, *partitions: tuple[int, int]) -> Any:
        rows = tuple(entity(partition_index=index, offset=offset) for index, offset in partitions)
        return entity(name=name, partitions=rows)

    request = entity(topics=(named("logs", (0, 4), (1, -1), (0, 11), (9, 0), (8, 0), (7, 0)), named("absent", (0, 0))))
    logs, absent = (await ask(delete_records, 21, version, request, agent)).topics
    assert [(row.partition_index, row.low_watermark, row.error_code) for row in logs.partitions] == [
        (0, 4, ErrorCode.none),
        (1, 10, ErrorCode.none),
        (0, -1, ErrorCode.offset_out_of_range),
        (9, -1, ErrorCode.unknown_topic_or_partition),
        (8, -1, ErrorCode.unknown_topic_or_partition),
        (7, -1, ErrorCode.policy_violation),
    ]
    assert [row.error_code for row in absent.partitions] == [ErrorCode.unknown_topic_or_partition]
    store.unavailable = True
    logs, absent = (await ask(delete_records, 21, version, request, agent)).topics
    assert {row.error_code for row in logs.partitions} == {ErrorCode.request_timed_out}
    assert [row.error_code for row in absent.partitions] == [ErrorCode.unknown_topic_or_partition]


async def delete(agent: Agent, *names: str, version: int = 6) -> list[Any]:
    if version >= 6:
        request = entity(topics=tuple(wanted_topic(name) for name in names), timeout=timedelta(seconds=1))
    else:
        request = entity(topic_names=names, timeout=timedelta(seconds=1))
    return list((await ask(delete_topics, 20, version, request, agent)).responses)


@pytest.mark.parametrize("version", range(1, 7))
async def test_delete_topics_by_name_in_every_version(version: int, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 1, {})
    gone, unknown = await delete(agent, "logs", "absent", version=version)
    assert (gone.name, gone.error_code) == ("logs", ErrorCode.none)
    assert (unknown.name, unknown.error_code) == ("absent", ErrorCode.unknown_topic_or_partition)
    assert store.topics == {}


async def test_delete_topics_by_id(agent: Agent, store: FakeMetadata) -> None:
    topic_id = uuid.UUID(bytes=(await store.create_topic("logs", 1, {})).topic_id)
    absent = uuid.uuid4()
    request = entity(topics=(wanted_topic(None, topic_id), wanted_topic(None, absent)))
    gone, unknown = (await ask(delete_topics, 20, 6, request, agent)).responses
    assert (gone.name, gone.topic_id, gone.error_code) == ("logs", topic_id, ErrorCode.none)
    assert (unknown.topic_id, unknown.error_code) == (absent, ErrorCode.unknown_topic_id)


async def test_a_topic_named_twice_or_by_name_and_id_is_not_deleted(agent: Agent, store: FakeMetadata) -> None:
    topic_id = uuid.UUID(bytes=(await store.create_topic("logs", 1, {})).topic_id)
    for topics in (
        (wanted_topic("logs"), wanted_topic("logs")),
        (wanted_topic("logs"), wanted_topic(None, topic_id)),
        (wanted_topic("logs", topic_id),),
        (wanted_topic(None, None),),
    ):
        rows = (await ask(delete_topics, 20, 6, entity(topics=topics), agent)).responses
        assert [row.error_code for row in rows] == [ErrorCode.invalid_request]
    assert "logs" in store.topics


async def test_deleting_a_topic_that_is_gone_already_is_unknown_by_name(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 1, {})
    store.topics.clear()
    (row,) = await delete(agent, "logs")
    assert row.error_code is ErrorCode.unknown_topic_or_partition


async def test_deletion_while_the_metadata_is_away_has_an_unknown_outcome(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 1, {})
    store.unavailable = True
    (row,) = await delete(agent, "logs")
    assert row.error_code is ErrorCode.request_timed_out


async def test_configs_of_many_new_topics_are_shown_for_those_that_fit(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_limit, "ANSWER_BYTES_MAX", 5_000)
    topics = [
        entity(name=f"t{number}", num_partitions=1, replication_factor=1, assignments=(), configs=())
        for number in range(20)
    ]
    answer = await ask(create_topics, 19, 7, entity(topics=topics, validate_only=False), agent)
    assert {row.error_code for row in answer.topics} == {ErrorCode.none}
    shown = [row for row in answer.topics if row.configs]
    assert 1 <= len(shown) < 20
    left_out = [row.topic_config_error_code for row in answer.topics if row.configs is None]
    assert left_out == [ErrorCode.invalid_request] * (20 - len(shown))


# --- DescribeConfigs --------------------------------------------------------------------------------------


async def describe(agent: Agent, kind: int, name: str, keys: Any = None, version: int = 4, **fields: Any) -> Any:
    request = entity(
        resources=(entity(resource_type=kind, resource_name=name, configuration_keys=keys),),
        include_synonyms=fields.get("synonyms", False),
        include_documentation=fields.get("documentation", False),
    )
    (result,) = (await ask(describe_configs, 32, version, request, agent)).results
    return result


async def test_a_resource_named_many_times_is_described_once(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("logs", 1, {})
    logs = entity(resource_type=2, resource_name="logs", configuration_keys=None)
    gone = entity(resource_type=2, resource_name="gone", configuration_keys=None)
    request = entity(resources=(logs, gone, *[logs] * 5_000), include_synonyms=True, include_documentation=True)
    answer = await ask(describe_configs, 32, 4, request, agent)
    assert [row.resource_name for row in answer.results] == ["logs", "gone"]
    assert len(answer.results[0].configs) == len(TOPIC_CONFIGS)


async def test_resources_beyond_the_size_of_an_answer_are_refused(
    agent: Agent, store: FakeMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_limit, "ANSWER_BYTES_MAX", 30_000)
    names = [f"t{number}" for number in range(9)]
    for name in names:
        await store.create_topic(name, 1, {})
    resources = [entity(resource_type=2, resource_name=name, configuration_keys=None) for name in names]
    request = entity(resources=resources, include_synonyms=True, include_documentation=True)
    answer = await ask(describe_configs, 32, 4, request, agent)
    assert [row.resource_name for row in answer.results] == names
    shown = [row for row in answer.results if row.error_code is ErrorCode.none]
    refused = answer.results[len(shown) :]
    assert shown and all(len(row.configs) == len(TOPIC_CONFIGS) for row in shown)
    assert refused and {row.error_code for row in refused} == {ErrorCode.invalid_request}
    assert "fewer resources" in refused[0].error_message and not refused[0].configs


async def test_other_tasks_have_their_turns_while_a_large_answer_is_built(agent: Agent, store: FakeMetadata) -> None:
    for number in range(100):
        await store.create_topic(f"t{number}", 1, {})
    resources = [entity(resource_type=2, resource_name=f"t{number}", configuration_keys=None) for number in range(100)]
    request = entity(resources=resources, include_synonyms=True, include_documentation=True)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await describe_configs.handle(Call(32, 4, 5, "test", "/127.0.0.1"), request, agent)
    counting.cancel()
    assert turns >= 5


@pytest.mark.parametrize("version", range(1, 5))
async def test_topic_configs_are_shown_with_their_source_in_every_version(
    version: int, agent: Agent, store: FakeMetadata
) -> None:
    await store.create_topic("connect-offsets", 1, {"cleanup.policy": "compact"})
    result = await describe(agent, 2, "connect-offsets", version=version, synonyms=True, documentation=True)
    assert (result.error_code, result.resource_type, result.resource_name) == (ErrorCode.none, 2, "connect-offsets")
    rows = {row.name: row for row in result.configs}
    assert set(rows) == set(TOPIC_CONFIGS)
    policy, retention = rows["cleanup.policy"], rows["retention.ms"]
    assert (policy.value, policy.config_source, policy.read_only) == ("compact", 1, False)
    assert [(row.name, row.value, row.source) for row in policy.synonyms] == [
        ("cleanup.policy", "compact", 1),
        ("log.cleanup.policy", "delete", 5),
    ]
    assert (retention.value, retention.config_source) == ("604800000", 5)
    assert [(row.name, row.value, row.source) for row in retention.synonyms] == [("log.retention.ms", "604800000", 5)]
    if version >= 3:
        assert (policy.config_type, retention.config_type) == (7, 5)
        assert "In Tidelog: honoured" in retention.documentation


@pytest.mark.parametrize("keys", [None, ()])
async def test_no_keys_means_all_and_keys_filter(keys: Any, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("t", 1, {})
    assert len((await describe(agent, 2, "t", keys)).configs) == len(TOPIC_CONFIGS)
    some = await describe(agent, 2, "t", ("flush.ms", "no.such"))
    assert [(row.name, row.value, row.documentation, row.synonyms) for row in some.configs] == [
        ("flush.ms", str(LONG_MAX), None, ())
    ]


async def test_a_broker_shows_its_real_settings_read_only(agent: Agent) -> None:
    agent.settings = Settings(topics=TopicSettings(partitions=9))
    rows = {row.name: row for row in (await describe(agent, 4, str(NODE), synonyms=True)).configs}
    assert rows["auto.create.topics.enable"].value == "true"
    assert (rows["num.partitions"].value, rows["num.partitions"].config_source) == ("9", 4)
    assert (rows["socket.request.max.bytes"].value, rows["socket.request.max.bytes"].config_source) == ("104857600", 5)
    assert rows["message.max.bytes"].value == "1048588"
    assert rows["advertised.listeners"].value == "PLAINTEXT://10.0.0.1:9092"
    assert list(rows) == sorted(rows)
    assert all(row.read_only and row.synonyms for row in rows.values())
    assert (await describe(agent, 4, "")).configs == ()


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (2, "absent", ErrorCode.unknown_topic_or_partition),
        (2, "a b", ErrorCode.invalid_topic_exception),
        (4, "99", ErrorCode.invalid_request),
        (8, str(NODE), ErrorCode.invalid_request),
        (32, "group", ErrorCode.invalid_request),
    ],
)
async def test_what_cannot_be_described_says_why(kind: int, name: str, code: ErrorCode, agent: Agent) -> None:
    result = await describe(agent, kind, name)
    assert (result.error_code, result.configs) == (code, ())
    assert result.error_message


# --- DescribeCluster --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
async def test_the_cluster_is_this_agent(version: int, agent: Agent) -> None:
    answer = await ask(describe_cluster, 60, version, entity(include_cluster_authorized_operations=True), agent)
    assert (answer.error_code, answer.cluster_id, answer.controller_id) == (ErrorCode.none, "cluster-1", NODE)
    assert [(row.broker_id, row.host, row.port, row.rack) for row in answer.brokers] == [(NODE, "10.0.0.1", 9092, None)]


async def test_controllers_are_not_described(agent: Agent) -> None:
    request = entity(include_cluster_authorized_operations=False, endpoint_type=2)
    answer = await ask(describe_cluster, 60, 1, request, agent)
    assert (answer.error_code, answer.brokers) == (ErrorCode.mismatched_endpoint_type, ())


# --- InitProducerId ---------------------------------------------------------------------------------------


async def init(agent: Agent, version: int = 5, transactional_id: str | None = None, **fields: Any) -> Any:
    request = entity(transactional_id=transactional_id, transaction_timeout=timedelta(0), **fields)
    return await ask(init_producer_id, 22, version, request, agent)


@pytest.mark.parametrize("version", range(6))
async def test_every_producer_gets_an_id_of_its_own(version: int, agent: Agent) -> None:
    first, second = await init(agent, version), await init(agent, version)
    assert first.error_code is second.error_code is ErrorCode.none
    assert first.producer_id != second.producer_id
    assert first.producer_epoch == second.producer_epoch == 0


async def test_a_known_id_gets_its_next_epoch_and_an_unknown_one_a_new_id(agent: Agent) -> None:
    first = await init(agent)
    bumped = await init(agent, producer_id=first.producer_id, producer_epoch=0)
    assert (bumped.producer_id, bumped.producer_epoch) == (first.producer_id, 1)
    stale = await init(agent, producer_id=first.producer_id, producer_epoch=0)
    assert (stale.error_code, stale.producer_epoch) == (ErrorCode.none, 0)
    assert stale.producer_id != first.producer_id


@pytest.mark.parametrize(("producer_id", "producer_epoch"), [(5, -1), (-1, 5), (-2, -2)])
async def test_half_an_identity_is_an_invalid_request(producer_id: int, producer_epoch: int, agent: Agent) -> None:
    answer = await init(agent, producer_id=producer_id, producer_epoch=producer_epoch)
    assert (answer.error_code, answer.producer_id) == (ErrorCode.invalid_request, -1)


@pytest.mark.parametrize("version", range(6))
async def test_transactions_are_refused_for_good(version: int, agent: Agent) -> None:
    answer = await init(agent, version, "billing")
    assert answer.error_code is ErrorCode.transactional_id_authorization_failed
    assert not answer.error_code.retriable


async def test_an_id_while_the_metadata_is_away_is_asked_for_again(agent: Agent, store: FakeMetadata) -> None:
    store.unavailable = True
    answer = await init(agent)
    assert answer.error_code is ErrorCode.coordinator_load_in_progress
    assert answer.error_code.retriable


# --- IncrementalAlterConfigs ------------------------------------------------------------------------------


def operation(name: str, kind: int, value: str | None = None) -> SimpleNamespace:
    return entity(name=name, config_operation=kind, value=value)


async def alter(
    agent: Agent, *operations: Any, resource: tuple[int, str] = (2, "t"), times: int = 1, **fields: Any
) -> Any:
    rows = tuple(entity(resource_type=resource[0], resource_name=resource[1], configs=operations) for _ in range(times))
    request = entity(resources=rows, validate_only=fields.get("validate_only", False))
    return (await ask(incremental_alter_configs, 44, fields.get("version", 1), request, agent)).responses[0]


@pytest.mark.parametrize("version", [0, 1])
async def test_configs_are_set_and_taken_back(version: int, agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("t", 1, {"retention.ms": "5"})
    row = await alter(agent, operation("retention.ms", 1), operation("max.message.bytes", 0, "100"), version=version)
    assert (row.error_code, row.resource_type, row.resource_name) == (ErrorCode.none, 2, "t")
    assert store.topics["t"].configs == {"max.message.bytes": "100"}


async def test_lists_are_appended_to_and_subtracted_from(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("t", 1, {})
    await alter(agent, operation("cleanup.policy", 2, "compact"))
    assert store.topics["t"].configs == {"cleanup.policy": "delete,compact"}
    await alter(agent, operation("cleanup.policy", 2, "compact"))
    await alter(agent, operation("cleanup.policy", 3, "delete"))
    assert store.topics["t"].configs == {"cleanup.policy": "compact"}


async def test_lists_are_edited_as_they_are_and_not_as_this_agent_knows_them(agent: Agent, store: FakeMetadata) -> None:
    name = "follower.replication.throttled.replicas"
    await store.create_topic("t", 1, {})
    store.lagging = True
    for replica in ("0:1", "1:2"):
        assert (await alter(agent, operation(name, 2, replica))).error_code is ErrorCode.none
    assert store.topics["t"].configs == {name: "0:1,1:2"}


@pytest.mark.parametrize(
    ("operations", "resource", "code"),
    [
        ([operation("no.such", 0, "1")], (2, "t"), ErrorCode.invalid_config),
        ([operation("no.such", 1)], (2, "t"), ErrorCode.invalid_config),
        ([operation("retention.ms", 0, "soon")], (2, "t"), ErrorCode.invalid_config),
        ([operation("retention.ms", 2, "1")], (2, "t"), ErrorCode.invalid_config),
        ([operation("cleanup.policy", 3, "delete")], (2, "t"), ErrorCode.invalid_config),
        ([operation("retention.ms", 0)], (2, "t"), ErrorCode.invalid_request),
        ([operation("retention.ms", 9, "1")], (2, "t"), ErrorCode.invalid_request),
        ([operation("retention.ms", 0, "1"), operation("retention.ms", 1)], (2, "t"), ErrorCode.invalid_request),
        ([operation("retention.ms", 0, "1")], (2, "absent"), ErrorCode.unknown_topic_or_partition),
        ([operation("num.partitions", 0, "1")], (4, str(NODE)), ErrorCode.invalid_request),
        ([operation("x", 0, "1")], (16, "x"), ErrorCode.invalid_request),
    ],
)
async def test_a_bad_alteration_changes_nothing(
    operations: list[Any], resource: tuple[int, str], code: ErrorCode, agent: Agent, store: FakeMetadata
) -> None:
    await store.create_topic("t", 1, {})
    row = await alter(agent, *operations, resource=resource)
    assert row.error_code is code
    assert row.error_message
    assert store.alterations == []


async def test_alteration_can_be_only_validated_and_a_resource_comes_once(agent: Agent, store: FakeMetadata) -> None:
    await store.create_topic("t", 1, {})
    assert (await alter(agent, operation("flush.ms", 0, "1"), validate_only=True)).error_code is ErrorCode.none
    assert (await alter(agent, operation("flush.ms", 0, "1"), times=2)).error_code is ErrorCode.invalid_request
    assert store.alterations == []
