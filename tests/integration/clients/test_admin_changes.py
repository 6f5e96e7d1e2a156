"""Tools that change what is there: topics grow, groups and their offsets go, configs are replaced; and who looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin import NewPartitions as AioNewPartitions
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ConfigSource, NewPartitions, ResourceType
from kafka import TopicPartition as PythonTopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import GroupSubscribedToTopicError, NoError

from tests.conftest import on_reference
from tests.support.librdkafka import create_topic, produce, read
from tests.support.members import wait_until

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]
CURIOUS = {"topic.metadata.refresh.interval.ms": 200, "log_level": 0}
"""A client that hears of new partitions soon: most look every five minutes."""


@pytest.fixture
def admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def _error(future: object) -> tuple[str, str]:
    with pytest.raises(KafkaException) as raised:
        future.result(15)  # type: ignore[attr-defined]
    return raised.value.args[0].name(), raised.value.args[0].str()


def _member(bootstrap: str, group: str, topic: str) -> Consumer:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", **CURIOUS})
    consumer.subscribe([topic])
    return consumer


def test_a_topic_grows_under_a_producer_and_a_consumer(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic = unique("grows")
    create_topic(bootstrap, topic)
    consumer = _member(bootstrap, unique("group"), topic)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "enable.idempotence": True, **CURIOUS})
    producer.produce(topic, b"before")
    assert producer.flush(10) == 0
    assert read(consumer, 1)[0].value() == b"before"

    assert admin.create_partitions([NewPartitions(topic, 3)], validate_only=True)[topic].result(15) is None
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 1
    assert admin.create_partitions([NewPartitions(topic, 3)])[topic].result(15) is None
    wait_until(lambda: len(producer.list_topics(topic, 10).topics[topic].partitions) == 3, 10, lambda: "no growth")
    for partition in range(3):
        producer.produce(topic, b"after", partition=partition)
    assert producer.flush(10) == 0
    found = read(consumer, 3)
    assert sorted((message.partition(), message.offset()) for message in found) == [(0, 1), (1, 0), (2, 0)]
    consumer.close()

    for count, said in ((3, "already has 3 partition"), (2, "would not be an increase")):
        code, message = _error(admin.create_partitions([NewPartitions(topic, count)])[topic])
        assert code == "INVALID_PARTITIONS"
        assert said in message
    broker = next(iter(admin.list_topics(timeout=10).brokers))
    for assignment in ([[broker]], [[broker], [9_999]]):
        wanted = NewPartitions(topic, 5, replica_assignment=assignment)
        with pytest.raises(KafkaException) as raised:
            admin.create_partitions([wanted])[topic].result(15)
        assert raised.value.args[0].name() in ("INVALID_REPLICA_ASSIGNMENT", "_INVALID_ARG")
    missing = unique("missing")
    assert _error(admin.create_partitions([NewPartitions(missing, 5)])[missing])[0] == "UNKNOWN_TOPIC_OR_PART"


async def test_aiokafka_grows_a_topic_and_follows(bootstrap: str, unique: Unique) -> None:
    topic = unique("aio-grows")
    create_topic(bootstrap, topic)
    soon = {"bootstrap_servers": bootstrap, "metadata_max_age_ms": 200}
    consumer = AIOKafkaConsumer(topic, group_id=unique("group"), auto_offset_reset="earliest", **soon)
    producer = AIOKafkaProducer(**soon)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    for each in (consumer, producer, admin):
        await each.start()
    try:
        await producer.send_and_wait(topic, b"before")
        assert (await consumer.getone()).value == b"before"
        await admin.create_partitions({topic: AioNewPartitions(2)})
        deadline = time.monotonic() + 15
        while await producer.partitions_for(topic) != {0, 1}:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        sent = [await producer.send_and_wait(topic, b"after", partition=partition) for partition in range(2)]
        found = [await consumer.getone() for _ in sent]
        assert sorted((one.partition, one.offset) for one in found) == [(0, 1), (1, 0)]
    finally:
        for each in (consumer, producer, admin):
            await (each.close() if each is admin else each.stop())


def test_groups_are_deleted_when_they_are_empty(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic, group = unique("deleted"), unique("group")
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"x"}])
    consumer = _member(bootstrap, group, topic)
    read(consumer, 1)
    consumer.commit(asynchronous=False)
    assert _error(admin.delete_consumer_groups([group])[group])[0] == "NON_EMPTY_GROUP"
    consumer.close()
    assert admin.delete_consumer_groups([group])[group].result(15) is None
    assert group not in {one.group_id for one in admin.list_consumer_groups().result(15).valid}
    assert _error(admin.delete_consumer_groups([group])[group])[0] == "GROUP_ID_NOT_FOUND"
    again = _member(bootstrap, group, topic)
    assert read(again, 1)[0].offset() == 0, "it begins anew"
    again.close()


def test_offsets_are_deleted_of_topics_that_nobody_reads(bootstrap: str, unique: Unique) -> None:
    left, reads, group = unique("left"), unique("reads"), unique("group")
    for topic in (left, reads):
        create_topic(bootstrap, topic)
        produce(bootstrap, topic, [{"value": b"x"}])
    consumer = _member(bootstrap, group, reads)
    read(consumer, 1)
    consumer.commit(offsets=[TopicPartition(topic, 0, 1) for topic in (left, reads)], asynchronous=False)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    both = [PythonTopicPartition(topic, 0) for topic in (left, reads)]
    assert admin.delete_group_offsets(group, both) == {both[0]: NoError, both[1]: GroupSubscribedToTopicError}
    consumer.close()
    assert admin.delete_group_offsets(group, both[1:]) == {both[1]: NoError}
    admin.close()


def test_alter_configs_replaces_what_was_set(admin: AdminClient, bootstrap: str, unique: Unique) -> None:
    topic = unique("replaced")
    create_topic(bootstrap, topic, configs={"retention.ms": "3600000", "flush.ms": "1000"})
    resource = ConfigResource(ResourceType.TOPIC, topic, set_config={"flush.ms": "2000", "max.message.bytes": "5000"})
    assert admin.alter_configs([resource])[resource].result(15) is None

    def set_configs() -> dict[str, str]:
        wanted = ConfigResource(ResourceType.TOPIC, topic)
        found = admin.describe_configs([wanted])[wanted].result(15)
        dynamic = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        return {name: entry.value for name, entry in found.items() if entry.source == dynamic}

    wanted = {"flush.ms": "2000", "max.message.bytes": "5000"}
    wait_until(lambda: set_configs() == wanted, 5, lambda: f"{set_configs()}")
    wrong = ConfigResource(ResourceType.TOPIC, topic, set_config={"flush.ms": "soon"})
    assert _error(admin.alter_configs([wrong])[wrong])[0] == "INVALID_CONFIG"
    assert set_configs() == wanted


def test_sizes_producers_and_pages_of_partitions(bootstrap: str, unique: Unique) -> None:
    topic = unique("looked-at")
    create_topic(bootstrap, topic, partitions=3)
    produce(bootstrap, topic, [{"value": b"x" * 1000, "partition": 1}] * 20, enable_idempotence=True)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    described = [
        row
        for broker in admin.describe_log_dirs([topic])
        for log_dir in broker["log_dirs"]
        for row in log_dir["topics"]
        if row["name"] == topic
    ]
    sizes = {row["partition_index"]: row["partition_size"] for one in described for row in one["partitions"]}
    assert {0: 0, 2: 0}.items() <= sizes.items()
    assert 20_000 < sizes[1] < 25_000, "what was sent, uncompressed"
    partition = PythonTopicPartition(topic, 1)
    (producer,) = admin.describe_producers([partition])[partition].active_producers
    assert (producer.producer_epoch, producer.last_sequence) == (0, 19)
    first = admin.describe_topic_partitions([topic], response_partition_limit=2)
    second = admin.describe_topic_partitions([topic], cursor=first["next_cursor"])
    numbers = [[row["partition_index"] for row in page["topics"][0]["partitions"]] for page in (first, second)]
    assert numbers == [[0, 1], [2]]
    assert second["next_cursor"] is None
    admin.close()


def test_the_log_dir_is_the_object_store(bootstrap: str) -> None:
    if on_reference():
        pytest.skip("Apache Kafka has folders")
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    (broker,) = admin.describe_log_dirs()
    (log_dir,) = broker["log_dirs"]
    assert log_dir["log_dir"].endswith("/objects") or "://" in log_dir["log_dir"]
    assert "?" not in log_dir["log_dir"]
    admin.close()
