"""Consumer groups of every client: members join, leave and die, and the group reads every record on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.support.members import Member, start_member, wait_for_split, wait_until
from tests.support.raw_kafka import RawKafka, record_batch
from tests.tools.kafka_java import require_java_tools
from tests.tools.kafkajs import require_kafkajs

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PARTITIONS = 6

Starter = Callable[..., Member]


@pytest.fixture
def start(bootstrap: str) -> Iterator[Starter]:
    """Starts members; whatever still runs after the test is killed."""
    members: list[Member] = []

    def one(client: str, group: str, topic: str, config: Mapping[str, str] | None = None) -> Member:
        members.append(start_member(client, bootstrap, group, topic, config))
        return members[-1]

    yield one
    for member in members:
        if member.process.poll() is None:
            member.kill()


class Source:
    """Produces numbered records, round robin over the partitions, and knows what it produced."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._connection = RawKafka(bootstrap)
        self._topic = topic
        self.values: set[str] = set()
        self._connection.create_topic(topic, partitions=PARTITIONS)

    def produce(self, count: int = 30) -> None:
        for _ in range(count):
            value = f"record-{len(self.values)}"
            partition = len(self.values) % PARTITIONS
            batch = record_batch(value.encode(), timestamp_ms=int(time.time() * 1000))
            assert self._connection.produce(self._topic, batch, partition).error_code == 0
            self.values.add(value)


@pytest.fixture
def source(bootstrap: str, unique: Callable[[str], str]) -> Source:
    return Source(bootstrap, unique("group-topic"))


def _read(members: list[Member]) -> list[str]:
    return [value for member in members for _, _, value in member.records]


def _wait_read(members: list[Member], source: Source, within_s: float = 20) -> None:
    wait_until(
        lambda: set(_read(members)) >= source.values,
        within_s,
        lambda: f"missing {sorted(source.values - set(_read(members)))[:5]} {[m.output[-3:] for m in members]}",
    )


def _committed(bootstrap: str, group: str, topic: str) -> dict[int, int]:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, number) for number in range(PARTITIONS)])
    (answer,) = admin.list_consumer_group_offsets([wanted]).values()
    return {partition.partition: partition.offset for partition in answer.result().topic_partitions}


COOPERATIVE = {"partition.assignment.strategy": "cooperative-sticky"}
JAVA_COOPERATIVE = {"partition.assignment.strategy": "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"}


@pytest.mark.parametrize(
    ("client", "config"),
    [
        pytest.param("confluent", {}, id="confluent"),
        pytest.param("confluent", COOPERATIVE, id="confluent-cooperative"),
        pytest.param("aiokafka", {}, id="aiokafka"),
        pytest.param("kafka-python", {}, id="kafka-python"),
        pytest.param("kafkajs", {}, id="kafkajs"),
        pytest.param("java", {}, id="java"),
        pytest.param("java", JAVA_COOPERATIVE, id="java-cooperative"),
    ],
)
def test_members_join_leave_and_die(
    bootstrap: str, start: Starter, source: Source, unique: Callable[[str], str], client: str, config: dict[str, str]
) -> None:
    _require(client)
    group, topic = unique("group"), source._topic
    source.produce()
    first = start(client, group, topic, config)
    wait_for_split([first], PARTITIONS)
    _wait_read([first], source)

    second = start(client, group, topic, config)
    third = start(client, group, topic, config)
    wait_for_split([first, second, third], PARTITIONS)
    source.produce()
    _wait_read([first, second, third], source)

    left_at = time.monotonic()
    third.leave()
    wait_for_split([first, second], PARTITIONS)
    left_s = time.monotonic() - left_at
    source.produce()
    _wait_read([first, second, third], source)

    second.kill()
    wait_for_split([first], PARTITIONS)
    source.produce()
    _wait_read([first, second, third], source)
    first.leave()

    assert left_s < 8, "a member that leaves is not waited for"
    read = _read([first, second, third])
    assert set(read) == source.values
    assert len(read) - len(source.values) <= 60, "only what the dead had not committed is read again"
    for member in (first, second, third):
        for partition in range(PARTITIONS):
            offsets = [offset for number, offset, _ in member.records if number == partition]
            assert offsets == sorted(offsets) or client != "confluent"
    assert _committed(bootstrap, group, topic) == dict.fromkeys(range(PARTITIONS), len(source.values) // PARTITIONS)


@pytest.mark.parametrize("client", ["confluent", "java"])
def test_cooperative_members_keep_what_they_keep(
    start: Starter, source: Source, unique: Callable[[str], str], client: str
) -> None:
    _require(client)
    config = JAVA_COOPERATIVE if client == "java" else COOPERATIVE
    group, topic = unique("group"), source._topic
    first = start(client, group, topic, config)
    wait_for_split([first], PARTITIONS)
    seen = len(first.assignments)
    second = start(client, group, topic, config)
    wait_for_split([first, second], PARTITIONS)
    assert all(first.assignment <= held for held in first.assignments[seen:]), "nothing it keeps was ever revoked"


@pytest.mark.parametrize("client", ["confluent", "java"])
def test_a_static_member_comes_back_without_a_rebalance(
    start: Starter, source: Source, unique: Callable[[str], str], client: str
) -> None:
    _require(client)
    group, topic = unique("group"), source._topic
    timeout = {"session.timeout.ms": "12000"}
    first = start(client, group, topic, {**timeout, "group.instance.id": "one"})
    second = start(client, group, topic, {**timeout, "group.instance.id": "two"})
    wait_for_split([first, second], PARTITIONS)
    held, changes = second.assignment, len(first.assignments)
    second.kill()
    again = start(client, group, topic, {**timeout, "group.instance.id": "two"})
    wait_until(lambda: again.assignment == held, 10, lambda: f"{again.assignment} instead of {held}")
    source.produce()
    _wait_read([first, second, again], source)
    assert len(first.assignments) == changes, "the other member noticed nothing"


def test_the_older_of_two_members_with_one_static_id_is_fenced(
    start: Starter, source: Source, unique: Callable[[str], str]
) -> None:
    group, topic = unique("group"), source._topic
    older = start("confluent", group, topic, {"group.instance.id": "same"})
    wait_for_split([older], PARTITIONS)
    newer = start("confluent", group, topic, {"group.instance.id": "same"})
    wait_for_split([newer], PARTITIONS)
    wait_until(lambda: older.errors, 10, lambda: f"{older.output}")
    assert any("FATAL" in error or "FENCED" in error for error in older.errors), older.errors
    assert not newer.errors


def test_members_of_different_clients_share_one_group(
    start: Starter, source: Source, unique: Callable[[str], str]
) -> None:
    require_java_tools()
    group, topic = unique("group"), source._topic
    range_only = {"partition.assignment.strategy": "range"}
    java_range = {"partition.assignment.strategy": "org.apache.kafka.clients.consumer.RangeAssignor"}
    members = [start("confluent", group, topic, range_only), start("java", group, topic, java_range)]
    wait_for_split(members, PARTITIONS)
    source.produce()
    _wait_read(members, source)


def _require(client: str) -> None:
    if client == "java":
        require_java_tools()
    if client == "kafkajs":
        require_kafkajs()
