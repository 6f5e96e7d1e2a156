"""An agent that stands still is left out, fenced, and comes back by itself under a new epoch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess
from tests.support.librdkafka import consume, create_topic, produce
from tests.support.metadata_process import MetadataProcess
from tests.support.recorded_client import start_producer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

SETTINGS = {"LOG__FORM": "json", "AGENTS__SUSPECT_MS": "1000", "AGENTS__SESSION_TIMEOUT_MS": "3000"}


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[AgentProcess]]:
    metadata = MetadataProcess(tmp_path, f"sqlite:///{tmp_path}/metadata.sqlite", SETTINGS)
    metadata.start()
    started = [
        AgentProcess(tmp_path, f"agent-{number}", [metadata.url], f"file://{tmp_path}/objects", settings=SETTINGS)
        for number in range(2)
    ]
    for agent in started:
        agent.spawn()
    for agent in started:
        agent.wait_ready()
    yield started
    for agent in started:
        if agent.running():
            os.kill(agent.pid, signal.SIGCONT)
        agent.stop()
    metadata.stop()


def wait_until(holds: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_frozen_agent_is_fenced_and_registers_anew_without_a_restart(
    agents: list[AgentProcess], tmp_path: Path
) -> None:
    frozen, other = agents
    create_topic(other.bootstrap, "frozen", 4)
    producer = start_producer(tmp_path, "p", f"{frozen.bootstrap},{other.bootstrap}", "frozen", 4)
    try:
        wait_until(lambda: len(producer.follow().acknowledged) > 200, 60, producer.log_tail())
        os.kill(frozen.pid, signal.SIGSTOP)
        time.sleep(6)
        acknowledged = len(producer.follow().acknowledged)
        wait_until(
            lambda: len({row[2] for row in producer.follow().acknowledged[acknowledged:]}) == 4,
            30,
            "the other agent has taken over every partition",
        )
        os.kill(frozen.pid, signal.SIGCONT)
        wait_until(lambda: '"agent_registered_anew"' in frozen.log(), 10, frozen.log_tail())
        assert frozen.process is not None and frozen.process.poll() is None
        wait_until(frozen.is_ready, 30, frozen.log_tail())
        produce(frozen.bootstrap, "frozen", [{"value": b"after", "partition": number} for number in range(4)])
        recording = producer.finish(60)
    finally:
        producer.kill()
    assert recording.failed == [] and recording.errors == []
    assert len(recording.acknowledged) == len(recording.sent)
    values = [message.value() for message in consume(other.bootstrap, "frozen", len(recording.sent) + 4)]
    assert len(set(values)) == len(recording.sent) + 1, "every record once, and four times the same"
    assert frozen.terminate() == 0
    assert "nothing was lost" in frozen.drained()[-1]
