import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runtime.settings import Settings
from tidelog import cli
from tidelog.client import key_values, show_table

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
    for command in ("up", "demo", "topic", "group", "produce", "consume"):
        assert command in text
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


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--kafka", "9092"], {}, ["listen.kafka = '9092'", "host:port"]),
        (["--storage", "ftp://x"], {}, ["storage = 'ftp://x'"]),
        (["--set", "ingest.linger=1"], {}, ["ingest.linger", "no such setting"]),
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

    monkeypatch.setattr("tidelog.topic.admin_client", lambda _bootstrap: None)
    monkeypatch.setattr("tidelog.topic._topics", lambda _admin: {"b": Topic(4), "a": Topic(1)})
    result = invoke("topic", "list", "--json")
    assert json.loads(result.stdout) == [{"topic": "a", "partitions": 1}, {"topic": "b", "partitions": 4}]
