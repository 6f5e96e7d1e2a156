"""Starts recorded clients (:mod:`tests.support.recorded_main`) as processes, and follows what they write down."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tests.support.recordings import Recording

CHECKOUT = Path(__file__).resolve().parents[2]
Client = Literal["confluent", "aiokafka"]


class RecordedClient:
    """One process. :meth:`follow` brings ``recording`` up to date; a quarter of a second may be on its way."""

    def __init__(self, folder: Path, name: str, group: str | None, command: list[str]) -> None:
        self.recording = Recording(name, group)
        self._path = folder / f"{name}.record"
        self._log = folder / f"{name}.log"
        self._path.touch()
        self._file = self._path.open("rb")
        self._rest = b""
        self._asked = False
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.recorded_main", *command, "--record", str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=CHECKOUT,
            )

    @property
    def name(self) -> str:
        return self.recording.name

    def follow(self) -> Recording:
        """Take in what it has written since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            self.recording.take(line.decode())
        return self.recording

    def ask_to_finish(self) -> None:
        """SIGTERM: no new work, answers are waited for, then it ends. Only once: a second one might find it ending."""
        if not self._asked and self.process.poll() is None:
            self._asked = True
            self.process.terminate()

    def finish(self, within_s: float) -> Recording:
        """:meth:`ask_to_finish`, and wait for its end."""
        self.ask_to_finish()
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not end within {within_s} s\n{self.log_tail()}") from None
        recording = self.follow()
        assert code == 0, f"{self.name} ended with {code}\n{self.log_tail()}"
        assert recording.finished == 0, f"{self.name}: {recording.finished} records without an answer"
        return recording

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]


def start_producer(
    folder: Path,
    name: str,
    bootstrap: str,
    topic: str,
    partitions: int,
    *,
    client: Client = "confluent",
    client_id: str | None = None,
    rate: float = 100.0,
    value_bytes: int = 0,
    config: Mapping[str, str] | None = None,
) -> RecordedClient:
    """An idempotent producer with acks=all, ``rate`` records a second over all partitions."""
    command = ["produce", client, "--rate", str(rate), "--value-bytes", str(value_bytes)]
    command += _common(name, bootstrap, topic, partitions, client_id, config)
    return RecordedClient(folder, name, None, command)


def start_consumer(
    folder: Path,
    name: str,
    bootstrap: str,
    topic: str,
    group: str,
    *,
    client: Client = "confluent",
    client_id: str | None = None,
    config: Mapping[str, str] | None = None,
) -> RecordedClient:
    """A member of ``group`` that commits what it has read."""
    command = ["consume", client, "--group", group, *_common(name, bootstrap, topic, 1, client_id, config)]
    return RecordedClient(folder, name, group, command)


def wait_for_members(clients: list[RecordedClient], partitions: int, within_s: float) -> None:
    """Until the consumers among ``clients`` hold all partitions together."""
    deadline = time.monotonic() + within_s
    consumers = [client for client in clients if client.recording.group is not None]
    while sorted(one for client in consumers for one in client.follow().assignment) != list(range(partitions)):
        assert time.monotonic() < deadline, f"{[(c.name, c.recording.assignment, c.log_tail()) for c in consumers]}"
        time.sleep(0.1)


def _common(
    name: str, bootstrap: str, topic: str, partitions: int, client_id: str | None, config: Mapping[str, str] | None
) -> list[str]:
    command = ["--name", name, "--bootstrap", bootstrap, "--client-id", client_id or name, "--topic", topic]
    command += ["--partitions", str(partitions)]
    for setting, value in (config or {}).items():
        command += ["--config", f"{setting}={value}"]
    return command
