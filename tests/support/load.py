"""Producers and a group that run through crashes and faults, and write down everything they are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tests.support.history import History, Record

IN_FLIGHT = 400
"""Records of one producer that wait for their acknowledgement."""


class ProducerLoad:
    """One producer instance under constant load with acks=all; it survives restarts of the broker and retries.

    A plain one keeps its order when a connection breaks, but not when a request is answered with an error: librdkafka
    has then sent the next one, even with one in flight. Where errors are expected, say ``ordered=False``.
    """

    def __init__(
        self,
        history: History,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        idempotent: bool,
        ordered: bool = True,
    ) -> None:
        self.name = "idempotent" if idempotent else "plain"
        self.errors: list[str] = []
        if idempotent:
            history.idempotent(self.name)
        elif ordered:
            history.ordered(self.name)
        self._history = history
        self._topic = topic
        self._partitions = partitions
        self._stop = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": idempotent,
                # Without sequence numbers only one request in flight keeps the order over retries.
                "max.in.flight": 5 if idempotent else 1,
                "retries": 100_000,
                "retry.backoff.ms": 50,
                "retry.backoff.max.ms": 300,
                "reconnect.backoff.ms": 50,
                "reconnect.backoff.max.ms": 300,
                "message.timeout.ms": 120_000,
                "socket.timeout.ms": 10_000,
                "linger.ms": 2,
                "batch.num.messages": 50,
                "log_level": 0,
            },
            # librdkafka tells of lost connections here; only a fatal error means that a promise was broken.
            error_cb=self._on_error,
        )
        self._waiting = 0
        self._sequence = 0
        self._thread = threading.Thread(target=self._run, name=f"load-{self.name}", daemon=True)
        self._thread.start()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self.errors.append(f"fatal: {error}")

    def _run(self) -> None:
        while not self._stop.is_set():
            while self._waiting < IN_FLIGHT and not self._stop.is_set():
                self._send()
            self._producer.poll(0.005)

    def _send(self) -> None:
        record = Record(self.name, self._sequence)
        partition = self._sequence % self._partitions
        self._sequence += 1
        self._history.sent(record, partition)

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            self._waiting -= 1
            if error is None:
                offset, at = message.offset(), message.partition()
                assert offset is not None and at is not None
                self._history.acknowledged(record, at, offset)
            else:
                self.errors.append(f"{record}: {error}")

        self._waiting += 1
        self._producer.produce(self._topic, record.encode(), partition=partition, on_delivery=on_delivery)
        self._producer.poll(0)

    def finish(self, within_s: float = 60) -> None:
        """Send no more, and wait until everything sent has been answered."""
        self._stop.set()
        self._thread.join(10)
        left = self._producer.flush(within_s)
        assert left == 0, f"{left} records of the {self.name} producer were never answered"


class GroupLoad:
    """A member of a group that reads the topic and commits what it read, all the time."""

    def __init__(self, history: History, bootstrap: str, topic: str, partitions: int, group: str) -> None:
        self.read_count = 0
        self.errors: list[str] = []
        self._history = history
        self._topic = topic
        self._partitions = partitions
        self._group = group
        self._stop = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 10_000,
                "heartbeat.interval.ms": 500,
                "reconnect.backoff.ms": 50,
                "reconnect.backoff.max.ms": 300,
                "socket.timeout.ms": 10_000,
                "log_level": 0,
            }
        )
        self._consumer.subscribe([topic])
        self._thread = threading.Thread(target=self._run, name="load-group", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = self._consumer.consume(500, 0.1)
            for message in messages:
                error = message.error()
                if error is None:
                    self._record(message)
                elif error.code() == KafkaError._AUTO_OFFSET_RESET or error.fatal():
                    self.errors.append(str(error))
            if messages:
                self._commit()

    def _commit(self) -> None:
        """One commit at a time, so that what was acknowledged has an order."""
        try:
            stored = self._consumer.commit(asynchronous=False) or []
        except KafkaException:
            return  # not acknowledged: it may have happened or not
        for partition in stored:
            if partition.error is None and partition.offset >= 0:
                self._history.committed(self._group, partition.partition, partition.offset)

    def _record(self, message: Message) -> None:
        partition, offset, value = message.partition(), message.offset(), message.value()
        assert partition is not None and offset is not None and value is not None
        self._history.read(partition, offset, value)
        self.read_count += 1

    def finish(self) -> None:
        """Leave the group."""
        self._stop.set()
        self._thread.join(15)
        self._consumer.close()


def ask_committed(history: History, bootstrap: str, topic: str, partitions: int, group: str) -> None:
    """Write down the group's offsets as the broker tells them now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "log_level": 0})
    floors = [history.committed_floor(group, number) for number in range(partitions)]
    try:
        for stored in consumer.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=15):
            history.committed_answer(group, stored.partition, floors[stored.partition], max(stored.offset, 0))
    finally:
        consumer.close()


def read_everything(history: History, bootstrap: str, topic: str, partitions: int, within_s: float = 60) -> int:
    """One last read of the whole topic; the number of records."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "log_level": 0,
        }
    )
    ends = {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=15)[1]
        for number in range(partitions)
    }
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    left, count, deadline = sum(ends.values()), 0, time.monotonic() + within_s
    while count < left:
        assert time.monotonic() < deadline, f"read {count} of {left} records within {within_s} s"
        for message in consumer.consume(1_000, 0.5):
            assert message.error() is None, message.error()
            partition, offset, value = message.partition(), message.offset(), message.value()
            assert partition is not None and offset is not None and value is not None
            history.read_finally(partition, offset, value)
            count += 1
    consumer.close()
    return count


def wait_for_progress(measure: Callable[[], int], at_least: int, within_s: float, what: Callable[[], str]) -> None:
    """Wait until ``measure()`` has grown by ``at_least``."""
    begin, deadline = measure(), time.monotonic() + within_s
    while measure() < begin + at_least:
        assert time.monotonic() < deadline, f"{measure() - begin} of {at_least} within {within_s} s: {what()}"
        time.sleep(0.02)
