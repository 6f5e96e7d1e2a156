"""Agent groups of one cluster: the plaintext group's clients and the VIP group's never meet the other's agents."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.agent_process import AgentProcess
from tests.support.certificates import Authority, Pair
from tests.support.metadata_process import MetadataProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS = {"GROUPS__INITIAL_REBALANCE_DELAY_MS": "100", "LOG__FORM": "json", "INGEST__LINGER_MS": "20"}
PARTITIONS = 12
ZONES = ("a", "b")
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Group:
    """A group's agents, one a zone, and how its clients connect: ``pair`` and ``ca`` for TLS."""

    name: str
    agents: list[AgentProcess]
    pair: Pair | None = None
    ca: Path | None = None

    @property
    def addresses(self) -> set[str]:
        return {agent.bootstrap for agent in self.agents}

    def confluent(self, **more: object) -> dict[str, Any]:
        config: dict[str, Any] = {
            "bootstrap.servers": ",".join(sorted(self.addresses)),
            "log_level": 0,
            "topic.metadata.refresh.interval.ms": 500,
            "reconnect.backoff.max.ms": 300,
        }
        if self.pair is not None:
            config |= {
                "security.protocol": "ssl",
                "ssl.ca.location": str(self.ca),
                "ssl.certificate.location": str(self.pair.certificate),
                "ssl.key.location": str(self.pair.key),
            }
        return config | {name.replace("_", "."): value for name, value in more.items()}

    def aiokafka(self) -> dict[str, Any]:
        options: dict[str, Any] = {"bootstrap_servers": sorted(self.addresses), "metadata_max_age_ms": 500}
        if self.pair is not None:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(self.pair.certificate, self.pair.key)
            options |= {"security_protocol": "SSL", "ssl_context": context}
        return options

    def total(self, metric: str) -> float:
        """Of the series of ``metric`` of all its agents that are running."""
        return sum(
            value
            for agent in self.agents
            if agent.running()
            for name, value in agent.metrics().items()
            if name == metric or name.startswith(metric + "{")
        )


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[tuple[Group, Group]]:
    """The plaintext and the VIP group. The latter speaks TLS and admits ``vip-client``, so a stray is told at once."""
    authority = Authority(tmp_path)
    vip_settings = {**authority.issue("server").settings(authority.path), "ROUTING__PRINCIPALS": "vip-client"}
    metadata = MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", SETTINGS)
    metadata.start()
    made = []
    for name, extra in (("plaintext", {}), ("vip", vip_settings)):
        agents = [
            AgentProcess(
                tmp_path,
                f"{name}-{zone}",
                [metadata.url],
                f"file://{tmp_path}/objects",
                zone=zone,
                group=name,
                settings={**SETTINGS, **extra},
            )
            for zone in ZONES
        ]
        made.append(agents)
    everybody = [agent for agents in made for agent in agents]
    for agent in everybody:
        agent.spawn()
    for agent in everybody:
        agent.wait_ready()
    yield Group("plaintext", made[0]), Group("vip", made[1], authority.issue("vip-client"), authority.path)
    for agent in everybody:
        agent.stop()
    metadata.stop()


def _create_topic(group: Group, topic: str) -> None:
    admin = AdminClient(group.confluent())
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(SECONDS)


def _told(group: Group, topic: str, client_id: str) -> tuple[set[str], set[int]]:
    """Where the group's agents send a client of this name: all addresses in the answer, and all leaders' ids."""
    answer = AdminClient(group.confluent(client_id=client_id)).list_topics(topic, timeout=SECONDS)
    brokers = {f"{broker.host}:{broker.port}" for broker in answer.brokers.values()}
    leaders = {partition.leader for partition in answer.topics[topic].partitions.values()}
    assert leaders <= set(answer.brokers), "every leader's address is in the answer"
    assert answer.controller_id in answer.brokers
    return brokers, leaders


def _coordinator(group: Group, name: str, client_id: str) -> str:
    admin = AdminClient(group.confluent(client_id=client_id))  # named: its answers come only while it is kept
    found = admin.describe_consumer_groups([name])[name].result(SECONDS)
    return f"{found.coordinator.host}:{found.coordinator.port}"


