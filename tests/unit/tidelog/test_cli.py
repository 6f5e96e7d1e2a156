import io
import json
import os
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient, NewTopic
from typer.testing import CliRunner

from runtime.settings import Settings, SettingsError
from tests.support.certificates import Authority, Pair
from tidelog import cli, records
from tidelog.agent import metadata_addresses
from tidelog.client import OutageNotice, counted, failures_reported, key_values, show_table
from tidelog.connecting import Cluster, unreachable

runner = CliRunner()


@pytest.fixture(autouse=True)
def _only_our_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TIDELOG_"):
            monkeypatch.delenv(name)


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def invoke(*arguments: str, text: str = "") -> Any:
    return runner.invoke(cli.app, list(arguments), input=text)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What ``tidelog up`` would have run with."""
    found: list[Settings] = []

    def run(settings: Settings, *_: object) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr("tidelog.up.run", run)
    return found


def test_help_names_every_command_and_the_version_is_printed() -> None:
    text = invoke("--help").stdout
    listed = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    assert listed == [
        "up",
        "agent",
        "metadata",
        "cluster",
        "demo",
        "topic",
        "produce",
        "consume",
        "group",
        "segment",
        "fsck",
        "restore",
    ]
    assert invoke("--version").stdout.startswith("tidelog 0.")


def test_up_takes_its_settings_from_the_flags(tmp_path: Path, started: list[Settings]) -> None:
    config = tmp_path / "t.toml"
    config.write_text('[listen]\nkafka = "h:1"\nhttp = "h:2"\n[ingest]\nlinger_ms = 7\n')
    result = invoke(
        *("up", "--kafka", "127.0.0.1:0", "--data", str(tmp_path), "--storage", "memory://"),
        *("--metadata", "sqlite:///x", "--config", str(config), "--set", "ingest.uploads_max=3", "--set", "zone=b"),
    )
    assert result.exit_code == 0, result.output
    (settings,) = started
    assert (settings.listen.kafka, settings.listen.http) == ("127.0.0.1:0", "h:2")
    assert (settings.data, settings.storage, settings.metadata) == (tmp_path, "memory://", "sqlite:///x")
    assert (settings.ingest.linger_ms, settings.ingest.uploads_max, settings.zone) == (7, 3, "b")


def test_agent_takes_its_settings_from_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Settings] = []
    monkeypatch.setattr("tidelog.agent.run", lambda settings, *_: found.append(settings) or 0)
    result = invoke(
        *("agent", "--metadata", "http://m1:8090,http://m2:8090", "--storage", "s3://logs", "--zone", "b"),
        *("--group", "vip", "--kafka", "0.0.0.0:9092", "--advertise", "agent-1:9092", "--http", "0.0.0.0:8080"),
        *("--roles", "proxy", "--set", "drain_ms=9000"),
    )
    assert result.exit_code == 0, result.output
    (settings,) = found
    assert (settings.metadata, settings.storage) == ("http://m1:8090,http://m2:8090", "s3://logs")
    assert (settings.zone, settings.group, settings.roles, settings.drain_ms) == ("b", "vip", ("proxy",), 9_000)
    assert (settings.listen.kafka, settings.listen.advertise) == ("0.0.0.0:9092", "agent-1:9092")
    assert metadata_addresses(settings) == ["http://m1:8090", "http://m2:8090"]


@pytest.mark.parametrize(
    "metadata", [None, "sqlite:///x", "http://m1", "http://m1:port", "http://m1:1,m2:2", "http://m1:1/rpc", ","]
)
def test_an_agent_needs_the_addresses_of_metadata_processes(metadata: str | None) -> None:
    with pytest.raises(SettingsError, match="http://host:port of the metadata processes"):
        metadata_addresses(Settings.model_construct(metadata=metadata))


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--kafka", "9092"], {}, ["listen.kafka = '9092' (from --kafka)", "host:port"]),
        (["--storage", "s3://Not_A_Bucket"], {}, ["storage = 's3://Not_A_Bucket' (from --storage)", "bucket name"]),
        (["--storage", "ftp://x"], {}, ["storage = 'ftp://x'"]),
        (
            ["--set", "ingest.linger=1"],
            {},
            ["ingest.linger (from --set)", "no such setting; did you mean ingest.linger_ms"],
        ),
        (["--set", "ingest.linger_ms=x"], {}, ["ingest.linger_ms = 'x'"]),
        (["--config", "/nowhere/t.toml"], {}, ["--config", "/nowhere/t.toml"]),
        ([], {"TIDELOG_LINGER_MS": "5"}, ["TIDELOG_LINGER_MS", "did you mean TIDELOG_INGEST__LINGER_MS"]),
        ([], {"TIDELOG_MEMORY__CACHE_SHARE": "2"}, ["memory.cache_share = '2'", "TIDELOG_MEMORY__CACHE_SHARE"]),
    ],
)
def test_a_wrong_setting_stops_the_start_with_2_and_names_itself(
    arguments: list[str],
    environment: dict[str, str],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    started: list[Settings],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = invoke("up", *arguments)
    assert result.exit_code == 2
    assert started == []
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["topic", "list"],
        ["topic", "create", "t"],
        ["topic", "describe", "t"],
        ["topic", "delete", "t"],
        ["topic", "config", "t"],
        ["group", "list"],
        ["group", "describe", "g"],
        ["group", "reset", "g", "--topic", "t", "--to-latest"],
        ["produce", "t"],
        ["consume", "t"],
    ],
)
def test_a_cluster_out_of_reach_is_one_clear_line(arguments: list[str], nobody: str) -> None:
    result = invoke(*arguments, "--bootstrap", nobody)
    assert result.exit_code == 1
    assert result.stderr.startswith("tidelog: cannot reach the cluster (--bootstrap): ")
    assert nobody in result.stderr
    assert len(result.stderr.splitlines()) == 1


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """The address of a server that answers the first bytes of every connection and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer(connection.recv(1024)))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def as_kafka(request: bytes) -> bytes:
    return struct.pack(">i", 10) + request[8:12] + bytes(6)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x0a"])
