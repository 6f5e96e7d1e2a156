"""Members of consumer groups as processes: what each has been assigned and has read, and ways to end them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tools import kafka_java, kafkajs

CHECKOUT = Path(__file__).resolve().parents[2]


class Member:
    """One process. Its events arrive on a thread; read the attributes at any time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.assignment: frozenset[int] = frozenset()
        self.assignments: list[frozenset[int]] = []
        self.records: list[tuple[int, int, str]] = []
        self.errors: list[str] = []
        self.output: list[str] = []
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment) if environment is not None else None,
            cwd=CHECKOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line.rstrip())
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if "assigned" in event:
            self._change(self.assignment | set(event["assigned"]))
        elif "assignment" in event:
            self._change(event["assignment"])
        elif "revoked" in event:
            self._change(self.assignment - set(event["revoked"]))
        elif "record" in event:
            partition, offset, value = event["record"]
            self.records.append((partition, offset, value))
        elif "error" in event:
            self.errors.append(event["error"])
        # Kafka's own VerifiableConsumer:
        elif event.get("name") == "partitions_assigned":
            self._change(self.assignment | {entry["partition"] for entry in event["partitions"]})
        elif event.get("name") == "partitions_revoked":
            self._change(self.assignment - {entry["partition"] for entry in event["partitions"]})
        elif event.get("name") == "record_data":
            self.records.append((event["partition"], event["offset"], event["value"]))

    def _change(self, assignment: Sequence[int] | frozenset[int] | set[int]) -> None:
        self.assignment = frozenset(assignment)
        self.assignments.append(self.assignment)

    def leave(self, within_s: float = 15) -> None:
        """SIGTERM: it leaves the group and ends."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(within_s)
        self._reader.join(5)

    def kill(self) -> None:
        """kill -9: the group hears nothing of it."""
        self.process.kill()
        self.process.wait()
        self._reader.join(5)


def start_member(
    client: str, bootstrap: str, group: str, topic: str, config: Mapping[str, str] | None = None
) -> Member:
    """A member that runs ``client``; ``config`` are extra settings in that client's own names."""
    settings = dict(config or {})
    if client == "java":
        return Member(_java_command(bootstrap, group, topic, settings))
    if client == "kafkajs":
        command = kafkajs.command("consume.js", bootstrap, group, topic, json.dumps(settings))
        return Member(command, kafkajs.environment())
    command = [sys.executable, "-m", "tests.support.member_main", client, bootstrap, group, topic]
    for name, value in settings.items():
        command += ["--config", f"{name}={value}"]
    return Member(command, {**os.environ, "PYTHONUNBUFFERED": "1"})


def _java_command(bootstrap: str, group: str, topic: str, settings: dict[str, str]) -> list[str]:
    arguments = ["--bootstrap-server", bootstrap, "--group-id", group, "--topic", topic, "--verbose"]
    arguments += ["--enable-autocommit", "--reset-policy", "earliest"]
    arguments += ["--command-config", str(kafka_java.CONSUMER_CONFIG)]
    arguments += ["--session-timeout", settings.get("session.timeout.ms", "2000")]
    if "group.instance.id" in settings:
        arguments += ["--group-instance-id", settings["group.instance.id"]]
    if "partition.assignment.strategy" in settings:
        arguments += ["--assignment-strategy", settings["partition.assignment.strategy"]]
    return kafka_java.command("org.apache.kafka.tools.VerifiableConsumer", *arguments)


def wait_until(condition: Callable[[], object], within_s: float, what: Callable[[], str]) -> None:
    """Poll until ``condition()`` is true; fail with ``what()`` after ``within_s``."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what()}"
        time.sleep(0.02)


def wait_for_split(members: Sequence[Member], partition_count: int, within_s: float = 20) -> None:
    """Wait until the members hold every partition exactly once and each holds its fair share."""

    def split() -> bool:
        assert all(member.process.poll() is None for member in members), f"a member ended:\n{seen()}"
        held = [partition for member in members for partition in member.assignment]
        sizes = [len(member.assignment) for member in members]
        return sorted(held) == list(range(partition_count)) and max(sizes) - min(sizes) <= 1

    def seen() -> str:
        return "\n".join(
            f"{sorted(member.assignment)} exit={member.process.poll()} {member.errors} {member.output[-3:]}"
            for member in members
        )

    wait_until(split, within_s, seen)
