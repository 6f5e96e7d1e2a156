"""Administration through librdkafka: topics, configs, groups and their offsets, the cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.conftest import on_reference
from tests.support.librdkafka import create_topic, produce, read
from tests.support.members import wait_until

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


@pytest.fixture
def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def _error(future: object) -> str:
    with pytest.raises(KafkaException) as raised:
        future.result(15)  # type: ignore[attr-defined]
    return str(raised.value.args[0].name())


def test_create_list_describe_and_delete_topics(admin: AdminClient, unique: Unique) -> None:
    names = [unique("admin-a"), unique("admin-b")]
    for name, future in admin.create_topics([NewTopic(name, 5, 1) for name in names]).items():
        assert future.result(15) is None, name
    listed = admin.list_topics(timeout=10).topics
    assert all(len(listed[name].partitions) == 5 for name in names)
    (described, _) = (future.result(15) for future in admin.describe_topics(TopicCollection(names)).values())
    assert described.name == names[0]
    assert described.topic_id is not None
    assert [partition.id for partition in described.partitions] == [0, 1, 2, 3, 4]
    assert all(partition.leader is not None for partition in described.partitions)
    for future in admin.delete_topics(names).values():
        assert future.result(15) is None
    wait_until(
        lambda: not set(names) & set(admin.list_topics(timeout=10).topics), 10, lambda: "the topics are still listed"
    )


def test_what_cannot_be_created_or_deleted(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    name = unique("admin-twice")
    create_topic(bootstrap, name)

    def create(*arguments: object, **options: object) -> str:
        topic = NewTopic(*arguments, **options)
        return _error(admin.create_topics([topic])[topic.topic])

    assert create(name, 1, 1) == "TOPIC_ALREADY_EXISTS"
    assert create(unique("admin"), 0, 1) == "INVALID_PARTITIONS"
    if on_reference():
        assert create(unique("admin"), 1, 5) == "INVALID_REPLICATION_FACTOR"
    assert create("not/legal", 1, 1) == "TOPIC_EXCEPTION"
    assert create(unique("admin"), 1, 1, config={"no.such.config": "1"}) == "INVALID_CONFIG"
    assert create(unique("admin"), 1, 1, config={"retention.ms": "soon"}) == "INVALID_CONFIG"
    missing = unique("missing")
    assert _error(admin.delete_topics([missing])[missing]) == "UNKNOWN_TOPIC_OR_PART"


def test_any_replication_factor_will_do(admin: AdminClient, unique: Unique) -> None:
    if on_reference():
        pytest.skip("Apache Kafka wants as many brokers as replicas")
    name = unique("admin-replicas")
    assert admin.create_topics([NewTopic(name, 1, 3)])[name].result(15) is None


def test_validate_only_creates_nothing(admin: AdminClient, unique: Unique) -> None:
    name = unique("admin-dry")
    assert admin.create_topics([NewTopic(name, 1, 1)], validate_only=True)[name].result(15) is None
    assert name not in admin.list_topics(timeout=10).topics


def _configs(admin: AdminClient, topic: str) -> dict[str, ConfigEntry]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    return dict(admin.describe_configs([resource])[resource].result(15))


def test_describe_configs_tells_kafkas_names_defaults_and_sources(
    admin: AdminClient, bootstrap: str, unique: Unique
) -> None:
    name = unique("admin-configs")
    create_topic(bootstrap, name, configs={"retention.ms": "3600000", "cleanup.policy": "compact"})
    found = _configs(admin, name)
    expected_defaults = {
        "compression.type": "producer",
        "max.message.bytes": "1048588",
        "message.timestamp.type": "CreateTime",
        "retention.bytes": "-1",
        "message.timestamp.after.max.ms": "3600000",
    }
    for config, value in expected_defaults.items():
        assert found[config].value == value, config
        assert found[config].source == ConfigSource.DEFAULT_CONFIG.value, config
        assert found[config].is_default, config
    for config, value in {"retention.ms": "3600000", "cleanup.policy": "compact"}.items():
        assert found[config].value == value
        assert found[config].source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        assert not found[config].is_default
    resource = ConfigResource(ResourceType.TOPIC, unique("missing"))
    assert _error(admin.describe_configs([resource])[resource]) == "UNKNOWN_TOPIC_OR_PART"


def test_describe_broker_configs(admin: AdminClient) -> None:
    broker = next(iter(admin.list_topics(timeout=10).brokers))
    resource = ConfigResource(ResourceType.BROKER, str(broker))
    found = admin.describe_configs([resource])[resource].result(15)
    assert found["auto.create.topics.enable"].value == "true"
    assert found["num.partitions"].value == "4"


def test_incremental_alter_configs(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    name = unique("admin-alter")
    create_topic(bootstrap, name, configs={"retention.ms": "3600000"})

    def alter(config: str, operation: AlterConfigOpType, value: str | None = None) -> object:
        entry = ConfigEntry(config, value, incremental_operation=operation)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
        return admin.incremental_alter_configs([resource])[resource]

    def value(config: str) -> str:
        return str(_configs(admin, name)[config].value)

    def settles(config: str, wanted: str) -> None:
        wait_until(lambda: value(config) == wanted, 5, lambda: f"{config} is {value(config)}, not {wanted}")

    alter("max.message.bytes", AlterConfigOpType.SET, "5000").result(15)  # type: ignore[attr-defined]
    settles("max.message.bytes", "5000")
    assert value("retention.ms") == "3600000", "what is not named stays"
    alter("retention.ms", AlterConfigOpType.DELETE).result(15)  # type: ignore[attr-defined]
    settles("retention.ms", "604800000")
    alter("cleanup.policy", AlterConfigOpType.APPEND, "compact").result(15)  # type: ignore[attr-defined]
    settles("cleanup.policy", "delete,compact")
    alter("cleanup.policy", AlterConfigOpType.SUBTRACT, "delete").result(15)  # type: ignore[attr-defined]
    settles("cleanup.policy", "compact")
    assert _error(alter("no.such.config", AlterConfigOpType.SET, "1")) == "INVALID_CONFIG"
    assert _error(alter("retention.ms", AlterConfigOpType.SET, "soon")) == "INVALID_CONFIG"


def test_list_and_describe_groups(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic, group = unique("admin-topic"), unique("group")
    create_topic(bootstrap, topic, partitions=2)
    produce(bootstrap, topic, [{"value": b"x", "partition": number % 2} for number in range(10)])
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "client.id": "the-client",
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    read(consumer, 10)
    consumer.commit(asynchronous=False)

    def listed() -> dict[str, ConsumerGroupState]:
        return {one.group_id: one.state for one in admin.list_consumer_groups().result(15).valid}

    assert listed()[group] == ConsumerGroupState.STABLE
    described = admin.describe_consumer_groups([group])[group].result(15)
    assert described.state == ConsumerGroupState.STABLE
    assert described.partition_assignor == "range"
    assert described.coordinator.port == int(bootstrap.rsplit(":", 1)[1])
    (member,) = described.members
    assert member.client_id == "the-client"
    assert "127.0.0.1" in member.host
    assert sorted(partition.partition for partition in member.assignment.topic_partitions) == [0, 1]
    consumer.close()

    assert listed()[group] == ConsumerGroupState.EMPTY
    assert admin.describe_consumer_groups([group])[group].result(15).members == []
    (answer,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
    offsets = {partition.partition: partition.offset for partition in answer.result(15).topic_partitions}
    assert offsets == {0: 5, 1: 5}
    empty = admin.list_consumer_groups(states={ConsumerGroupState.EMPTY}).result(15).valid
    stable = admin.list_consumer_groups(states={ConsumerGroupState.STABLE}).result(15).valid
    assert group in {one.group_id for one in empty} - {one.group_id for one in stable}


def test_reset_the_offsets_of_an_empty_group(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic, group = unique("admin-reset"), unique("group")
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"%d" % number} for number in range(10)])
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 4)])
    (altered,) = admin.alter_consumer_group_offsets([wanted]).values()
    altered.result(15)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    consumer.subscribe([topic])
    assert read(consumer, 1)[0].value() == b"4"
    consumer.close()


def test_list_offsets(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic = unique("admin-offsets")
    create_topic(bootstrap, topic)
    for number in range(5):
        produce(bootstrap, topic, [{"value": b"x", "timestamp": 1_000_000 + number * 1_000}])

    def offset(spec: OffsetSpec) -> tuple[int, int]:
        (answer,) = admin.list_offsets({TopicPartition(topic, 0): spec}).values()
        return answer.result(15).offset, answer.result(15).timestamp

    assert offset(OffsetSpec.earliest()) == (0, -1)
    assert offset(OffsetSpec.latest()) == (5, -1)
    assert offset(OffsetSpec.max_timestamp()) == (4, 1_004_000)
    assert offset(OffsetSpec.for_timestamp(1_001_500)) == (2, 1_002_000)
    assert offset(OffsetSpec.for_timestamp(9_000_000)) == (-1, -1)


def test_describe_the_cluster(admin: AdminClient, bootstrap: str) -> None:
    cluster = admin.describe_cluster().result(15)
    assert cluster.cluster_id
    assert cluster.controller.id in {node.id for node in cluster.nodes}
    assert f"{cluster.nodes[0].host}:{cluster.nodes[0].port}" == bootstrap
