"""confluent-kafka (librdkafka 2.16): produce and consume, keyed and not, all codecs, idempotent, offsets and groups."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.conftest import on_reference
from tests.support.librdkafka import consume, create_topic, produce, read
from tests.support.raw_kafka import CODECS, RawKafka, batches

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "unkeyed"])
def test_round_trip(bootstrap: str, unique: Unique, codec: str, keyed: bool) -> None:
    topic = unique("confluent")
    create_topic(bootstrap, topic, partitions=3)
    sent = [
        {"value": b"payload %d " % number * 10, "key": b"key-%d" % (number % 17) if keyed else None}
        for number in range(500)
    ]
    delivered = produce(bootstrap, topic, sent, compression_type=codec)
    assert {(message.partition(), message.offset()) for message in delivered} == {
        (message.partition(), message.offset()) for message in consume(bootstrap, topic, 500)
    }
    found = consume(bootstrap, topic, 500)
    assert sorted((message.key(), message.value()) for message in found) == sorted(
        (record["key"], record["value"]) for record in sent
    )
    if keyed:
        for key in {record["key"] for record in sent}:
            assert len({message.partition() for message in found if message.key() == key}) == 1
            assert [message.value() for message in found if message.key() == key] == [
                record["value"] for record in sent if record["key"] == key
            ], "in order within a key"
    with RawKafka(bootstrap) as connection:
        stored = [batch for number in range(3) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}, "as the producer compressed it"


def test_headers_timestamps_null_keys_and_null_values(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-shapes")
    create_topic(bootstrap, topic)
    stamp = int(time.time() * 1000) - 5_000
    produce(
        bootstrap,
        topic,
        [
            {"value": b"v", "key": b"k", "headers": [("a", b"1"), ("a", b"2"), ("empty", b""), ("null", None)]},
            {"value": None, "key": b"tombstone"},
            {"value": b"", "key": b""},
            {"value": b"stamped", "timestamp": stamp},
        ],
    )
    first, second, third, fourth = consume(bootstrap, topic, 4)
    assert first.headers() == [("a", b"1"), ("a", b"2"), ("empty", b""), ("null", None)]
    assert (second.key(), second.value()) == (b"tombstone", None)
    assert (third.key(), third.value()) == (b"", b"")
    assert (fourth.key(), fourth.timestamp()) == (None, (TIMESTAMP_CREATE_TIME, stamp))


def test_large_records(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-large")
    create_topic(bootstrap, topic, configs={"max.message.bytes": "12000000"})
    values = [bytes([number]) * 5_000_000 for number in range(4)]
    produce(bootstrap, topic, [{"value": value} for value in values], message_max_bytes=11_000_000)
    assert [message.value() for message in consume(bootstrap, topic, 4, fetch_message_max_bytes=1_000)] == values


def test_a_too_large_record_is_refused(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-too-large")
    create_topic(bootstrap, topic, configs={"max.message.bytes": "10000"})
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    errors: list[str] = []
    producer.produce(topic, b"x" * 20_000, on_delivery=lambda error, _: errors.append(error.name()))
    assert producer.flush(15) == 0
    assert errors == ["MSG_SIZE_TOO_LARGE"]


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_acks(bootstrap: str, unique: Unique, acks: str) -> None:
    topic = unique("confluent-acks")
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"%d" % number} for number in range(100)], acks=acks)
    assert [message.value() for message in consume(bootstrap, topic, 100)] == [b"%d" % number for number in range(100)]


def test_an_idempotent_producer_keeps_order_with_many_requests_in_flight(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-idempotent")
    create_topic(bootstrap, topic, partitions=2)
    sent = [{"value": b"%d" % number, "partition": number % 2} for number in range(2_000)]
    delivered = produce(bootstrap, topic, sent, enable_idempotence=True, batch_num_messages=20, linger_ms=0)
    assert len(delivered) == 2_000
    found = consume(bootstrap, topic, 2_000)
    for partition in range(2):
        mine = [message for message in found if message.partition() == partition]
        assert [message.offset() for message in mine] == list(range(1_000))
        assert [message.value() for message in mine] == [b"%d" % number for number in range(partition, 2_000, 2)]


def test_producing_to_a_missing_topic_creates_it(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-auto")
    produce(bootstrap, topic, [{"value": b"first"}])
    (found,) = consume(bootstrap, topic, 1)
    assert found.value() == b"first"


def test_transactions_are_refused_for_good(bootstrap: str, unique: Unique) -> None:
    if on_reference():
        pytest.skip("Apache Kafka has transactions")
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": unique("tx"), "log_level": 0})
    with pytest.raises(KafkaException) as refused:
        producer.init_transactions(10)
    assert refused.value.args[0].name() == "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
    assert not refused.value.args[0].retriable()


def test_seek_watermarks_and_offsets_by_time(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-times")
    admin = create_topic(bootstrap, topic)
    start = int(time.time() * 1000) - 100_000
    for number in range(10):
        produce(bootstrap, topic, [{"value": b"%d" % number, "timestamp": start + number * 1_000}])
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": unique("unused"), "log_level": 0})
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10) == (0, 10)
    answers = {
        stamp: consumer.offsets_for_times([TopicPartition(topic, 0, stamp)], timeout=10)[0].offset
        for stamp in (start - 1, start, start + 1, start + 5_000, start + 9_000)
    }
    assert answers == {start - 1: 0, start: 0, start + 1: 1, start + 5_000: 5, start + 9_000: 9}
    assert consumer.offsets_for_times([TopicPartition(topic, 0, start + 9_001)], timeout=10)[0].offset == -1
    consumer.assign([TopicPartition(topic, 0, 7)])
    assert [message.value() for message in read(consumer, 3)] == [b"7", b"8", b"9"]
    consumer.seek(TopicPartition(topic, 0, 2))
    assert read(consumer, 1)[0].value() == b"2"
    consumer.close()
    for spec, offset in ((OffsetSpec.earliest(), 0), (OffsetSpec.latest(), 10), (OffsetSpec.max_timestamp(), 9)):
        wanted = {TopicPartition(topic, 0): spec}
        (answer,) = admin.list_offsets(wanted, isolation_level=IsolationLevel.READ_COMMITTED).values()
        assert answer.result().offset == offset


def test_commits_are_kept_and_resumed_from(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("confluent-commit"), unique("group")
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"%d" % number} for number in range(10)])
    config = {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer({**config, "enable.auto.commit": False})
    consumer.subscribe([topic])
    messages = read(consumer, 4)
    consumer.commit(messages[-1], asynchronous=False)
    committed = TopicPartition(topic, 0, 6, "a note")
    consumer.commit(offsets=[committed], asynchronous=False)
    consumer.close()
    resumed = Consumer(config)
    (stored,) = resumed.committed([TopicPartition(topic, 0)], timeout=10)
    assert (stored.offset, stored.metadata) == (6, "a note")
    resumed.subscribe([topic])
    assert [message.value() for message in read(resumed, 4)] == [b"6", b"7", b"8", b"9"]
    resumed.close()


def test_offsets_do_not_outlive_their_topic(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("confluent-reborn"), unique("group")
    admin = create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"old %d" % number} for number in range(5)])
    config = {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer(config)
    consumer.subscribe([topic])
    read(consumer, 5)
    consumer.commit(asynchronous=False)
    consumer.close()
    admin.delete_topics([topic])[topic].result(15)
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"new %d" % number} for number in range(7)])
    again = Consumer(config)
    again.subscribe([topic])
    assert [message.value() for message in read(again, 7)] == [b"new %d" % number for number in range(7)]
    again.close()


def test_an_open_consumer_reads_only_the_new_topic_after_a_re_creation(bootstrap: str, unique: Unique) -> None:
    topic = unique("confluent-under")
    admin = create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"old"} for _ in range(5)])
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique("group"),
            "auto.offset.reset": "earliest",
            "topic.metadata.refresh.interval.ms": 300,
            "log_level": 0,
        }
    )
    consumer.subscribe([topic])
    assert {message.value() for message in read(consumer, 5)} == {b"old"}
    admin.delete_topics([topic])[topic].result(15)
    create_topic(bootstrap, topic)
    produce(bootstrap, topic, [{"value": b"new"} for _ in range(20)])
    seen: set[bytes | None] = set()
    deadline = time.monotonic() + 20
    while b"new" not in seen and time.monotonic() < deadline:
        seen |= {message.value() for message in consumer.consume(50, 0.2) if message.error() is None}
    assert seen == {b"new"}
    consumer.close()


def test_a_pattern_subscription_finds_topics_made_later(bootstrap: str, unique: Unique) -> None:
    prefix = unique("pattern")
    create_topic(bootstrap, f"{prefix}-a")
    produce(bootstrap, f"{prefix}-a", [{"value": b"a"}])
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique("group"),
            "auto.offset.reset": "earliest",
            "topic.metadata.refresh.interval.ms": 500,
            "log_level": 0,
        }
    )
    consumer.subscribe([f"^{prefix}-.*"])
    assert read(consumer, 1)[0].value() == b"a"
    create_topic(bootstrap, f"{prefix}-b")
    produce(bootstrap, f"{prefix}-b", [{"value": b"b"}])
    assert read(consumer, 1)[0].value() == b"b"
    consumer.close()


def test_deleted_records_are_gone_for_consumers_and_offsets(bootstrap: str, unique: Unique) -> None:
    """librdkafka's DeleteRecords: an offset inside a batch, all there is, and one that does not exist."""
    topic = unique("delete-records")
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create_topic(bootstrap, topic, partitions=1)
    produce(bootstrap, topic, [{"value": str(number).encode()} for number in range(20)])

    def delete(offset: int) -> int:
        partition = TopicPartition(topic, 0, offset)
        (deleted,) = admin.delete_records([partition]).values()
        return int(deleted.result(15).low_watermark)

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    assert delete(7) == 7
    assert delete(3) == 7
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=15) == (7, 20)
    consumer.assign([TopicPartition(topic, 0, 0)])  # it is out of range: librdkafka resets to the earliest
    values = [message.value() for message in consumer.consume(13, timeout=15) if message.error() is None]
    assert values == [str(number).encode() for number in range(7, 20)]
    with pytest.raises(KafkaException) as refused:
        delete(21)
    assert refused.value.args[0].code() == KafkaError.OFFSET_OUT_OF_RANGE
    assert delete(-1) == 20
    assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=15) == (20, 20)
    consumer.close()