def _await(condition: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_answers_name_agents_of_the_clients_group_only(groups: tuple[Group, Group]) -> None:
    plaintext, vip = groups
    _create_topic(plaintext, "logs")
    ids: dict[str, set[int]] = {}
    for group in groups:
        by_zone = {agent.zone: agent.bootstrap for agent in group.agents}
        for zone in ZONES:
            _await(
                lambda group=group, zone=zone: _told(group, "logs", f"zone={zone}")[0] == {by_zone[zone]},  # noqa: B023
                f"{group.name} clients of zone {zone} are sent to their agent",
            )
        brokers, leaders = _told(group, "logs", "zone=nowhere")
        assert brokers == group.addresses
        ids[group.name] = leaders
        coordinators = {_coordinator(group, f"group-{number}", "zone=nowhere") for number in range(20)}
        assert coordinators == group.addresses
    assert not ids["plaintext"] & ids["vip"]
    # A zone whose agent is gone is served by the group's other zone, never by the other group's agent next door.
    for leaver, end in ((vip.agents[1], AgentProcess.kill), (plaintext.agents[0], AgentProcess.terminate)):
        group = vip if leaver in vip.agents else plaintext
        end(leaver)
        (left,) = (agent for agent in group.agents if agent is not leaver)
        deadline = time.monotonic() + SECONDS
        while True:
            brokers, _ = _told(group, "logs", f"zone={leaver.zone}")
            assert brokers <= group.addresses, "not even for a moment"
            if brokers == {left.bootstrap}:
                break
            assert time.monotonic() < deadline, f"they are still sent to {leaver.name}"
            time.sleep(0.1)
    assert _told(plaintext, "logs", "zone=a")[0] == {plaintext.agents[1].bootstrap}


@dataclass(slots=True)
class Traffic:
    """A group's own clients at work: a producer and a member of a consumer group, with librdkafka and with aiokafka."""

    group: Group
    topic: str
    acknowledged: int = 0
    read: int = 0
    problems: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        for work in (self._produce, self._consume, lambda: asyncio.run(self._aiokafka())):
            thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self.problems.append(f"{work}: {error!r}")

    def _produce(self) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.acknowledged += 1
            else:
                self.problems.append(str(error))

        producer = Producer(self.group.confluent(enable_idempotence=True, linger_ms=5))
        number = 0
        while not self._stop.is_set():
            for _ in range(50):
                producer.produce(self.topic, b"x" * 200, partition=number % PARTITIONS, on_delivery=delivered)
                number += 1
            producer.poll(0.05)
        if producer.flush(SECONDS):
            self.problems.append("not everything was answered")

    def _consume(self) -> None:
        consumer = Consumer(self.group.confluent(group_id=f"{self.group.name}-rdkafka", auto_offset_reset="earliest"))
        consumer.subscribe([self.topic])
        while not self._stop.is_set():
            self.read += sum(message.error() is None for message in consumer.consume(500, 0.2))
        consumer.close()

    async def _aiokafka(self) -> None:
        options = self.group.aiokafka()
        producer = AIOKafkaProducer(enable_idempotence=True, **options)
        group_id = f"{self.group.name}-aiokafka"
        consumer = AIOKafkaConsumer(self.topic, group_id=group_id, auto_offset_reset="earliest", **options)
        await producer.start()
        await consumer.start()
        while not self._stop.is_set():
            await producer.send_and_wait(self.topic, b"y" * 200)
            self.acknowledged += 1
            await consumer.getmany(timeout_ms=10)
        await consumer.stop()
        await producer.stop()


def _strays(groups: tuple[Group, Group]) -> dict[str, float]:
    """Connections that were no clients of the group they came to: neither side can talk to the other's agents. A client
    that gives a handshake up (it does, when another connection was faster) is no stray."""
    plaintext, vip = groups
    return {
        "at a VIP agent": vip.total('tidelog_agent_failed_tls_handshakes_total{reason="not_tls"}'),
        "at a plaintext agent": plaintext.total('tidelog_agent_closed_connections_total{reason="bad_frame"}'),
    }


def test_clients_stay_in_their_group_while_agents_come_and_go(groups: tuple[Group, Group]) -> None:
    plaintext, vip = groups
    for group in groups:
        _create_topic(group, f"{group.name}-logs")
    with Traffic(plaintext, "plaintext-logs") as open_traffic, Traffic(vip, "vip-logs") as vip_traffic:
        both = (open_traffic, vip_traffic)

        def all_go_on(what: str) -> None:
            before = [(traffic.acknowledged, traffic.read) for traffic in both]
            _await(
                lambda: all(
                    traffic.acknowledged > acknowledged + 200 and traffic.read > read + 200
                    for traffic, (acknowledged, read) in zip(both, before, strict=True)
                ),
                f"{what}: {[(t.acknowledged, t.read, t.problems[:2]) for t in both]}",
            )

        all_go_on("at first")
        for group in groups:
            for agent in group.agents:
                assert _strays(groups) == {"at a VIP agent": 0, "at a plaintext agent": 0}
                assert agent.terminate(30) == 0
                agent.start()
                all_go_on(f"after {agent.name} came back")
    assert _strays(groups) == {"at a VIP agent": 0, "at a plaintext agent": 0}
    assert [traffic.problems for traffic in both] == [[], []]
    assert vip.total("tidelog_agent_tls_handshakes_total") > 0
    assert "tls_handshake_failed" not in "".join(agent.log() for agent in vip.agents)
    assert "connection_closed_bad_frame" not in "".join(agent.log() for agent in plaintext.agents)


def test_a_stray_would_be_seen(groups: tuple[Group, Group]) -> None:
    """What the test above counts, when somebody does go astray; and topics are the same for all groups."""
    plaintext, vip = groups
    _create_topic(plaintext, "shared")
    producer = Producer(plaintext.confluent())
    for number in range(10):
        producer.produce("shared", str(number), partition=0)
    assert producer.flush(SECONDS) == 0
    consumer = Consumer(vip.confluent(group_id="vip", auto_offset_reset="earliest"))
    consumer.subscribe(["shared"])
    found: list[bytes] = []
    _await(
        lambda: found.extend(message.value() or b"" for message in consumer.consume(10, 0.5)) or len(found) == 10,
        "what one group's clients wrote is read by the other's",
    )
    consumer.close()
    for there, here in ((vip, plaintext), (plaintext, vip)):
        strayed = here.confluent() | {"bootstrap.servers": there.agents[0].bootstrap}
        with contextlib.suppress(KafkaException):
            AdminClient(strayed).list_topics(timeout=3)
            raise AssertionError("it got in")
    assert all(count > 0 for count in _strays(groups).values())
