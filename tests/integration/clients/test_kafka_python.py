"""kafka-python 3.0: produce and consume, keyed and not, all codecs, idempotent, groups, admin."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from tests.support.raw_kafka import CODECS, RawKafka, batches

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


def _create(bootstrap: str, topic: str, partitions: int = 3) -> None:
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic, partitions)


def _read(consumer: Any, count: int) -> list[Any]:
    found: list[Any] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count}"
        for messages in consumer.poll(timeout_ms=200, max_records=count - len(found)).values():
            found += messages
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
def test_round_trip(bootstrap: str, unique: Unique, codec: str, keyed: bool) -> None:
    topic = unique("kafka-python")
    _create(bootstrap, topic)
    sent = [(b"key-%d" % (number % 11) if keyed else None, b"payload %d " % number * 10) for number in range(300)]
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, compression_type=None if codec == "none" else codec, linger_ms=5
    )
    waiting = [producer.send(topic, value, key=key) for key, value in sent]
    producer.flush(20)
    delivered = {(one.get(20).partition, one.get(20).offset) for one in waiting}
    producer.close()
    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    found = _read(consumer, 300)
    consumer.close()
    assert {(message.partition, message.offset) for message in found} == delivered
    assert sorted((message.key or b"", message.value) for message in found) == sorted(
        (key or b"", value) for key, value in sent
    )
    with RawKafka(bootstrap) as connection:
        stored = [batch for number in range(3) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}


def test_an_idempotent_producer(bootstrap: str, unique: Unique) -> None:
    topic = unique("kafka-python-idempotent")
    _create(bootstrap, topic, partitions=1)
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, linger_ms=0, batch_size=200, acks="all"
    )
    waiting = [producer.send(topic, b"%d" % number) for number in range(500)]
    assert [one.get(20).offset for one in waiting] == list(range(500))
    producer.close()
    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    assert [message.value for message in _read(consumer, 500)] == [b"%d" % number for number in range(500)]
    consumer.close()


def test_a_group_commits_and_resumes(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("kafka-python-group"), unique("group")
    _create(bootstrap, topic, partitions=1)
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in range(10):
        producer.send(topic, b"%d" % number).get(20)
    producer.close()
    options = {"bootstrap_servers": bootstrap, "group_id": group, "auto_offset_reset": "earliest"}
    consumer = KafkaConsumer(topic, enable_auto_commit=False, **options)
    _read(consumer, 4)
    consumer.commit()
    partition = TopicPartition(topic, 0)
    assert consumer.committed(partition) == 4
    assert consumer.end_offsets([partition]) == {partition: 10}
    assert consumer.beginning_offsets([partition]) == {partition: 0}
    consumer.close()
    resumed = KafkaConsumer(topic, **options)
    assert [message.value for message in _read(resumed, 6)] == [b"%d" % number for number in range(4, 10)]
    resumed.close()


def test_offsets_by_time(bootstrap: str, unique: Unique) -> None:
    topic = unique("kafka-python-times")
    _create(bootstrap, topic, partitions=1)
    start = int(time.time() * 1000) - 60_000
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in range(5):
        producer.send(topic, b"x", timestamp_ms=start + number * 1000).get(20)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    partition = TopicPartition(topic, 0)
    answer = consumer.offsets_for_times({partition: start + 2_500})[partition]
    assert (answer.offset, answer.timestamp) == (3, start + 3_000)
    consumer.close()


def test_admin(bootstrap: str, unique: Unique) -> None:
    topic = unique("kafka-python-admin")
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    assert topic in admin.list_topics()
    (described,) = admin.describe_topics([topic])
    assert len(described["partitions"]) == 2
    admin.delete_topics([topic])
    assert topic not in admin.list_topics()
    admin.close()
