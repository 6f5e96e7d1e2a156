"""aiokafka 0.14: produce and consume, keyed and not, all codecs, idempotent, groups."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete

from tests.support.raw_kafka import CODECS, RawKafka, batches

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


async def _create(bootstrap: str, topic: str, partitions: int = 3) -> None:
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic, partitions)


async def _read(bootstrap: str, topic: str, count: int, **options: object) -> list[tuple[int, int, object, object]]:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None, **options
    )
    await consumer.start()
    found: list[tuple[int, int, object, object]] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count}"
        for messages in (await consumer.getmany(timeout_ms=200)).values():
            found += [(message.partition, message.offset, message.key, message.value) for message in messages]
    await consumer.stop()
    return found


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
async def test_round_trip(bootstrap: str, unique: Unique, codec: str, keyed: bool) -> None:
    topic = unique("aiokafka")
    await _create(bootstrap, topic)
    sent = [(b"key-%d" % (number % 11) if keyed else None, b"payload %d " % number * 10) for number in range(300)]
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, compression_type=None if codec == "none" else codec, linger_ms=5
    )
    await producer.start()
    waiting = [await producer.send(topic, value, key=key) for key, value in sent]
    delivered = {((await one).partition, (await one).offset) for one in waiting}
    await producer.stop()
    found = await _read(bootstrap, topic, 300)
    assert {(partition, offset) for partition, offset, _, _ in found} == delivered
    assert sorted((key or b"", value) for _, _, key, value in found) == sorted(
        (key or b"", value) for key, value in sent
    )
    with RawKafka(bootstrap) as connection:
        stored = [batch for number in range(3) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}


async def test_an_idempotent_producer(bootstrap: str, unique: Unique) -> None:
    topic = unique("aiokafka-idempotent")
    await _create(bootstrap, topic, partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, linger_ms=0, max_batch_size=200)
    await producer.start()
    waiting = [await producer.send(topic, b"%d" % number) for number in range(500)]
    assert [(await one).offset for one in waiting] == list(range(500))
    await producer.stop()
    found = await _read(bootstrap, topic, 500)
    assert [value for _, _, _, value in found] == [b"%d" % number for number in range(500)]


async def test_a_group_commits_and_resumes(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("aiokafka-group"), unique("group")
    await _create(bootstrap, topic, partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for number in range(10):
        await producer.send_and_wait(topic, b"%d" % number)
    await producer.stop()
    options = {"bootstrap_servers": bootstrap, "group_id": group, "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(topic, enable_auto_commit=False, **options)
    await consumer.start()
    for _ in range(4):
        await consumer.getone()
    partition = TopicPartition(topic, 0)
    await consumer.commit({partition: 4})
    assert await consumer.committed(partition) == 4
    assert await consumer.end_offsets([partition]) == {partition: 10}
    assert await consumer.beginning_offsets([partition]) == {partition: 0}
    await consumer.stop()
    resumed = AIOKafkaConsumer(topic, **options)
    await resumed.start()
    assert [(await resumed.getone()).value for _ in range(6)] == [b"%d" % number for number in range(4, 10)]
    await resumed.stop()


async def test_offsets_by_time(bootstrap: str, unique: Unique) -> None:
    topic = unique("aiokafka-times")
    await _create(bootstrap, topic, partitions=1)
    start = int(time.time() * 1000) - 60_000
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for number in range(5):
        await producer.send_and_wait(topic, b"x", timestamp_ms=start + number * 1000)
    await producer.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    partition = TopicPartition(topic, 0)
    answer = await consumer.offsets_for_times({partition: start + 2_500})
    assert (answer[partition].offset, answer[partition].timestamp) == (3, start + 3_000)
    assert (await consumer.offsets_for_times({partition: start + 9_000}))[partition] is None
    await consumer.stop()


async def test_admin(bootstrap: str, unique: Unique) -> None:
    topic = unique("aiokafka-admin")
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1)])
    assert topic in await admin.list_topics()
    (described,) = await admin.describe_topics([topic])
    assert len(described["partitions"]) == 2
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await producer.start()
    for number in range(4):
        await producer.send_and_wait(topic, b"%d" % number, partition=1)
    await producer.stop()
    partition = TopicPartition(topic, 1)
    assert await admin.delete_records({partition: RecordsToDelete(3)}) == {partition: 3}
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([partition])
    message = await consumer.getone()
    assert (message.offset, message.value) == (3, b"3")
    assert await consumer.beginning_offsets([partition]) == {partition: 3}
    await consumer.stop()
    await admin.delete_topics([topic])
    await admin.close()
