"""Real clients over TLS: with and without certificates of their own, those that must not get in, new certificates."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError as KafkaPythonError

from tests.conftest import FAST_SETTINGS, on_reference
from tests.support.certificates import Authority, Pair
from tests.support.cluster import TidelogProcess
from tests.support.members import wait_until
from tests.tools import kafka_java
from tests.tools.require import require

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(on_reference(), reason="it starts brokers of its own"),
]

Unique = Callable[[str], str]
CHECKOUT = Path(__file__).resolve().parents[3]
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A broker and what a client needs for it: ``pair`` is None where none is asked for."""

    tidelog: TidelogProcess
    authority: Authority
    clients: Authority
    pair: Pair | None

    @property
    def bootstrap(self) -> str:
        return self.tidelog.bootstrap

    def failed(self) -> dict[str, int]:
        """Handshakes that failed, by reason."""
        name = "tidelog_agent_failed_tls_handshakes_total"
        found = {key: int(value) for key, value in self.tidelog.metrics().items() if key.startswith(name)}
        return {key.split('"')[1]: value for key, value in found.items()}

    def confluent(self, ca: Path | None = None, pair: Pair | None = None, **more: object) -> dict[str, Any]:
        """librdkafka's configuration; the right one unless told otherwise."""
        shown = pair or self.pair
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap,
            "security.protocol": "ssl",
            "ssl.ca.location": str(ca or self.authority.path),
            "log_level": 0,
            "linger.ms": 5,
        }
        if shown is not None:
            config |= {"ssl.certificate.location": str(shown.certificate), "ssl.key.location": str(shown.key)}
        return config | {name.replace("_", "."): value for name, value in more.items()}

    def python(self, ca: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(ca or self.authority.path))
        if self.pair is not None:
            context.load_cert_chain(self.pair.certificate, self.pair.key)
        return context

    def java(self, folder: Path) -> Path:
        """A file with the Java client's configuration."""
        lines = ["security.protocol=SSL", "ssl.truststore.type=PEM", f"ssl.truststore.location={self.authority.path}"]
        if self.pair is not None:
            keystore = folder / "keystore.pem"
            keystore.write_text(self.pair.key.read_text() + self.pair.certificate.read_text())
            lines += ["ssl.keystore.type=PEM", f"ssl.keystore.location={keystore}"]
        path = folder / "client.properties"
        path.write_text("\n".join(lines) + "\n")
        return path


@pytest.fixture(scope="module", params=["server certificate only", "client certificates too"])
def listener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """Most tests share these two. The second admits ``shipper`` and ``search`` only."""
    folder = tmp_path_factory.mktemp("tls")
    authority, clients = Authority(folder), Authority(folder, "clients")
    mutual = request.param == "client certificates too"
    settings = {**FAST_SETTINGS, **authority.issue("server").settings(clients.path if mutual else None)}
    if mutual:
        settings["ROUTING__PRINCIPALS"] = "shipper,search"
    with TidelogProcess(folder / "data", settings=settings) as tidelog:
        yield Listener(tidelog, authority, clients, clients.issue("shipper") if mutual else None)
        lines = tidelog.log().splitlines()
        assert [line for line in lines if '"level": "error"' in line or "Traceback" in line] == []


def _values(count: int = 60) -> list[bytes]:
    source = random.Random(count)
    return [source.randbytes(source.choice([10, 1_000, 30_000, 200_000])) for _ in range(count)]


def _deliver(producer: Producer, topic: str, values: list[bytes]) -> None:
    def on_delivery(error: KafkaError | None, _message: Message) -> None:
        assert error is None, error

    for value in values:
        producer.produce(topic, value, on_delivery=on_delivery)
    assert producer.flush(SECONDS) == 0


def test_confluent_kafka(listener: Listener, unique: Unique) -> None:
    topic, values = unique("tls-confluent"), _values()
    _deliver(Producer(listener.confluent(enable_idempotence=True)), topic, values)
    consumer = Consumer(listener.confluent(group_id=unique("group"), auto_offset_reset="earliest"))
    consumer.subscribe([topic])
    found: list[bytes | str | None] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < len(values):
        assert time.monotonic() < deadline
        found += [message.value() for message in consumer.consume(100, 0.2) if message.error() is None]
    consumer.close()
    assert sorted(found) == sorted(values)  # type: ignore[type-var]


