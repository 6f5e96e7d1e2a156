"""One real client under load as a process of its own, which writes down all it is told.

One JSON list a line in the file ``--record``, each with the time on the machine's monotonic clock as its second item:
``["sent", t, sequence, partition]``, ``["acknowledged", t, sequence, partition, offset]``,
``["failed", t, sequence, error]``, ``["polled", t, partition, [[offset, value], ...]]``,
``["assigned", t, [partition, ...]]``, ``["revoked", t, [...]]``, ``["committed", t, {partition: offset}]``,
``["error", t, text]`` for what should never happen, and ``["finished", t, left]``.
SIGTERM makes a producer send no more, wait for its answers and end, and a consumer leave its group and end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 0.05
PACE_SECONDS = 0.01
ANSWERS_SECONDS = 120.0
"""How long a producer that ends waits for its answers, and how long a record may take."""

SESSION_MS = 6_000
"""A group that could not be heard for longer goes on once the members that gave themselves up meanwhile have expired,
so this is a part of how long it takes, as in Kafka."""

stopping = threading.Event()


class Recorder:
    """Writes events from any thread; a killed process loses the last fraction of a second, never half a line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1024 * 1024)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._flush, daemon=True)
        self._thread.start()

    def __call__(self, event: str, *details: object) -> None:
        line = json.dumps((event, time.monotonic(), *details)) + "\n"
        with self._lock:
            self._file.write(line)

    def _flush(self) -> None:
        while True:
            time.sleep(FLUSH_SECONDS)
            with self._lock:
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.flush()


def produce_confluent(options: argparse.Namespace, config: dict[str, Any], record: Recorder) -> None:
    from confluent_kafka import KafkaError, Message, Producer

    def broken(error: KafkaError) -> None:
        if error.fatal():
            record("error", f"fatal: {error}")

    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "client.id": options.client_id,
            "acks": "all",
            "enable.idempotence": True,
            "retry.backoff.ms": 50,
            "retry.backoff.max.ms": 500,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "socket.timeout.ms": 6_000,
            "socket.connection.setup.timeout.ms": 5_000,
            "topic.metadata.refresh.interval.ms": 5_000,
            "message.timeout.ms": int(ANSWERS_SECONDS * 1000),
            "linger.ms": 5,
            "log_level": 0,
            **config,
        },
        error_cb=broken,
    )
    sequence, waiting = 0, 0
    began = time.monotonic()
    while not stopping.is_set():
        due = int((time.monotonic() - began) * options.rate)
        while sequence < due and waiting < options.in_flight:

            def answered(error: KafkaError | None, message: Message, number: int = sequence) -> None:
                nonlocal waiting
                waiting -= 1
                if error is None:
                    record("acknowledged", number, message.partition(), message.offset())
                else:
                    record("failed", number, str(error))

            partition = sequence % options.partitions
            record("sent", sequence, partition)
            producer.produce(options.topic, _value(options, sequence), partition=partition, on_delivery=answered)
            waiting += 1
            sequence += 1
        if waiting >= options.in_flight:  # what was not sent then is not caught up with
            began = time.monotonic() - sequence / options.rate
        producer.poll(PACE_SECONDS)
    record("finished", producer.flush(ANSWERS_SECONDS))


def produce_aiokafka(options: argparse.Namespace, config: dict[str, Any], record: Recorder) -> None:
    from aiokafka import AIOKafkaProducer

    async def run() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=options.bootstrap,
            client_id=options.client_id,
            acks="all",
            enable_idempotence=True,
            retry_backoff_ms=50,
            request_timeout_ms=int(ANSWERS_SECONDS * 1000),
            linger_ms=5,
            **{"metadata_max_age_ms": 5_000, **config},
        )
        await producer.start()
        waiting: set[asyncio.Future[Any]] = set()
        sequence = 0
        began = time.monotonic()

        def answered(number: int, future: asyncio.Future[Any]) -> None:
            waiting.discard(future)
            error = future.exception()
            if error is None:
                record("acknowledged", number, future.result().partition, future.result().offset)
            else:
                record("failed", number, repr(error))

        while not stopping.is_set():
            due = int((time.monotonic() - began) * options.rate)
            while sequence < due and len(waiting) < options.in_flight:
                number, partition = sequence, sequence % options.partitions
                record("sent", number, partition)
                future = await producer.send(options.topic, _value(options, number), partition=partition)
                waiting.add(future)
                future.add_done_callback(lambda done, number=number: answered(number, done))
                sequence += 1
            if len(waiting) >= options.in_flight:
                began = time.monotonic() - sequence / options.rate
            await asyncio.sleep(PACE_SECONDS)
        if waiting:
            await asyncio.wait(waiting, timeout=ANSWERS_SECONDS)
        record("finished", len(waiting))
        await producer.stop()

    asyncio.run(run())


