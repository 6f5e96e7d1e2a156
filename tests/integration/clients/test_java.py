"""The Java client 4.2 in Kafka's own tools: verifiable and performance producers and consumers, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

from tests.support.librdkafka import consume, create_topic, produce
from tests.support.raw_kafka import CODECS, RawKafka, batches
from tests.tools import kafka_java

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Unique = Callable[[str], str]

TOOLS = "org.apache.kafka.tools."


@pytest.fixture(autouse=True)
def _java() -> None:
    kafka_java.require_java_tools()


def _events(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_verifiable_producer_and_consumer(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-verifiable")
    create_topic(bootstrap, topic, partitions=3)
    produced = _events(
        kafka_java.run(
            f"{TOOLS}VerifiableProducer",
            *("--bootstrap-server", bootstrap, "--topic", topic, "--max-messages", "500", "--repeating-keys", "10"),
        )
    )
    acknowledged = [event for event in produced if event["name"] == "producer_send_success"]
    assert len(acknowledged) == 500
    assert produced[-1]["name"] == "tool_data"
    assert produced[-1]["acked"] == 500
    consumed = _events(
        kafka_java.run(
            f"{TOOLS}VerifiableConsumer",
            *("--bootstrap-server", bootstrap, "--topic", topic, "--group-id", unique("group"), "--verbose"),
            *("--max-messages", "500", "--command-config", str(kafka_java.CONSUMER_CONFIG)),
        )
    )
    read = {
        (event["partition"], event["offset"], event["value"]) for event in consumed if event["name"] == "record_data"
    }
    assert read == {(event["partition"], event["offset"], event["value"]) for event in acknowledged}
    commits = [event for event in consumed if event["name"] == "offsets_committed"]
    assert commits
    assert all(event["success"] for event in commits)


@pytest.mark.parametrize("codec", CODECS)
def test_producer_performance_with_every_codec(bootstrap: str, unique: Unique, codec: str) -> None:
    topic = unique(f"java-{codec}")
    create_topic(bootstrap, topic, partitions=2)
    printed = kafka_java.run(
        f"{TOOLS}ProducerPerformance",
        *("--bootstrap-server", bootstrap, "--topic", topic, "--num-records", "2000", "--record-size", "300"),
        *("--throughput", "-1", "--command-property", f"compression.type={codec}", "acks=all"),
    )
    assert "2000 records sent" in printed
    with RawKafka(bootstrap) as connection:
        assert sum(connection.high_watermark(topic, partition) for partition in range(2)) == 2000
        stored = [batch for number in range(2) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}


def test_consumer_performance_reads_every_codec(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-consume")
    create_topic(bootstrap, topic, partitions=2)
    for codec in CODECS:
        produce(
            bootstrap, topic, [{"value": b"payload %d " % number * 10} for number in range(200)], compression_type=codec
        )
    printed = kafka_java.run(
        f"{TOOLS}ConsumerPerformance",
        *("--bootstrap-server", bootstrap, "--topic", topic, "--group", unique("group"), "--num-records", "1000"),
    )
    fields = printed.strip().splitlines()[-1].split(", ")
    assert int(fields[4]) == 1000, printed


def test_a_too_large_batch_is_split(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-split")
    create_topic(bootstrap, topic, configs={"max.message.bytes": "20000"})
    printed = kafka_java.run(
        f"{TOOLS}ProducerPerformance",
        *("--bootstrap-server", bootstrap, "--topic", topic, "--num-records", "500", "--record-size", "1000"),
        # A batch is estimated far smaller than it becomes: random bytes do not compress.
        *("--throughput", "-1", "--command-property", "batch.size=100000", "linger.ms=50", "compression.type=gzip"),
    )
    assert "500 records sent" in printed
    assert len(consume(bootstrap, topic, 500)) == 500


def test_topic_command(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-topic")
    server = ("--bootstrap-server", bootstrap)
    tool = f"{TOOLS}TopicCommand"
    created = kafka_java.run(
        tool, *server, "--create", "--topic", topic, "--partitions", "3", "--config", "retention.ms=60000"
    )
    assert f"Created topic {topic}" in created
    assert topic in kafka_java.run(tool, *server, "--list").split()
    described = kafka_java.run(tool, *server, "--describe", "--topic", topic)
    assert "PartitionCount: 3" in described
    assert "retention.ms=60000" in described
    assert described.count("Leader: ") == 3
    kafka_java.run(tool, *server, "--delete", "--topic", topic)
    assert topic not in kafka_java.run(tool, *server, "--list").split()


def test_config_command(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-config")
    create_topic(bootstrap, topic)
    entity = ("--bootstrap-server", bootstrap, "--entity-type", "topics", "--entity-name", topic)
    tool = "kafka.admin.ConfigCommand"
    assert "Completed" in kafka_java.run(tool, *entity, "--alter", "--add-config", "max.message.bytes=4321")
    assert "max.message.bytes=4321" in kafka_java.run(tool, *entity, "--describe")
    assert "compression.type=producer" in kafka_java.run(tool, *entity, "--describe", "--all")
    assert "Completed" in kafka_java.run(tool, *entity, "--alter", "--delete-config", "max.message.bytes")
    assert "max.message.bytes" not in kafka_java.run(tool, *entity, "--describe")


def test_group_command_and_offset_shell(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("java-lag"), unique("group")
    create_topic(bootstrap, topic, partitions=2)
    produce(bootstrap, topic, [{"value": b"x", "partition": number % 2} for number in range(10)])
    offsets = kafka_java.run(f"{TOOLS}GetOffsetShell", "--bootstrap-server", bootstrap, "--topic", topic)
    assert sorted(offsets.split()) == [f"{topic}:0:5", f"{topic}:1:5"]
    tool = f"{TOOLS}consumer.group.ConsumerGroupCommand"
    server = ("--bootstrap-server", bootstrap)
    reset = ("--reset-offsets", "--group", group, "--topic", topic, "--to-offset", "2", "--execute")
    kafka_java.run(tool, *server, *reset)
    assert group in kafka_java.run(tool, *server, "--list").split()
    described = kafka_java.run(tool, *server, "--describe", "--group", group)
    rows = [line.split() for line in described.splitlines() if topic in line]
    assert sorted(row[2:6] for row in rows) == [["0", "2", "5", "3"], ["1", "2", "5", "3"]]


def test_a_topic_grows_and_its_logs_are_looked_at(bootstrap: str, unique: Unique) -> None:
    topic = unique("java-grows")
    admin = create_topic(bootstrap, topic, partitions=2)
    produce(bootstrap, topic, [{"value": b"x" * 500, "partition": 1}] * 10, enable_idempotence=True)
    server, tool = ("--bootstrap-server", bootstrap), f"{TOOLS}TopicCommand"
    kafka_java.run(tool, *server, "--alter", "--topic", topic, "--partitions", "4")
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 4
    printed = kafka_java.run(f"{TOOLS}LogDirsCommand", *server, "--describe", "--topic-list", topic)
    (described,) = _events(printed)
    rows = [row for broker in described["brokers"] for each in broker["logDirs"] for row in each["partitions"]]  # type: ignore[attr-defined]
    sizes = {row["partition"]: row["size"] for row in rows}
    assert 5_000 < sizes.pop(f"{topic}-1") < 7_000
    assert sizes == {f"{topic}-{number}": 0 for number in (0, 2, 3)}
    tool = f"{TOOLS}TransactionsCommand"
    producers = kafka_java.run(tool, *server, "describe-producers", "--topic", topic, "--partition", "1")
    (columns, row) = (line.split() for line in producers.splitlines() if line.strip())
    assert (row[columns.index("ProducerEpoch")], row[columns.index("LastSequence")]) == ("0", "9")


def test_groups_and_their_offsets_are_deleted(bootstrap: str, unique: Unique) -> None:
    topic, group = unique("java-deletes"), unique("group")
    admin = create_topic(bootstrap, topic, partitions=2)
    offsets = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, number, 1) for number in range(2)])
    admin.alter_consumer_group_offsets([offsets])[group].result(15)
    tool, server = f"{TOOLS}consumer.group.ConsumerGroupCommand", ("--bootstrap-server", bootstrap)
    kafka_java.run(tool, *server, "--delete-offsets", "--group", group, "--topic", f"{topic}:0")
    found = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(15)
    assert [row.partition for row in found.topic_partitions] == [1]
    kafka_java.run(tool, *server, "--delete", "--group", group)
    assert group not in {one.group_id for one in admin.list_consumer_groups().result(15).valid}
