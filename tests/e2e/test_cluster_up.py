"""``tidelog cluster up`` and ``status`` with real processes: what they say and restart, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from tests.support.members import wait_until
from tidelog.cluster.plan import METADATA_PORTS

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TIDELOG = str(Path(sys.executable).with_name("tidelog"))


class Up:
    """One ``tidelog cluster up`` and what it has printed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.data = folder / "data"
        self._out = folder / "out"
        command = [TIDELOG, "cluster", "up", "--data", str(self.data), "--kafka-port", "0", *arguments]
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TIDELOG_GROUPS__INITIAL_REBALANCE_DELAY_MS": "100"},
            )

    def text(self) -> str:
        return self._out.read_text()

    def wait_for(self, words: str, count: int = 1, within_s: float = 60) -> None:
        wait_until(
            lambda: self.text().count(words) >= count or self.process.poll() is not None,
            within_s,
            lambda: f"{words!r} in:\n{self.text()}",
        )
        assert self.text().count(words) >= count, self.text()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "cluster.json").read_text())
        return found

    def pids(self) -> list[int]:
        state = self.state()
        return [process["pid"] for process in (*state["metadata"], *state["agents"])]

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            [TIDELOG, "cluster", "status", "--data", str(self.data), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@contextmanager
def up(folder: Path, *arguments: str) -> Iterator[Up]:
    one = Up(folder, *arguments)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _exchange(bootstrap_in: str, bootstrap_out: str, value: str, out: dict[str, Any] | None = None) -> None:
    """Produce through one agent, consume through another, whose clients are configured with ``out``."""
    producer = Producer({"bootstrap.servers": bootstrap_in, "log_level": 0})
    failures: list[object] = []
    producer.produce("logs", value, on_delivery=lambda error, _: failures.append(error) if error else None)
    assert producer.flush(30) == 0
    assert failures == []
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_out,
            "group.id": f"reader-{value}",
            "auto.offset.reset": "earliest",
            "log_level": 0,
            **(out or {}),
        }
    )
    consumer.subscribe(["logs"])
    seen: list[bytes | None] = []
    deadline = time.monotonic() + 30
    while value.encode() not in seen:
        assert time.monotonic() < deadline, seen
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            seen.append(message.value())
    consumer.close()


def test_a_cluster_serves_restarts_who_dies_and_stops_in_order(tmp_path: Path) -> None:
    with up(tmp_path, "--zones", "a,b", "--groups", "plaintext,tls") as cluster:
        cluster.wait_for("Ctrl-C drains and stops everything.")
        text = cluster.text()
        assert "2 zones, 2 groups, 4 agents, 2 metadata processes" in text
        state = cluster.state()
        for process in (*state["metadata"], *state["agents"]):
            assert f"{process['name']} is ready" in text
            assert Path(process["log"]).stat().st_size > 0
        kafka = {(agent["zone"], agent["group"]): agent["kafka"] for agent in state["agents"]}
        assert set(kafka) == {(zone, group) for zone in "ab" for group in ("plaintext", "tls")}
        for address in kafka.values():
            assert address in text
        trusting = {"security.protocol": "ssl", "ssl.ca.location": state["ca"]}
        assert state["ca"] in text
        _exchange(kafka["a", "plaintext"], kafka["b", "tls"], "first", trusting)

        found = cluster.status()
        assert sorted(process["role"] for process in found["metadata"]) == ["leader", "standby"]
        assert [agent["condition"] for agent in found["agents"]] == ["ready"] * 4
        assert {agent["partitions_led"] for agent in found["agents"]} == {4}, "each is alone in its zone and group"
        assert {agent["kafka"] for agent in found["agents"]} == set(kafka.values())

        (leader,) = [
            process["pid"]
            for process in state["metadata"]
            if {"url": f"http://{process['http']}", "role": "leader"}.items()
            <= next(one for one in found["metadata"] if process["http"] in one["url"]).items()
        ]
        victim = next(agent for agent in state["agents"] if agent["kafka"] == kafka["a", "plaintext"])
        for pid in (leader, victim["pid"]):
            os.kill(pid, signal.SIGKILL)
        cluster.wait_for("was ended by SIGKILL", 2, 5)
        cluster.wait_for("is started again in 1 s", 2)
        cluster.wait_for("is ready again", 2)
        _exchange(kafka["a", "plaintext"], kafka["b", "tls"], "second", trusting)
        assert sorted(process["restarts"] for process in cluster.state()["metadata"]) == [0, 1]
        assert cluster.status()["generation"] > found["generation"]

        pids = cluster.pids()
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(60) == 0, cluster.text()
        assert "every process has drained and ended" in cluster.text()
        assert not [pid for pid in pids if _is_running(pid)]
        assert not (cluster.data / "cluster.json").exists()


def test_nothing_is_left_running_when_it_is_killed_itself(tmp_path: Path) -> None:
    with up(tmp_path, "--zones", "a") as cluster:
        cluster.wait_for("Ctrl-C drains and stops everything.")
        pids = cluster.pids()
        assert all(_is_running(pid) for pid in pids)
        os.kill(pids[-1], signal.SIGSTOP)
        cluster.process.kill()
        cluster.process.wait()
        wait_until(lambda: not any(_is_running(pid) for pid in pids), 5, lambda: f"{pids}")


def test_a_second_signal_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    with up(tmp_path, "--zones", "a") as cluster:
        cluster.wait_for("Ctrl-C drains and stops everything.")
        pids = cluster.pids()
        os.kill(pids[-1], signal.SIGSTOP)
        cluster.process.send_signal(signal.SIGINT)
        cluster.wait_for("stopping: agents drain first")
        cluster.process.send_signal(signal.SIGINT)
        assert cluster.process.wait(20) in (0, 130), cluster.text()
        assert not [pid for pid in pids if _is_running(pid)]


def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    with up(tmp_path, "--zones", "a") as cluster:
        wait_until(lambda: (cluster.data / "cluster.json").exists(), 30, cluster.text)
        pids = [pid for pid in cluster.pids() if pid is not None]
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(60) == 0, cluster.text()
        assert not [pid for pid in pids if _is_running(pid)]


def test_one_folder_has_one_cluster(tmp_path: Path) -> None:
    with up(tmp_path, "--zones", "a") as cluster:
        cluster.wait_for("Ctrl-C drains and stops everything.")
        done = subprocess.run(
            [TIDELOG, "cluster", "up", "--data", str(cluster.data), "--kafka-port", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        assert "another `tidelog cluster up` runs with --data" in done.stdout
        assert cluster.status()["agents"], "it was not disturbed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda _: ["--zones", "a,a"], "--zones"),
        (lambda _: ["--storage", "memory://"], "--storage"),
        (lambda _: ["--set", "ingest.linger_ms=soon"], "ingest.linger_ms"),
        (lambda port: ["--kafka-port", str(port - METADATA_PORTS)], "address already in use"),
    ],
)
def test_a_start_that_cannot_be_says_why(arguments: Callable[[int], list[str]], words: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [TIDELOG, "cluster", "up", "--data", str(tmp_path / "d"), "--kafka-port", "0", *arguments(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode in (1, 2), done.stdout
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