def consume_confluent(options: argparse.Namespace, config: dict[str, Any], record: Recorder) -> None:
    from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": options.bootstrap,
            "client.id": options.client_id,
            "group.id": options.group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 1_000,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "socket.timeout.ms": 6_000,
            "socket.connection.setup.timeout.ms": 5_000,
            "topic.metadata.refresh.interval.ms": 5_000,
            "fetch.wait.max.ms": 500,
            "log_level": 0,
            **config,
        }
    )

    def numbers(partitions: Iterable[TopicPartition]) -> list[int]:
        return [partition.partition for partition in partitions]

    def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
        record("assigned", numbers(partitions))

    def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
        record("revoked", numbers(partitions))

    consumer.subscribe([options.topic], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
    while not stopping.is_set():
        polled: dict[int, list[tuple[int, str]]] = {}
        for message in consumer.consume(500, 0.1):
            error = message.error()
            partition, offset, value = message.partition(), message.offset(), message.value()
            if error is None:
                assert partition is not None and offset is not None and value is not None
                polled.setdefault(partition, []).append((offset, value.decode().rstrip()))
            elif error.fatal() or error.code() == KafkaError._AUTO_OFFSET_RESET:
                record("error", str(error))
        _polled(record, polled)
        if polled:
            try:
                stored = consumer.commit(asynchronous=False) or []
            except KafkaException:
                continue  # not acknowledged: it may have happened or not
            record("committed", {one.partition: one.offset for one in stored if one.error is None and one.offset >= 0})
    consumer.close()
    record("finished", 0)


def consume_aiokafka(options: argparse.Namespace, config: dict[str, Any], record: Recorder) -> None:
    from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
    from aiokafka.errors import KafkaError

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            record("assigned", [partition.partition for partition in assigned])

        def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            record("revoked", [partition.partition for partition in revoked])

    async def run() -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=options.bootstrap,
            client_id=options.client_id,
            group_id=options.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            heartbeat_interval_ms=1_000,
            request_timeout_ms=6_000,
            retry_backoff_ms=50,
            **{"metadata_max_age_ms": 5_000, "session_timeout_ms": SESSION_MS, **config},
        )
        consumer.subscribe([options.topic], listener=Listener())
        await consumer.start()
        while not stopping.is_set():
            batches = await consumer.getmany(timeout_ms=100)
            polled = {
                partition.partition: [(message.offset, message.value.decode().rstrip()) for message in messages]
                for partition, messages in batches.items()
            }
            _polled(record, polled)
            if polled:
                ends = {partition: messages[-1].offset + 1 for partition, messages in batches.items() if messages}
                try:
                    await consumer.commit(ends)
                except KafkaError:
                    continue
                record("committed", {partition.partition: offset for partition, offset in ends.items()})
        await consumer.stop()
        record("finished", 0)

    asyncio.run(run())


def _polled(record: Recorder, polled: dict[int, list[tuple[int, str]]]) -> None:
    for partition, messages in polled.items():
        record("polled", partition, messages)


def _value(options: argparse.Namespace, sequence: int) -> bytes:
    value = f"{options.name}:{sequence}"
    return value.ljust(options.value_bytes, " ").encode()


def _aiokafka_tls(config: dict[str, Any]) -> dict[str, Any]:
    """librdkafka's names of TLS settings in aiokafka's own."""
    import ssl

    own = {name: value for name, value in config.items() if not name.startswith(("ssl.", "security."))}
    context = ssl.create_default_context(cafile=config["ssl.ca.location"])
    if "ssl.certificate.location" in config:
        context.load_cert_chain(config["ssl.certificate.location"], config["ssl.key.location"])
    return own | {"security_protocol": config["security.protocol"].upper(), "ssl_context": context}


_CLIENTS = {
    ("produce", "confluent"): produce_confluent,
    ("produce", "aiokafka"): produce_aiokafka,
    ("consume", "confluent"): consume_confluent,
    ("consume", "aiokafka"): consume_aiokafka,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["produce", "consume"])
    parser.add_argument("client", choices=["confluent", "aiokafka"])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--client-id", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--in-flight", type=int, default=1_000)
    parser.add_argument("--value-bytes", type=int, default=0)
    parser.add_argument("--group", default="")
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    config: dict[str, Any] = {
        name: int(value) if value.isdigit() else value
        for name, _, value in (one.partition("=") for one in options.config)
    }
    if options.client == "aiokafka" and "security.protocol" in config:
        config = _aiokafka_tls(config)
    record = Recorder(options.record)
    try:
        _CLIENTS[options.what, options.client](options, config, record)
    except Exception as error:
        record("error", repr(error))
        raise
    finally:
        record.close()


if __name__ == "__main__":
    main()
