"""Every agent is restarted under load, one after the other, and no client notices: librdkafka, aiokafka and Java."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.support.agent_process import AgentProcess
from tests.support.librdkafka import create_topic
from tests.support.metadata_process import MetadataProcess
from tests.support.recorded_client import RecordedClient, start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings
from tests.tools import kafka_java

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

PARTITIONS = 6
PAUSE_SECONDS_MAX = 2.0
SETTINGS = {"GROUPS__INITIAL_REBALANCE_DELAY_MS": "100", "LOG__FORM": "json"}
TOOLS = "org.apache.kafka.tools."


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[AgentProcess]]:
    """Three agents of one zone and group, and a metadata process."""
    metadata = MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", SETTINGS)
    metadata.start()
    storage = f"file://{tmp_path}/objects"
    started = [
        AgentProcess(tmp_path, f"agent-{number}", [metadata.url], storage, settings=SETTINGS) for number in range(3)
    ]
    for agent in started:
        agent.spawn()
    for agent in started:
        agent.wait_ready()
    yield started
    for agent in started:
        agent.stop()
    metadata.stop()


def restart_all(agents: list[AgentProcess], between: Callable[[], None]) -> None:
    """One after the other, each only when the one before serves again; every drain says that nothing was lost."""
    for agent in agents:
        began = time.monotonic()
        assert agent.terminate(30) == 0, agent.log_tail()
        took = time.monotonic() - began
        said = agent.drained()[-1]
        print(f"{agent.name}: {said} (process ended after {took:.1f} s)")
        assert "nothing was lost" in said
        assert "closed without having moved" not in said
        assert took < 10, "clients move at once"
        agent.start()
        between()


def pauses(times: dict[int, list[float]], since: float, until: float) -> dict[int, float]:
    """For each partition, the longest time without an event between ``since`` and ``until``."""
    found = {}
    for partition, moments in times.items():
        inside = [since, *sorted(at for at in moments if since <= at <= until), until]
        found[partition] = max(later - earlier for earlier, later in pairwise(inside))
    return found


def read_log(bootstrap: str, topic: str) -> dict[tuple[int, int], bytes]:
    """Everything that is in the topic now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "log_level": 0})
    places = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    left = sum(consumer.get_watermark_offsets(place, timeout=15)[1] for place in places)
    consumer.assign(places)
    log: dict[tuple[int, int], bytes] = {}
    deadline = time.monotonic() + 60
    while len(log) < left:
        assert time.monotonic() < deadline, f"{len(log)} of {left} records read"
        for message in consumer.consume(1_000, 0.5):
            assert message.error() is None
            partition, offset, value = message.partition(), message.offset(), message.value()
            assert partition is not None and offset is not None and value is not None
            log[partition, offset] = value
    consumer.close()
    return log


def test_librdkafka_and_aiokafka_go_on_while_every_agent_is_restarted(
    agents: list[AgentProcess], tmp_path: Path
) -> None:
    topic = "rolling"
    bootstrap = ",".join(agent.bootstrap for agent in agents)
    create_topic(bootstrap, topic, PARTITIONS)
    clients = [
        start_producer(tmp_path, "p-rdkafka", bootstrap, topic, PARTITIONS, rate=500, value_bytes=200),
        start_producer(tmp_path, "p-aiokafka", bootstrap, topic, PARTITIONS, client="aiokafka", rate=300),
        start_consumer(tmp_path, "c-rdkafka", bootstrap, topic, "g-rdkafka"),
        start_consumer(tmp_path, "c-aiokafka", bootstrap, topic, "g-aiokafka", client="aiokafka"),
    ]
    try:
        for consumer in clients[2:]:
            wait_for_members([consumer], PARTITIONS, 60)
        time.sleep(3)
        since = time.monotonic()
        restart_all(agents, lambda: time.sleep(2))
        time.sleep(2)
        until = time.monotonic()
        for producer in clients[:2]:
            producer.finish(60)
        recordings = Recordings([client.follow() for client in clients])
        log = read_log(bootstrap, topic)
        wait_for_reads(recordings, clients, log)
        for consumer in clients[2:]:
            consumer.finish(60)
    finally:
        for client in clients:
            client.kill()
    print(recordings.counts())
    assert recordings.violations(log) == []
    for client in clients:
        recording = client.recording
        assert recording.failed == []
        assert len(recording.acknowledged) == len(recording.sent)
        moments = defaultdict(list)
        for at, _, partition, _ in recording.acknowledged:
            moments[partition].append(at)
        for event in recording.polls:
            if len(event) == 4:
                moments[event[1]].append(event[0])
        longest = pauses(moments, since, until)
        print(f"{client.name}: longest pause of a partition {max(longest.values()):.2f} s")
        assert len(longest) == PARTITIONS
        assert max(longest.values()) < PAUSE_SECONDS_MAX, (client.name, longest)
    assert len(clients[2].recording.polls) > 0
    for consumer in clients[2:]:
        assignments = [event for event in consumer.recording.polls if len(event) == 2]
        assert len(assignments) == 1, "its group did not rebalance"


