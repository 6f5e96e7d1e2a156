"""The ``tidelog`` command as an operator types it, against a real Tidelog."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]
TIDELOG = str(Path(sys.executable).with_name("tidelog"))


class Cli:
    """Runs commands with ``TIDELOG_BOOTSTRAP`` set, as in a shell session."""

    def __init__(self, bootstrap: str) -> None:
        self.environment = {**os.environ, "TIDELOG_BOOTSTRAP": bootstrap}

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TIDELOG, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, f"{arguments} exited {done.returncode}: {done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command that goes on until it is told to stop; killed at the end whatever happens."""
        process = subprocess.Popen([TIDELOG, *arguments], stdout=subprocess.PIPE, env=self.environment, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self(*arguments, "--json", stdin=stdin))

    def fails(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, f"{arguments} exited {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def cli(bootstrap: str) -> Cli:
    return Cli(bootstrap)


def test_topics_from_creation_to_deletion(cli: Cli, unique: Unique) -> None:
    name = unique("cli-topic")
    created = cli.json("topic", "create", name, "--partitions", "3", "--replication-factor", "3")
    assert created == {"topic": name, "partitions": 3, "created": True}
    assert cli.json("topic", "create", name, "--if-not-exists")["created"] is False
    assert "TOPIC_ALREADY_EXISTS" in cli.fails("topic", "create", name)
    assert {"topic": name, "partitions": 3} in cli.json("topic", "list")
    assert name in cli("topic", "list")
    described = cli.json("topic", "describe", name)
    assert [row["partition"] for row in described["partitions"]] == [0, 1, 2]
    assert described["configs"] == {}
    assert name in cli("topic", "describe", name)
    assert cli.json("topic", "partitions", name, "5", "--dry-run")["before"] == 3
    assert cli("topic", "partitions", name, "4") == f"{name} has 4 partitions\n"
    assert "would not be an increase" in cli.fails("topic", "partitions", name, "3")
    assert {"topic": name, "partitions": 4} in cli.json("topic", "list")
    assert cli("topic", "delete", name) == f"{name} deleted\n"
    assert "UNKNOWN_TOPIC" in cli.fails("topic", "describe", name)
    assert "UNKNOWN_TOPIC" in cli.fails("topic", "delete", name)


def test_topic_configs_are_set_unset_and_refused(cli: Cli, unique: Unique) -> None:
    name = unique("cli-config")
    cli("topic", "create", name, "--config", "cleanup.policy=compact", "--config", "retention.ms=60000")
    assert cli.json("topic", "describe", name)["configs"] == {"cleanup.policy": "compact", "retention.ms": "60000"}
    configs = cli.json("topic", "config", name, "--set", "max.message.bytes=2000", "--unset", "retention.ms")
    assert configs["max.message.bytes"] == {"value": "2000", "source": "set"}
    assert configs["retention.ms"] == {"value": "604800000", "source": "default"}
    assert "Invalid value soon" in cli.fails("topic", "config", name, "--set", "retention.ms=soon")
    assert "no.such" in cli.fails("topic", "config", name, "--set", "no.such=1")
    assert "no.such" in cli.fails("topic", "create", unique("x"), "--config", "no.such=1")
    assert cli.json("topic", "config", name)["max.message.bytes"]["value"] == "2000"
    after = ("topic", "config", name, "--set", "max.message.bytes=3000")
    assert [line.split()[0] for line in cli(*after).splitlines()[1:]] == ["cleanup.policy", "max.message.bytes"]
    assert "segment.bytes" in cli(*after, "--all")


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_lines_in_lines_out(compression: str, cli: Cli, unique: Unique) -> None:
    name = unique(f"cli-{compression}")
    lines = [f"k{number % 3}:line {number} of é" for number in range(100)]
    report = cli.json(
        "produce", name, "--key-separator", ":", "--compression", compression, stdin="\n".join(lines) + "\n"
    )
    assert report == {"topic": name, "acknowledged": 100, "failed": 0}
    text = cli("consume", name, "--from-beginning", "--max-messages", "100", "--timeout", "20", "--key-separator", ":")
    assert sorted(text.splitlines()) == sorted(lines)
    rows = [
        json.loads(line)
        for line in cli("consume", name, "--from-beginning", "--max-messages", "100", "--json").splitlines()
    ]
    by_key: dict[str, list[str]] = {}
    for row in rows:
        by_key.setdefault(row["key"], []).append(f"{row['key']}:{row['value']}")
    for key, found in by_key.items():
        assert found == [line for line in lines if line.startswith(f"{key}:")], "the order within a key"


def test_produce_without_acknowledgements_and_to_a_partition(cli: Cli, unique: Unique) -> None:
    name = unique("cli-acks")
    cli("topic", "create", name, "--partitions", "2")
    for acks in ("0", "1", "all"):
        cli("produce", name, "--acks", acks, "--partition", "1", stdin=f"{acks}\n")
    text = cli("consume", name, "--from-beginning", "--max-messages", "3", "--timeout", "20")
    assert sorted(text.split()) == ["0", "1", "all"]
    assert [row["records"] for row in cli.json("topic", "describe", name)["partitions"]] == [0, 3]


def test_a_group_keeps_its_place_and_can_be_reset(cli: Cli, unique: Unique) -> None:
    name, group = unique("cli-group"), unique("group")
    cli("topic", "create", name, "--partitions", "1")
    cli("produce", name, stdin="".join(f"{number}\n" for number in range(10)))
    first = cli("consume", name, "--group", group, "--from-beginning", "--max-messages", "4", "--timeout", "20")
    assert first.split() == ["0", "1", "2", "3"]
    described = cli.json("group", "describe", group)
    assert (described["state"], described["members"]) == ("Empty", [])
    assert described["offsets"] == [{"topic": name, "partition": 0, "offset": 4, "high_watermark": 10, "lag": 6}]
    rest = cli("consume", name, "--group", group, "--max-messages", "6", "--timeout", "20")
    assert rest.split() == [str(number) for number in range(4, 10)]
    assert {"group": group, "state": "Empty"} in cli.json("group", "list")

    dry = cli.json("group", "reset", group, "--topic", name, "--to-earliest", "--dry-run")
    assert dry["offsets"] == [{"topic": name, "partition": 0, "before": 10, "after": 0}]
    assert cli.json("group", "describe", group)["offsets"][0]["offset"] == 10
    assert dry["out_of_range"] == []
    beyond = cli.run("group", "reset", group, "--topic", name, "--to-offset", "99", "--dry-run", "--json")
    assert beyond.stderr == f"tidelog: {name}[0] has offsets 0 to 10: 10 instead of 99\n"
    assert json.loads(beyond.stdout)["out_of_range"] == [
        {"partition": 0, "requested": 99, "first": 0, "last": 10, "after": 10}
    ]
    for option, offset in (
        (["--to-earliest"], 0),
        (["--to-offset", "7"], 7),
        (["--to-offset", "99"], 10),
        (["--to-time", "2001-01-01T00:00:00Z"], 0),
        (["--to-time", "2200-01-01"], 10),
        (["--to-latest"], 10),
    ):
        cli("group", "reset", group, "--topic", name, *option)
        assert cli.json("group", "describe", group)["offsets"][0]["offset"] == offset, option
    assert "no such topic" in cli.fails("group", "reset", group, "--topic", unique("absent"), "--to-latest")
    assert "no partition 5" in cli.fails("group", "reset", group, "--topic", name, "--partition", "5", "--to-latest")
    assert "no such consumer group" in cli.fails("group", "describe", unique("absent"))


def test_a_group_with_members_shows_them_and_is_not_reset(cli: Cli, unique: Unique) -> None:
    name, group = unique("cli-live"), unique("group")
    cli("topic", "create", name, "--partitions", "1")
    cli("produce", name, stdin="one\n")
    with cli.running("consume", name, "--group", group, "--from-beginning") as consumer:
        assert consumer.stdout is not None
        assert consumer.stdout.readline() == "one\n"
        described = cli.json("group", "describe", group)
        assert described["state"] == "Stable"
        assert [member["partitions"] for member in described["members"]] == [[f"{name}[0]"]]
        assert "still has members" in cli.fails("group", "reset", group, "--topic", name, "--to-earliest")
        assert "NON_EMPTY_GROUP" in cli.fails("group", "delete", group)
        consumer.send_signal(signal.SIGINT)
        assert consumer.wait(20) == 0
    assert cli.json("group", "describe", group)["offsets"][0]["offset"] == 1, "what was printed is committed"
    absent = cli.run("group", "delete", group, "absent", "--json")
    assert json.loads(absent.stdout) == [{"group": group, "deleted": True}, {"group": "absent", "deleted": False}]
    assert (absent.returncode, "no such consumer group" in absent.stderr) == (1, True)
    assert "no such consumer group" in cli.fails("group", "describe", group)


def test_consume_waits_for_new_records_without_a_group(cli: Cli, unique: Unique) -> None:
    name = unique("cli-tail")
    cli("topic", "create", name, "--partitions", "1")
    cli("produce", name, stdin="old\n")
    with cli.running("consume", name, "--max-messages", "1") as consumer:
        deadline = time.monotonic() + 30
        while consumer.poll() is None and time.monotonic() < deadline:
            cli("produce", name, stdin="new\n")
        assert consumer.wait(20) == 0
        assert consumer.stdout is not None
        assert consumer.stdout.read() == "new\n"


def test_consume_says_when_fewer_came_than_asked_for(cli: Cli, unique: Unique) -> None:
    name = unique("cli-few")
    cli("topic", "create", name)
    cli("produce", name, stdin="one\n")
    done = cli.run("consume", name, "--from-beginning", "--max-messages", "2", "--timeout", "4")
    assert (done.returncode, done.stdout) == (1, "one\n")
    assert "1 of 2 records" in done.stderr
    assert "UNKNOWN_TOPIC" in cli.fails("consume", unique("absent"))


def test_a_record_too_large_is_reported(cli: Cli, unique: Unique) -> None:
    name = unique("cli-large")
    cli("topic", "create", name, "--config", "max.message.bytes=200")
    done = cli.run("produce", name, stdin="x" * 1_000 + "\n")
    assert done.returncode == 1
    assert "1 record failed" in done.stderr
    assert "MSG_SIZE_TOO_LARGE" in done.stderr


def test_a_closed_pipe_ends_consume_quietly(cli: Cli, unique: Unique) -> None:
    name = unique("cli-pipe")
    cli("produce", name, stdin="line\n" * 20_000)
    done = subprocess.run(
        ["/bin/sh", "-c", f"'{TIDELOG}' consume {name} --from-beginning --timeout 20 | head -n 1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=cli.environment,
    )
    assert (done.stdout, done.stderr) == ("line\n", "")