async def test_aiokafka(listener: Listener, unique: Unique) -> None:
    topic, values = unique("tls-aiokafka"), _values()
    options: dict[str, Any] = {
        "bootstrap_servers": listener.bootstrap,
        "security_protocol": "SSL",
        "ssl_context": listener.python(),
    }
    producer = AIOKafkaProducer(enable_idempotence=True, max_request_size=1 << 20, **options)
    await producer.start()
    waiting = [await producer.send(topic, value) for value in values]
    await asyncio.gather(*waiting)
    await producer.stop()
    consumer = AIOKafkaConsumer(topic, group_id=unique("group"), auto_offset_reset="earliest", **options)
    await consumer.start()
    found: list[bytes] = []
    async with asyncio.timeout(SECONDS):
        while len(found) < len(values):
            for messages in (await consumer.getmany(timeout_ms=200)).values():
                found += [message.value for message in messages]
    await consumer.stop()
    assert sorted(found) == sorted(values)


def test_kafka_python(listener: Listener, unique: Unique) -> None:
    topic, values = unique("tls-kafka-python"), _values()
    options: dict[str, Any] = {
        "bootstrap_servers": listener.bootstrap,
        "security_protocol": "SSL",
        "ssl_cafile": str(listener.authority.path),
    }
    if listener.pair is not None:
        options |= {"ssl_certfile": str(listener.pair.certificate), "ssl_keyfile": str(listener.pair.key)}
    producer = KafkaProducer(**options)
    waiting = [producer.send(topic, value) for value in values]
    for one in waiting:
        one.get(SECONDS)
    producer.close()
    consumer = KafkaConsumer(topic, group_id=unique("group"), auto_offset_reset="earliest", **options)
    found: list[bytes] = []
    deadline = time.monotonic() + SECONDS
    while len(found) < len(values):
        assert time.monotonic() < deadline
        for messages in consumer.poll(timeout_ms=200).values():
            found += [message.value for message in messages]
    consumer.close()
    assert sorted(found) == sorted(values)


def test_kcat(listener: Listener, unique: Unique) -> None:
    require(shutil.which("kcat"), "kcat", "apt-get install kcat")
    topic = unique("tls-kcat")
    options = [f"-X{name}={value}" for name, value in listener.confluent().items() if name not in ("linger.ms",)]
    lines = [f"line {number} " + "x" * 2_000 for number in range(300)]

    def kcat(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["kcat", *options, *arguments], input=stdin, capture_output=True, text=True, timeout=40, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kcat("-P", "-t", topic, stdin="\n".join(lines) + "\n")
    assert sorted(kcat("-C", "-t", topic, "-e", "-q", "-o", "beginning").splitlines()) == sorted(lines)


@pytest.mark.slow
def test_java(listener: Listener, unique: Unique, tmp_path: Path) -> None:
    kafka_java.require_java_tools()
    topic, config = unique("tls-java"), str(listener.java(tmp_path))
    server = ("--bootstrap-server", listener.bootstrap, "--command-config", config)
    created = kafka_java.run("org.apache.kafka.tools.TopicCommand", *server, "--create", "--topic", topic)
    assert f"Created topic {topic}" in created
    printed = kafka_java.run(
        "org.apache.kafka.tools.ProducerPerformance",
        *(*server, "--topic", topic, "--num-records", "3000", "--record-size", "1000", "--throughput", "-1"),
        *("--command-property", "acks=all", "batch.size=500000"),
    )
    assert "3000 records sent" in printed
    printed = kafka_java.run(
        "org.apache.kafka.tools.ConsumerPerformance",
        *(*server, "--topic", topic, "--group", unique("group"), "--num-records", "3000"),
    )
    assert int(printed.strip().splitlines()[-1].split(", ")[4]) == 3000, printed


def test_the_command_line(listener: Listener, unique: Unique) -> None:
    topic = unique("tls-cli")
    options = ["--bootstrap", listener.bootstrap, "--tls-ca", str(listener.authority.path)]
    if listener.pair is not None:
        options += ["--tls-cert", str(listener.pair.certificate), "--tls-key", str(listener.pair.key)]

    def tidelog(*arguments: str, stdin: str = "", expected: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("tidelog")), *arguments],
            **{"input": stdin, "capture_output": True, "text": True, "timeout": 40, "check": False},
        )
        assert done.returncode == expected, done.stderr
        return done.stdout if expected == 0 else done.stderr

    tidelog("topic", "create", topic, *options)
    tidelog("produce", topic, *options, stdin="one\ntwo\n")
    read = tidelog("consume", topic, "--from-beginning", "--max-messages", "2", "--timeout", "10", *options)
    assert sorted(read.split()) == ["one", "two"]
    assert "describe" not in tidelog("group", "list", *options)
    assert "does it want TLS (--tls-ca)?" in tidelog("topic", "list", *options[:2], expected=1)


