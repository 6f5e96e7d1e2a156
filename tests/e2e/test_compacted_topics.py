"""cleanup.policy=compact as clients see it: the last value of each key at its offset, and nothing else in the end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonPartition

from tests.support.cluster import TidelogProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SETTINGS = {
    "INGEST__LINGER_MS": "20",
    "COMPACTION__MIN_AGE_MS": "300",
    "COMPACTION__CLEAN_INTERVAL_MS": "300",
    "LIFECYCLE__DELETION_GRACE_MS": "1000",
    "JOBS__POLL_MS": "100",
}
CONFIGS = {"cleanup.policy": "compact", "delete.retention.ms": "1000", "min.cleanable.dirty.ratio": "0.1"}
TOPIC = "keyed"
Read = list[tuple[int, bytes | None, bytes | None]]


def confluent_read(bootstrap: str) -> Read:
    settings = {"bootstrap.servers": bootstrap, "group.id": "g", "enable.auto.commit": False}
    consumer = Consumer(settings | {"enable.partition.eof": True})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    found: Read = []
    try:
        while True:
            message = consumer.poll(10)
            assert message is not None, "it does not reach the end"
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                return found
            found.append((message.offset() or 0, message.key(), message.value()))  # type: ignore[arg-type]
    finally:
        consumer.close()


def kafka_python_read(bootstrap: str, end: int) -> Read:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, consumer_timeout_ms=5_000)
    partition = PythonPartition(TOPIC, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    found: Read = []
    while consumer.position(partition) < end:
        for messages in consumer.poll(timeout_ms=1_000).values():
            found += [(each.offset, each.key, each.value) for each in messages]
    consumer.close()
    return found


def aiokafka_read(bootstrap: str, end: int) -> Read:
    async def read() -> Read:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
        await consumer.start()
        partition = AioPartition(TOPIC, 0)
        consumer.assign([partition])
        consumer.seek(partition, 0)
        found: Read = []
        while not found or found[-1][0] < end - 1:
            for messages in (await consumer.getmany(timeout_ms=1_000)).values():
                found += [(each.offset, each.key, each.value) for each in messages]
        await consumer.stop()
        return found

    return asyncio.run(asyncio.wait_for(read(), 30))


def test_the_last_value_of_each_key_is_what_is_left(tidelog: Callable[..., TidelogProcess], rng: random.Random) -> None:
    server = tidelog(settings=SETTINGS)
    admin = AdminClient({"bootstrap.servers": server.bootstrap})
    admin.create_topics([NewTopic(TOPIC, 1, 1, config=CONFIGS)])[TOPIC].result()
    producer = Producer({"bootstrap.servers": server.bootstrap, "linger.ms": 5, "compression.type": "lz4"})
    sent: dict[int, tuple[bytes, bytes | None]] = {}

    def produce(key: bytes, value: bytes | None) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            sent[message.offset() or 0] = key, value

        producer.produce(TOPIC, key=key, value=value, on_delivery=delivered)

    for turn in range(20):
        for number in range(50):
            value = None if rng.random() < 0.1 else b"%d-%d" % (turn, number)
            produce(b"key-%d" % rng.randrange(40), value)
        producer.flush()
        time.sleep(0.05)

    def expected(tombstones: bool) -> Read:
        last = {key: offset for offset, (key, _) in sorted(sent.items())}
        return sorted((at, key, sent[at][1]) for key, at in last.items() if tombstones or sent[at][1] is not None)

    until = time.monotonic() + 60
    while confluent_read(server.bootstrap) != expected(tombstones=False):
        assert time.monotonic() < until, f"{len(confluent_read(server.bootstrap))} are left\n{server.log_tail()}"
        found = confluent_read(server.bootstrap)
        assert all(sent[offset] == (key, value) for offset, key, value in found), "what is read at an offset stays"
        assert {key: value for _, key, value in found if value is not None}.keys() >= {
            key for _, key, _ in expected(tombstones=False)
        }
        produce(b"other", b"x" * 2_000)  # a log is cleaned when there is something new in it
        producer.flush()
        time.sleep(1)
    end = max(sent) + 1
    assert kafka_python_read(server.bootstrap, end) == expected(tombstones=False)
    assert aiokafka_read(server.bootstrap, end) == expected(tombstones=False)
    produce(b"key-1", b"after it was compacted")
    producer.flush()
    assert confluent_read(server.bootstrap)[-1] == (end, b"key-1", b"after it was compacted")
