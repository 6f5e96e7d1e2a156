"""Every agent is restarted under load, one after the other, and no client notices: librdkafka, aiokafka and Java, in
plaintext, and the first two with TLS and with certificates of their own too."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.certificates import Authority
from tests.support.cluster_world import read_log
from tests.support.librdkafka import create_topic
from tests.support.metadata_process import MetadataProcess
from tests.support.recorded_client import start_consumer, start_producer, wait_for_members
from tests.support.recordings import Recordings
from tests.tools import kafka_java

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(300)]

PARTITIONS = 6
PAUSE_SECONDS_MAX = 2.0
SETTLE_SECONDS = 1.5
"""After one agent is back, before the next goes: what happens between them is watched too."""
SETTINGS = {"GROUPS__INITIAL_REBALANCE_DELAY_MS": "100", "LOG__FORM": "json"}
TOOLS = "org.apache.kafka.tools."


@dataclass(slots=True)
class World:
    """Agents of one zone by group, and what clients of a group need beside an address."""

    agents: dict[str, list[AgentProcess]]
    config: dict[str, dict[str, str]]

    def bootstrap(self, group: str) -> str:
        return ",".join(agent.bootstrap for agent in self.agents[group])


@contextmanager
def running(folder: Path, groups: Mapping[str, tuple[int, Mapping[str, str], dict[str, str]]]) -> Iterator[World]:
    """A metadata process and, for each group, so many agents with such settings, whose clients need such a config."""
    with MetadataProcess(folder, f"sqlite:///{folder}/metadata.sqlite", SETTINGS) as metadata:
        agents = {
            group: [
                AgentProcess(
                    folder,
                    f"{group}-{number}",
                    [metadata.url],
                    f"file://{folder}/objects",
                    group=group,
                    settings={**SETTINGS, **settings},
                )
                for number in range(count)
            ]
            for group, (count, settings, _) in groups.items()
        }
        everybody = [agent for group in agents.values() for agent in group]
        for agent in everybody:
            agent.spawn()
        for agent in everybody:
            agent.wait_ready()
        try:
            yield World(agents, {group: config for group, (_, _, config) in groups.items()})
        finally:
            for agent in everybody:
                agent.stop()


@pytest.fixture
def plaintext(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path, {"plaintext": (3, {}, {})}) as world:
        yield world


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[World]:
    """A group with TLS, and one whose clients show certificates."""
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    tls = {"security.protocol": "ssl", "ssl.ca.location": str(authority.path)}
    shown = {"ssl.certificate.location": str(client.certificate), "ssl.key.location": str(client.key)}
    groups = {
        "tls": (2, server.settings(), tls),
        "mtls": (2, server.settings(authority.path), tls | shown),
    }
    with running(tmp_path, groups) as world:
        yield world


def restart_all(agents: Iterable[AgentProcess]) -> None:
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
        time.sleep(SETTLE_SECONDS)


def pauses(times: dict[int, list[float]], since: float, until: float) -> dict[int, float]:
    """For each partition, the longest time without an event between ``since`` and ``until``."""
    found = {}
    for partition, moments in times.items():
        inside = [since, *sorted(at for at in moments if since <= at <= until), until]
        found[partition] = max(later - earlier for earlier, later in pairwise(inside))
    return found


class Java:
    """Kafka's own client: an idempotent producer and a member of a group, each a process."""

    def __init__(self, bootstrap: str, topic: str, folder: Path) -> None:
        kafka_java.require_java_tools()
        config = folder / "producer.properties"
        # The tool retries nothing unless it is told to, which no other Java producer does.
        config.write_text("retries=2147483647\nenable.idempotence=true\nlinger.ms=5\n")
        self._consumed, self._produced = folder / "consumed.txt", folder / "produced.txt"
        server = ("--bootstrap-server", bootstrap, "--topic", topic)
        self.consumer = kafka_java.spawn(
            f"{TOOLS}VerifiableConsumer",
            [*server, "--group-id", "g-java", "--verbose", "--command-config", str(kafka_java.CONSUMER_CONFIG)],
            self._consumed,
        )
        self.producer = kafka_java.spawn(
            f"{TOOLS}VerifiableProducer",
            [*server, "--throughput", "120", "--repeating-keys", "60", "--command-config", str(config)],
            self._produced,
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the two tools have said so far under ``name``."""
        lines = [line for path in (self._consumed, self._produced) for line in path.read_text().splitlines()]
        return [event for line in lines if line.startswith("{") and (event := json.loads(line))["name"] == name]

    def said(self) -> str:
        """The end of all it wrote, for a failed assertion."""
        paths = [one for path in (self._consumed, self._produced) for one in (path, path.with_suffix(".stderr"))]
        return "\n".join(path.read_text()[-1_000:] for path in paths)

    def wait_until_at_work(self) -> None:
        wait_until(lambda: len(self.events("record_data")) > 200, 60, self.said)

    def finish_and_judge(self, bootstrap: str, topic: str, since: float, until: float) -> None:
        """``since``, ``until``: seconds of the epoch between which no partition may pause for long."""
        end(self.producer)
        sent = [(event["partition"], event["offset"]) for event in self.events("producer_send_success")]
        wait_until(lambda: len(self.events("record_data")) >= len(sent), 30, self.said)
        end(self.consumer)
        assert self.events("producer_send_error") == []
        assert len(set(sent)) == len(sent)
        log = read_log(bootstrap, topic, PARTITIONS)
        assert sorted(log) == sorted(sent), "no record is there twice, and none that was not acknowledged"
        read = [(event["partition"], event["offset"]) for event in self.events("record_data")]
        assert sorted(read) == sorted(sent), "each was read once"
        for name, kind in (("p-java", "producer_send_success"), ("c-java", "record_data")):
            moments = defaultdict(list)
            for event in self.events(kind):
                moments[event["partition"]].append(event["timestamp"] / 1000)
            judge_pauses(name, moments, since, until)
        assert len(self.events("partitions_assigned")) == 1, "no rebalance"

    def kill(self) -> None:
        for process in (self.producer, self.consumer):
            process.kill()
            process.wait()


class Clients:
    """Idempotent producers and members of groups of their own, of librdkafka and aiokafka, on a topic of their own."""

    def __init__(self, world: World, group: str, folder: Path) -> None:
        self._bootstrap = world.bootstrap(group)
        self._topic = f"rolling-{group}"
        self._config = world.config[group]
        create_topic(self._bootstrap, self._topic, PARTITIONS, client=self._config)
        common = (self._bootstrap, self._topic)
        self.producers = [
            start_producer(
                folder, f"p-rdkafka-{group}", *common, PARTITIONS, rate=200, value_bytes=200, config=self._config
            ),
            start_producer(
                folder, f"p-aiokafka-{group}", *common, PARTITIONS, client="aiokafka", rate=100, config=self._config
            ),
        ]
        self.consumers = [
            start_consumer(folder, f"c-rdkafka-{group}", *common, f"g-rdkafka-{group}", config=self._config),
            start_consumer(
                folder, f"c-aiokafka-{group}", *common, f"g-aiokafka-{group}", client="aiokafka", config=self._config
            ),
        ]
        self.all = [*self.producers, *self.consumers]

    def wait_until_at_work(self) -> None:
        for consumer in self.consumers:
            wait_for_members([consumer], PARTITIONS, 60)

    def finish_and_judge(self, since: float, until: float) -> None:
        for producer in self.producers:
            producer.finish(60)
        recordings = Recordings([client.follow() for client in self.all])
        log = read_log(self._bootstrap, self._topic, PARTITIONS, config=self._config)
        self._wait_for_reads(recordings, log)
        for consumer in self.consumers:
            consumer.finish(60)
        print(recordings.counts())
        assert recordings.violations(log) == []
        for client in self.all:
            recording = client.recording
            assert recording.failed == [] and recording.errors == []
            assert len(recording.acknowledged) == len(recording.sent)
            moments = defaultdict(list)
            for at, _, partition, _ in recording.acknowledged:
                moments[partition].append(at)
            for event in recording.polls:
                if len(event) == 4:
                    moments[event[1]].append(event[0])
            judge_pauses(client.name, moments, since, until)
        for consumer in self.consumers:
            assignments = [event for event in consumer.recording.polls if len(event) == 2]
            assert len(assignments) == 1, "its group did not rebalance"

    def _wait_for_reads(self, recordings: Recordings, log: dict[tuple[int, int], bytes]) -> None:
        ends: dict[int, int] = defaultdict(int)
        for partition, offset in log:
            ends[partition] = max(ends[partition], offset + 1)
        deadline = time.monotonic() + 30
        while any(recordings.unread(one.recording.group or "", ends) for one in self.consumers):
            assert time.monotonic() < deadline, "a consumer is stuck"
            time.sleep(0.2)
            for client in self.all:
                client.follow()

    def kill(self) -> None:
        for client in self.all:
            client.kill()


def judge_pauses(name: str, moments: dict[int, list[float]], since: float, until: float) -> None:
    longest = pauses(moments, since, until)
    print(
        f"{name}: {sum(map(len, moments.values()))} records, longest pause of a partition {max(longest.values()):.2f} s"
    )
    assert len(longest) == PARTITIONS
    assert max(longest.values()) < PAUSE_SECONDS_MAX, (name, longest)


def test_librdkafka_aiokafka_and_java_go_on_while_every_agent_is_restarted(plaintext: World, tmp_path: Path) -> None:
    group, topic = "plaintext", "rolling-java"
    bootstrap = plaintext.bootstrap(group)
    create_topic(bootstrap, topic, PARTITIONS)
    java = Java(bootstrap, topic, tmp_path)
    clients = Clients(plaintext, group, tmp_path)
    try:
        clients.wait_until_at_work()
        java.wait_until_at_work()
        since, java_since = time.monotonic(), time.time()
        restart_all(plaintext.agents[group])
        until, java_until = time.monotonic(), time.time()
        clients.finish_and_judge(since, until)
        java.finish_and_judge(bootstrap, topic, java_since, java_until)
    finally:
        clients.kill()
        java.kill()


def test_clients_go_on_while_every_agent_with_tls_is_restarted(encrypted: World, tmp_path: Path) -> None:
    both = [Clients(encrypted, group, tmp_path) for group in encrypted.agents]
    try:
        for clients in both:
            clients.wait_until_at_work()
        since = time.monotonic()
        for one, other in zip(*encrypted.agents.values(), strict=True):
            restart_all([one, other])
        until = time.monotonic()
        for clients in both:
            clients.finish_and_judge(since, until)
    finally:
        for clients in both:
            clients.kill()


def wait_until(holds: Callable[[], bool], within_s: float, said: Callable[[], str]) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


def end(process: Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)
