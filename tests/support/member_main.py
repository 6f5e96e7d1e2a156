"""One member of a consumer group as a process that a test can kill: ``python -m tests.support.member_main``.

Writes one JSON line for each change of its assignment (``{"assigned": [...]}``, ``{"revoked": [...]}``), each record
(``{"record": [partition, offset, value]}``) and each error (``{"error": "..."}``). SIGTERM makes it leave the group.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

_stopping = False


def _say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _stop(*_: object) -> None:
    global _stopping
    _stopping = True


def _confluent(bootstrap: str, group: str, topic: str, config: dict[str, str]) -> None:
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "auto.commit.interval.ms": 100,
            "session.timeout.ms": 2_000,
            "heartbeat.interval.ms": 200,
            "log_level": 0,
            **config,
        }
    )

    def tell(name: str) -> Callable[[Consumer, list[TopicPartition]], None]:
        return lambda _, partitions: _say(**{name: [partition.partition for partition in partitions]})

    consumer.subscribe([topic], on_assign=tell("assigned"), on_revoke=tell("revoked"), on_lost=tell("revoked"))
    while not _stopping:
        message = consumer.poll(0.1)
        if message is None:
            continue
        error = message.error()
        if error is None:
            _say(record=[message.partition(), message.offset(), _text(message.value())])
        elif error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            _say(error=error.name())
            if error.fatal():
                return
    consumer.close()


def _kafka_python(bootstrap: str, group: str, topic: str, config: dict[str, str]) -> None:
    from kafka import ConsumerRebalanceListener, KafkaConsumer

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            _say(assigned=[partition.partition for partition in assigned])

        def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            _say(revoked=[partition.partition for partition in revoked])

    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        auto_commit_interval_ms=100,
        session_timeout_ms=2_000,
        heartbeat_interval_ms=200,
        **config,
    )
    consumer.subscribe([topic], listener=Listener())
    while not _stopping:
        for messages in consumer.poll(timeout_ms=100).values():
            for message in messages:
                _say(record=[message.partition, message.offset, _text(message.value)])
    consumer.close()


def _aiokafka(bootstrap: str, group: str, topic: str, config: dict[str, str]) -> None:
    from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            _say(assigned=[partition.partition for partition in assigned])

        def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            _say(revoked=[partition.partition for partition in revoked])

    async def run() -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            auto_offset_reset="earliest",
            auto_commit_interval_ms=100,
            session_timeout_ms=2_000,
            heartbeat_interval_ms=200,
            **config,
        )
        consumer.subscribe([topic], listener=Listener())
        await consumer.start()
        while not _stopping:
            for messages in (await consumer.getmany(timeout_ms=100)).values():
                for message in messages:
                    _say(record=[message.partition, message.offset, _text(message.value)])
        await consumer.stop()

    asyncio.run(run())


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


_CLIENTS = {"confluent": _confluent, "kafka-python": _kafka_python, "aiokafka": _aiokafka}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=_CLIENTS)
    parser.add_argument("bootstrap")
    parser.add_argument("group")
    parser.add_argument("topic")
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    config = dict(pair.split("=", 1) for pair in arguments.config)
    _CLIENTS[arguments.client](arguments.bootstrap, arguments.group, arguments.topic, config)


if __name__ == "__main__":
    main()