def wait_for_reads(recordings: Recordings, clients: list[RecordedClient], log: dict[tuple[int, int], bytes]) -> None:
    ends: dict[int, int] = defaultdict(int)
    for partition, offset in log:
        ends[partition] = max(ends[partition], offset + 1)
    deadline = time.monotonic() + 30
    while any(recordings.unread(group, ends) for group in ("g-rdkafka", "g-aiokafka")):
        assert time.monotonic() < deadline, "a consumer is stuck"
        time.sleep(0.2)
        for client in clients:
            client.follow()


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines() if line.startswith("{")]


def test_java_goes_on_while_every_agent_is_restarted(agents: list[AgentProcess], tmp_path: Path) -> None:
    kafka_java.require_java_tools()
    topic = "rolling-java"
    bootstrap = ",".join(agent.bootstrap for agent in agents)
    create_topic(bootstrap, topic, PARTITIONS)
    config = tmp_path / "producer.properties"
    # The tool retries nothing unless it is told to, which no other Java producer does.
    config.write_text("retries=2147483647\nenable.idempotence=true\nlinger.ms=5\n")
    consumed, produced = tmp_path / "consumed.txt", tmp_path / "produced.txt"
    server = ("--bootstrap-server", bootstrap, "--topic", topic)
    consumer = kafka_java.spawn(
        f"{TOOLS}VerifiableConsumer",
        [*server, "--group-id", "g-java", "--verbose", "--command-config", str(kafka_java.CONSUMER_CONFIG)],
        consumed,
    )
    producer = kafka_java.spawn(
        f"{TOOLS}VerifiableProducer",
        [*server, "--throughput", "120", "--repeating-keys", "60", "--command-config", str(config)],
        produced,
    )
    try:
        wait_until(lambda: sum(event["name"] == "record_data" for event in events(consumed)) > 200, 60, consumed)
        since = time.time()
        restart_all(agents, lambda: time.sleep(2))
        time.sleep(2)
        until = time.time()
        end(producer)
        acknowledged = [event for event in events(produced) if event["name"] == "producer_send_success"]
        wait_until(
            lambda: sum(event["name"] == "record_data" for event in events(consumed)) >= len(acknowledged), 30, consumed
        )
        end(consumer)
    finally:
        for process in (producer, consumer):
            process.kill()
    assert [event for event in events(produced) if event["name"] == "producer_send_error"] == []
    sent = [(event["partition"], event["offset"]) for event in acknowledged]
    assert len(set(sent)) == len(sent)
    log = read_log(bootstrap, topic)
    assert sorted(log) == sorted(sent), "no record is there twice, and none that was not acknowledged"
    read = [(event["partition"], event["offset"]) for event in events(consumed) if event["name"] == "record_data"]
    assert sorted(read) == sorted(sent), "each was read once"
    for name, kind, output in (("p-java", "producer_send_success", produced), ("c-java", "record_data", consumed)):
        moments = defaultdict(list)
        for event in events(output):
            if event["name"] == kind:
                moments[event["partition"]].append(event["timestamp"] / 1000)
        longest = pauses(moments, since, until)
        print(f"{name}: {sum(map(len, moments.values()))} records, longest pause {max(longest.values()):.2f} s")
        assert len(longest) == PARTITIONS
        assert max(longest.values()) < PAUSE_SECONDS_MAX, (name, longest)
    assert sum(event["name"] == "partitions_assigned" for event in events(consumed)) == 1, "no rebalance"


def wait_until(holds: Callable[[], bool], within_s: float, output: Path) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, (
            output.read_text()[-2_000:] + output.with_suffix(".stderr").read_text()[-2_000:]
        )
        time.sleep(0.2)


def end(process: Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)