def _reaches(config: dict[str, Any]) -> bool:
    """Whether librdkafka gets an answer with ``config`` within a while."""
    with contextlib.suppress(KafkaException):
        AdminClient(config).list_topics(timeout=4)
        return True
    return False


async def test_clients_that_do_not_trust_the_agent(listener: Listener, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").path
    before = listener.failed().get("refused_by_client", 0)
    assert not _reaches(listener.confluent(stranger))
    aio = AIOKafkaProducer(
        bootstrap_servers=listener.bootstrap, security_protocol="SSL", ssl_context=listener.python(stranger)
    )
    with pytest.raises((KafkaConnectionError, ssl.SSLError)):
        await aio.start()
    await aio.stop()
    with pytest.raises((KafkaPythonError, ssl.SSLError)):
        KafkaProducer(
            bootstrap_servers=listener.bootstrap,
            **{"security_protocol": "SSL", "ssl_cafile": str(stranger), "bootstrap_timeout_ms": 3_000},
        )
    assert listener.failed()["refused_by_client"] > before
    assert _reaches(listener.confluent())


@pytest.mark.parametrize("listener", ["client certificates too"], indirect=True)
def test_clients_without_the_right_certificate(listener: Listener, tmp_path: Path) -> None:
    without = {
        name: value for name, value in listener.confluent().items() if "certificate" not in name and "key" not in name
    }
    before = listener.failed()
    for config, reason in (
        (without, "no_certificate"),
        (listener.confluent(pair=Authority(tmp_path, "stranger").issue("shipper")), "bad_certificate"),
        (
            listener.confluent(pair=listener.clients.issue("late", common_name="shipper", valid_days=-1)),
            "bad_certificate",
        ),
        (listener.confluent(pair=listener.clients.issue("mallory")), "not_admitted"),
    ):
        assert not _reaches(config)
        now = listener.failed()
        assert now[reason] > before.get(reason, 0)
        before = now
    assert _reaches(listener.confluent())
    assert _reaches(listener.confluent(pair=listener.clients.issue("another", dns=("search",))))
    assert listener.tidelog.log().count("tls_handshake_failed_not_admitted") <= 20


def test_an_agent_whose_certificate_has_expired(tidelog: Callable[..., TidelogProcess], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    process = tidelog(settings={**FAST_SETTINGS, **authority.issue("server", valid_days=-1).settings()})
    listener = Listener(process, authority, authority, None)
    assert not _reaches(listener.confluent())
    assert listener.failed()["refused_by_client"] > 0
    assert "certificate_expired" in process.log()
    assert process.metrics()["tidelog_agent_certificate_expiry_seconds"] < time.time()


def test_new_certificates_while_clients_are_connected(
    tidelog: Callable[..., TidelogProcess], tmp_path: Path, unique: Unique
) -> None:
    """The authority itself changes: who is connected notices nothing, who connects must know the new one."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    pair = old.issue("server")
    process = tidelog(settings={**FAST_SETTINGS, **pair.settings()})
    listener = Listener(process, old, old, None)
    topic = unique("tls-reload")
    producer = Producer(listener.confluent(reconnect_backoff_max_ms=60_000))
    _deliver(producer, topic, [b"before"])
    accepted = process.metrics()["tidelog_agent_tls_handshakes_total"]
    renewed = new.issue("server", valid_days=77)
    deadline = time.monotonic() + SECONDS
    while process.metrics()["tidelog_agent_certificate_expiry_seconds"] != renewed.expires_at:
        _deliver(producer, topic, [b"meanwhile"])
        assert time.monotonic() < deadline
    _deliver(producer, topic, _values(20))
    assert process.metrics()["tidelog_agent_tls_handshakes_total"] == accepted, "nobody had to connect again"
    assert not _reaches(listener.confluent())
    assert _reaches(listener.confluent(new.path))
    renewed.certificate.write_text("nonsense")
    deadline = time.monotonic() + SECONDS
    while "certificate_not_reloaded" not in process.log():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert _reaches(listener.confluent(new.path)), "the last good one is kept"
    assert process.metrics()["tidelog_agent_certificate_expiry_seconds"] == renewed.expires_at


def test_wrong_files_stop_the_start(tmp_path: Path) -> None:
    pair, other = Authority(tmp_path).issue("server"), Authority(tmp_path, "x").issue("other")
    for settings, words in (
        ({**pair.settings(), "TLS__KEY": str(other.key)}, f"tls.key = '{other.key}': it does not belong to"),
        ({**pair.settings(), "TLS__CERTIFICATE": str(tmp_path / "none")}, "tls.certificate = "),
        ({**pair.settings(), "TLS__CLIENT_CA": str(pair.key)}, "tls.client_ca = "),
        ({"TLS__CERTIFICATE": str(pair.certificate)}, "certificate and key go together"),
        ({**pair.settings(), "ROUTING__PRINCIPALS": "alice"}, "routing.principals admits clients by"),
    ):
        process = TidelogProcess(tmp_path / "data", settings=settings)
        process.spawn()
        assert process.process is not None
        assert process.process.wait(20) == 2
        told = [line for line in process.log().splitlines() if line.startswith("tidelog: ")]
        assert words in told[-1]


@pytest.mark.slow
@pytest.mark.timed
def test_ten_thousand_that_never_speak(tidelog: Callable[..., TidelogProcess], tmp_path: Path, unique: Unique) -> None:
    authority = Authority(tmp_path)
    process = tidelog(settings={**FAST_SETTINGS, **authority.issue("server").settings(), "TLS__HANDSHAKE_MS": "60000"})
    listener = Listener(process, authority, authority, None)
    topic = unique("tls-silent")
    producer = Producer(listener.confluent())
    _deliver(producer, topic, [b"first"])

    def slowest() -> float:
        """Of thirty produces of one client and five new clients."""
        worst = 0.0
        for number in range(30):
            began = time.monotonic()
            _deliver(producer, topic, [b"x" * 1_000])
            if number % 6 == 0:
                assert _reaches(listener.confluent())
            worst = max(worst, time.monotonic() - began)
        return worst

    quiet = slowest()
    before = _resident_bytes(process.pid)
    port = listener.bootstrap.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "benchmarks.load", "idle", "--port", port, "--connections", "10000"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as idle:
        assert idle.stdout is not None
        assert idle.stdout.readline().strip() == "open"
        # The kernel has taken them all; a busy agent may still be accepting.
        pending = "tidelog_agent_pending_tls_handshakes"
        wait_until(lambda: process.metrics()[pending] == 10_000, 30, lambda: f"{process.metrics()[pending]} pending")
        assert slowest() < max(1.0, 10 * quiet)
        assert _resident_bytes(process.pid) - before < 10_000 * 8_192, "as little as silent connections without TLS"
        idle.communicate("close\n", timeout=60)
    _deliver(producer, topic, [b"last"])
    assert process.log().count("tls_handshake_failed") <= 25


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no RssAnon for {pid}")
