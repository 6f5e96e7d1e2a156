"""The far end of the demo: a consumer group that tails the topic and accounts for every line."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from runtime.clock import Clock
from tidelog.client import client_config, describe_error
from tidelog.connecting import Cluster
from tidelog.demo.lines import Tally

GROUP = "demo-search"
FETCH_RECORDS_MAX = 1_000
POLL_SECONDS = 0.1
LEAVE_SECONDS = 10.0
_STEP = math.log(1.04)


class Latencies:
    """Durations in milliseconds, kept as a histogram with 4 % wide buckets."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0

    def add(self, milliseconds: int) -> None:
        self._buckets[int(math.log(max(milliseconds, 1)) / _STEP)] += 1
        self.count += 1

    def percentile(self, share: float) -> float | None:
        """The duration that ``share`` of them do not exceed (upper edge of its bucket); None without any."""
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= share * self.count:
                return math.exp((bucket + 1) * _STEP)
        return None


@dataclass(frozen=True, slots=True)
class TailMember:
    """One consumer of the group."""

    bootstrap: str
    client_id: str


class Tail:
    """Consumers of one group, a thread each. Lines must be those of :class:`tidelog.demo.lines.Replay`."""

    def __init__(self, members: Sequence[TailMember], topic: str, clock: Clock) -> None:
        self.lines = Tally()
        """Distinct lines received."""
        self.duplicates = 0
        self.latencies = Latencies()
        self.problem: str | None = None
        self._recent = Latencies()
        self._seen = bytearray()
        self._lock = threading.Lock()
        self.received = [0] * len(members)
        """Records each member was given, copies too."""
        self._members = members
        self._topic = topic
        self._clock = clock
        self._stopping = threading.Event()
        self._assigned: dict[int, int] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"tail-{index}", daemon=True)
            for index in range(len(members))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def partitions_assigned(self) -> int:
        """Partitions the members have together."""
        return sum(self._assigned.values())

    def has_all(self, index: int, replays: int, count: int) -> bool:
        """Whether the first ``count`` lines of one of several replays have been received."""
        numbers = self._seen[index : index + count * replays : replays]
        return numbers.count(1) == count

    def take_recent(self) -> Latencies:
        """The latencies since the last call."""
        with self._lock:
            recent, self._recent = self._recent, Latencies()
        return recent

    def forget_latencies(self) -> None:
        """What came so far was only to see whether the way works."""
        with self._lock:
            self.latencies, self._recent = Latencies(), Latencies()

    def stop(self) -> None:
        """Commit, leave the group, and end the threads. Idempotent.

        librdkafka may wait for ever for a cluster that is gone: a thread that has not ended in time is a problem, and
        ends with the process.
        """
        self._stopping.set()
        deadline = self._clock.monotonic() + LEAVE_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - self._clock.monotonic()))
            if thread.is_alive() and self.problem is None:
                self.problem = f"{thread.name} did not leave its group within {LEAVE_SECONDS:g} s"

    def _run(self, index: int) -> None:
        try:
            self._consume(index)
        except Exception as error:  # it must reach the screen, not the thread's default hook
            self.problem = f"consumer {index}: {error}"

    def _consume(self, index: int) -> None:
        consumer = Consumer(
            client_config(
                Cluster(self._members[index].bootstrap),
                **{
                    "client.id": self._members[index].client_id,
                    "group.id": GROUP,
                    "auto.offset.reset": "earliest",
                    "auto.commit.interval.ms": 1_000,
                    "fetch.wait.max.ms": 500,
                },
            )
        )

        def assigned(_consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self._assigned[index] = len(partitions)

        def revoked(_consumer: Consumer, _partitions: list[TopicPartition]) -> None:
            self._assigned[index] = 0

        try:
            consumer.subscribe([self._topic], on_assign=assigned, on_revoke=revoked)
            while not self._stopping.is_set():
                messages = consumer.consume(FETCH_RECORDS_MAX, POLL_SECONDS)
                if messages:
                    self._take(messages)
                    self.received[index] += len(messages)
        finally:
            consumer.close()

    def _take(self, messages: list[Message]) -> None:
        now_ms = self._clock.now_ms()
        with self._lock:
            for message in messages:
                error = message.error()
                if error is None:
                    self._take_line(message.value() or b"", now_ms)
                elif not error.retriable() and error.code() not in (
                    KafkaError._ALL_BROKERS_DOWN,
                    KafkaError._TRANSPORT,
                ):
                    raise ValueError(describe_error(error))

    def _take_line(self, line: bytes, now_ms: int) -> None:
        stamp, number_text, _ = line.split(b" ", 2)
        number = int(number_text)
        if number >= len(self._seen):
            self._seen.extend(bytes(number + 100_000 - len(self._seen)))
        if self._seen[number]:
            self.duplicates += 1
            return
        self._seen[number] = 1
        self.lines.add(line)
        latency_ms = now_ms - int(stamp)
        self.latencies.add(latency_ms)
        self._recent.add(latency_ms)
