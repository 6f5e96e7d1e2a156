"""What the tests do with confluent-kafka: produce everything and wait, consume everything in order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic


def create_topic(
    bootstrap: str,
    topic: str,
    partitions: int = 1,
    configs: Mapping[str, str] | None = None,
    client: Mapping[str, str] | None = None,
) -> AdminClient:
    """Create it and return the admin client; ``client`` is added to that one's own settings."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, **(client or {})})
    admin.create_topics([NewTopic(topic, partitions, 1, config=dict(configs or {}))])[topic].result(15)
    return admin


def produce(bootstrap: str, topic: str, records: Iterable[dict[str, Any]], **config: object) -> list[Message]:
    """Produce ``records`` (arguments of ``Producer.produce``); the messages in the order of their acknowledgements."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0, "linger.ms": 5, **_dotted(config)})
    delivered: list[Message] = []

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        delivered.append(message)

    for record in records:
        producer.produce(topic, on_delivery=on_delivery, **record)
        producer.poll(0)
    assert producer.flush(30) == 0
    return delivered


def consume(bootstrap: str, topic: str, count: int, *, within_s: float = 20, **config: object) -> list[Message]:
    """The first ``count`` records of all partitions, without a group."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False, "log_level": 0}
        | _dotted(config)
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    try:
        return read(consumer, count, within_s)
    finally:
        consumer.close()


def read(consumer: Consumer, count: int, within_s: float = 20) -> list[Message]:
    """``count`` records from a consumer that has its partitions."""
    found: list[Message] = []
    deadline = time.monotonic() + within_s
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records within {within_s} s"
        for message in consumer.consume(count - len(found), 0.2):
            assert message.error() is None, message.error()
            found.append(message)
    return found


def _dotted(config: dict[str, object]) -> dict[str, object]:
    return {name.replace("_", "."): value for name, value in config.items()}
