"""``tidelog produce`` and ``tidelog consume``: lines in, lines out."""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, Message, Producer, TopicPartition

from runtime.clock import SystemClock
from tidelog.client import (
    REQUEST_SECONDS,
    AsJson,
    OutageNotice,
    client_config,
    counted,
    describe_error,
    fail,
    failures_reported,
    show_json,
)
from tidelog.connecting import Cluster, CommandFailed, connects

DELIVERY_SECONDS = 60
POLL_SECONDS = 0.2
PROBLEMS_SHOWN_MAX = 5


class Acks(enum.StrEnum):
    ALL = "all"
    ONE = "1"
    NONE = "0"


class Compression(enum.StrEnum):
    NONE = "none"
    GZIP = "gzip"
    SNAPPY = "snappy"
    LZ4 = "lz4"
    ZSTD = "zstd"


class _Deliveries:
    """Counts what became of the records."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.failed = 0
        self.problems: list[str] = []

    def report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
            return
        self.failed += 1
        if len(self.problems) < PROBLEMS_SHOWN_MAX:
            self.problems.append(f"{message.topic()}[{message.partition()}]: {describe_error(error)}")


@connects
def produce(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    key_separator: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A line is KEY, this, VALUE; without it there is no key.")
    ] = None,
    partition: Annotated[int, typer.Option(help="To this partition; -1 lets the key or chance decide.")] = -1,
    acks: Annotated[Acks, typer.Option(help="Tidelog treats 1 as all.")] = Acks.ALL,
    compression: Annotated[Compression, typer.Option()] = Compression.NONE,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Send every line of standard input as a record."""
    deliveries = _Deliveries()
    clock = SystemClock()
    outage = OutageNotice(cluster, clock)
    with failures_reported():
        if sys.stdin is None:
            raise CommandFailed("standard input is closed: there is nothing to read records from")
        producer = Producer(
            client_config(
                cluster,
                **{
                    "acks": acks.value,
                    "enable.idempotence": acks is Acks.ALL,
                    "compression.type": compression.value,
                    "linger.ms": 20,
                    "message.timeout.ms": DELIVERY_SECONDS * 1000,
                    "error_cb": outage.on_error,
                },
            )
        )
        with _interruptible():
            for line in sys.stdin.buffer:
                key, value = _split(line.rstrip(b"\r\n"), key_separator)
                _send(producer, deliveries, outage, topic, partition, key, value)
        left = _flush(producer, outage, clock)
        if left:
            raise CommandFailed(f"{counted(left, 'record')} not acknowledged within {DELIVERY_SECONDS} s")
    if as_json:
        show_json({"topic": topic, "acknowledged": deliveries.acknowledged, "failed": deliveries.failed})
    else:
        print(f"{counted(deliveries.acknowledged, 'record')} acknowledged by {topic}", file=sys.stderr)
    if deliveries.failed:
        fail(f"{counted(deliveries.failed, 'record')} failed, such as {'; '.join(deliveries.problems)}")


@connects
def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC")],
    group: Annotated[
        str | None, typer.Option(help="Read as a member of this consumer group and commit what was printed.")
    ] = None,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="Start at the oldest record (with --group: where it has no offset)."),
    ] = False,
    max_messages: Annotated[int | None, typer.Option(min=1, help="Stop after so many records.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Stop when nothing came for so long.")
    ] = None,
    key_separator: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Print KEY and this before the value.")
    ] = None,
    as_json: AsJson = False,
    *,
    cluster: Cluster,
) -> None:
    """Print records as they come, one a line (with --json: one object a line, with offset and timestamp)."""
    outage = OutageNotice(cluster, SystemClock())
    with failures_reported():
        if sys.stdout is None:
            raise CommandFailed("standard output is closed: there is nowhere to print records to")
        consumer = Consumer(_consumer_config(cluster, outage, group, from_beginning))
        try:
            _start(consumer, topic, group, from_beginning)
            printed = _print_records(consumer, outage, max_messages, timeout, key_separator, as_json)
        finally:
            consumer.close()
        if max_messages is not None and printed < max_messages and timeout is not None:
            raise CommandFailed(
                f"{printed:,} of {counted(max_messages, 'record')} came before {timeout:g} s without any"
            )