def test_a_port_that_is_not_kafkas_is_told_from_one_where_nobody_listens(answer: bytes, nobody: str) -> None:
    with answering(lambda _request: answer) as address:
        result = invoke("topic", "list", "--bootstrap", address)
        assert result.exit_code == 1
        assert f"{address} accepts connections but does not answer as Kafka; is it the HTTP port" in result.stderr
        assert f"nothing listens at {nobody}" in str(unreachable(Cluster(f"{address}, {nobody}")))
    with answering(as_kafka) as address:
        assert unreachable(Cluster(f"{nobody},{address}")) is None


@pytest.fixture
def tls_listener(tmp_path: Path) -> Iterator[tuple[str, Authority, Pair]]:
    """The address of a listener that takes clients of its authority only and answers as Kafka; a client's pair."""
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.path))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(server.certificate, server.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
                    names = dict(secure.getpeercert()["subject"][0])  # type: ignore[index, arg-type]
                    request = secure.recv(1024)
                    if names["commonName"] != "mallory":
                        secure.sendall(as_kafka(request))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", authority, client
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_what_is_wrong_with_tls_is_said(tls_listener: tuple[str, Authority, Pair], tmp_path: Path) -> None:
    address, authority, client = tls_listener
    stranger = Authority(tmp_path, "stranger")
    foreign, mallory = stranger.issue("foreign"), authority.issue("mallory")

    def problem(*options: object) -> str:
        pairs = zip(options[::2], options[1::2], strict=True)
        return str(unreachable(Cluster(address, **{str(name): Path(str(path)) for name, path in pairs})))

    shown = ("tls_cert", client.certificate, "tls_key", client.key)
    assert problem("tls_ca", authority.path, *shown) == "None"
    assert "does it want TLS (--tls-ca)?" in problem()
    assert "its certificate is not to be trusted: " in problem("tls_ca", stranger.path, *shown)
    assert "refuses this client's TLS" in problem("tls_ca", authority.path)
    foreign_shown = ("tls_cert", foreign.certificate, "tls_key", foreign.key)
    assert "refuses this client's TLS" in problem("tls_ca", authority.path, *foreign_shown)
    mallory_shown = ("tls_cert", mallory.certificate, "tls_key", mallory.key)
    assert "hangs up after the TLS handshake" in problem("tls_ca", authority.path, *mallory_shown)
    with answering(as_kafka) as plaintext:
        assert "does not speak TLS" in str(unreachable(Cluster(plaintext, tls_ca=authority.path)))


def test_wrong_files_for_tls_name_their_option(nobody: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.issue("one"), authority.issue("two")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    for options, words in (
        (["--tls-ca", "missing"], "--tls-ca = 'missing': there is no such file"),
        (["--tls-ca", str(nonsense)], f"--tls-ca = '{nonsense}': not a file of CAs in PEM"),
        (["--tls-cert", str(pair.certificate)], "--tls-cert and --tls-key go together"),
        (["--tls-cert", str(pair.certificate), "--tls-key", str(other.key)], "not a certificate and its key"),
    ):
        result = invoke("topic", "list", "--bootstrap", nobody, *options)
        assert result.exit_code == 1
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_tls_is_passed_on_to_librdkafka() -> None:
    assert Cluster("a:1").librdkafka_config() == {"bootstrap.servers": "a:1"}
    assert Cluster("a:1", Path("ca"), Path("cert"), Path("key")).librdkafka_config() == {
        "bootstrap.servers": "a:1",
        "security.protocol": "ssl",
        "ssl.ca.location": "ca",
        "ssl.certificate.location": "cert",
        "ssl.key.location": "key",
    }


class HandClock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_an_outage_that_lasts_is_said_once_and_the_next_one_again(
    nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = HandClock()
    outage = OutageNotice(Cluster(nobody), cast(Any, clock))
    clock.seconds += 100
    outage.look()
    outage.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    outage.look()
    assert capsys.readouterr().err == "", "it may be back in a moment"
    for _ in range(3):
        clock.seconds += 5
        outage.look()
    said = capsys.readouterr().err
    assert f"nothing listens at {nobody}" in said
    assert len(said.splitlines()) == 1
    with answering(as_kafka) as address:
        outage._cluster = Cluster(address)
        clock.seconds += 5
        outage.look()
    outage.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    clock.seconds += 5
    outage.look()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_closed_standard_streams_are_one_clear_line(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(typer.Exit), _said_on(monkeypatch, "stderr") as said:
        records.produce(topic="t", bootstrap=nobody)
    assert "standard input is closed" in said.getvalue()
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(typer.Exit), _said_on(monkeypatch, "stderr") as said:
        records.consume(topic="t", bootstrap=nobody)
    assert "standard output is closed" in said.getvalue()


@contextmanager
def _said_on(monkeypatch: pytest.MonkeyPatch, stream: str) -> Iterator[io.StringIO]:
    said = io.StringIO()
    monkeypatch.setattr(sys, stream, said)
    yield said


def test_what_confluent_kafka_refuses_itself_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, failures_reported():
        AdminClient({}).create_topics([NewTopic("t", 100_001)])
    assert ended.value.exit_code == 1
    assert "num_partitions out of expected range" in capsys.readouterr().err


def test_one_is_not_many() -> None:
    assert [counted(count, "record") for count in (0, 1, 2_000)] == ["0 records", "1 record", "2,000 records"]


def test_bootstrap_comes_from_the_environment_and_must_be_an_address(
    nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDELOG_BOOTSTRAP", nobody)
    assert nobody in invoke("topic", "list").stderr
    monkeypatch.setenv("TIDELOG_BOOTSTRAP", "9092")
    result = invoke("topic", "list")
    assert result.exit_code == 1
    assert "--bootstrap = '9092': not host:port" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["topic", "create", "t", "--config", "retention.ms"],
        ["topic", "create", "t", "--partitions", "1000000"],
        ["topic", "create", "t", "--replication-factor", "100000"],
        ["topic", "config", "t", "--set", "=5"],
        ["group", "reset", "g", "--topic", "t"],
        ["group", "reset", "g", "--topic", "t", "--to-earliest", "--to-offset", "3"],
        ["group", "reset", "g", "--topic", "t", "--to-time", "yesterday"],
        ["group", "reset", "g", "--to-earliest"],
        ["produce", "t", "--acks", "2"],
        ["produce", "t", "--compression", "brotli"],
        ["consume", "t", "--max-messages", "0"],
        ["demo", "--seconds", "1"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_key_values() -> None:
    assert key_values("--config", ["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}


def test_tables_are_plain_and_uncut_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "count"), [("a" * 150, 5), ("[bold]b", None)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["name", "count"], ["a" * 150, "5"], ["[bold]b", "-"]]


def test_json_tables_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    class Topic:
        def __init__(self, count: int) -> None:
            self.partitions = dict.fromkeys(range(count))

    monkeypatch.setattr("tidelog.topic.admin_client", lambda _cluster: None)
    monkeypatch.setattr("tidelog.topic._topics", lambda _admin: {"b": Topic(4), "a": Topic(1)})
    result = invoke("topic", "list", "--json")
    assert json.loads(result.stdout) == [{"topic": "a", "partitions": 1}, {"topic": "b", "partitions": 4}]