def _consumer_config(cluster: Cluster, outage: OutageNotice, group: str | None, from_beginning: bool) -> dict[str, Any]:
    return client_config(
        cluster,
        **{
            "group.id": group or "tidelog-cli",  # librdkafka wants one; without --group it is never joined or used
            "auto.offset.reset": "earliest" if from_beginning else "latest",
            "enable.auto.offset.store": False,
            "enable.auto.commit": group is not None,
            "auto.commit.interval.ms": 1_000,
            "allow.auto.create.topics": False,
            "error_cb": outage.on_error,
        },
    )


def _start(consumer: Consumer, topic: str, group: str | None, from_beginning: bool) -> None:
    found = consumer.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
    if found.error is not None:
        raise CommandFailed(f"{topic}: {describe_error(found.error)}")
    if group is not None:
        consumer.subscribe([topic])
        return
    start = OFFSET_BEGINNING if from_beginning else OFFSET_END
    consumer.assign([TopicPartition(topic, partition, start) for partition in found.partitions])


def _print_records(
    consumer: Consumer,
    outage: OutageNotice,
    max_messages: int | None,
    timeout: float | None,
    key_separator: str | None,
    as_json: bool,
) -> int:
    """Print until told to stop; the number of records printed."""
    clock = SystemClock()
    printed = 0
    last = clock.monotonic()
    with _interruptible():
        while max_messages is None or printed < max_messages:
            message = consumer.poll(POLL_SECONDS)
            if message is None:
                sys.stdout.flush()
                outage.look()
                if timeout is not None and clock.monotonic() - last >= timeout:
                    break
                continue
            error = message.error()
            if error is not None:
                if error.retriable() or error.code() == KafkaError._ALL_BROKERS_DOWN:
                    outage.on_error(error)
                    continue
                raise CommandFailed(describe_error(error))
            _print_record(message, key_separator, as_json)
            if consumer.memberid():
                consumer.store_offsets(message)
            printed += 1
            last = clock.monotonic()
    sys.stdout.flush()
    return printed


def _print_record(message: Message, key_separator: str | None, as_json: bool) -> None:
    out = sys.stdout.buffer
    if as_json:
        record = {
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "timestamp_ms": message.timestamp()[1],
            "key": _text(message.key()),
            "value": _text(message.value()),
            "headers": [[name, _text(value)] for name, value in list(message.headers() or ())],
        }
        out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        return
    if key_separator is not None:
        out.write((message.key() or b"") + key_separator.encode())
    out.write((message.value() or b"") + b"\n")


def _send(
    producer: Producer,
    deliveries: _Deliveries,
    outage: OutageNotice,
    topic: str,
    partition: int,
    key: bytes | None,
    value: bytes,
) -> None:
    while True:
        try:
            producer.produce(topic, value, key, partition, on_delivery=deliveries.report)
        except BufferError:  # librdkafka's queue is full: wait for acknowledgements
            producer.poll(POLL_SECONDS)
            outage.look()
        else:
            producer.poll(0)
            return


def _flush(producer: Producer, outage: OutageNotice, clock: SystemClock) -> int:
    """Wait for the acknowledgements; how many records are left without one."""
    deadline = clock.monotonic() + DELIVERY_SECONDS
    while (left := producer.flush(POLL_SECONDS)) and clock.monotonic() < deadline:
        outage.look()
    return left


def _split(line: bytes, key_separator: str | None) -> tuple[bytes | None, bytes]:
    if key_separator is None:
        return None, line
    key, found, value = line.partition(key_separator.encode())
    return (key, value) if found else (None, line)


def _text(value: bytes | str | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed pipe end the work inside quietly; what follows still runs."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  (so that the interpreter's last flush has somewhere to go)
    finally:
        signal.signal(signal.SIGTERM, before)
