"""The supervisor of a local cluster, with processes that only answer ``/readyz``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from runtime.clock import SystemClock
from runtime.tasks import Supervisor
from tidelog.cluster import local, member
from tidelog.cluster.local import ClusterFailed, LocalCluster, without_password
from tidelog.cluster.member import Member, Phase
from tidelog.cluster.plan import AgentPlan, ClusterSpec, MetadataPlan, ProcessPlan
from tidelog.cluster.state_file import ClusterState, FolderInUse, lock_folder, read_state


class World:
    """A cluster of fake processes in ``folder``, and all it reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.failures: list[str] = []
        self.supervisor = Supervisor(lambda task, error: self.failures.append(f"{task}: {error!r}"))
        spec = ClusterSpec(("a", "b"), ("vip",), folder / "data", kafka_port=0)
        self.cluster = LocalCluster(spec, SystemClock(), self.supervisor, self.said.append)

    def member(self, name: str) -> Member:
        (found,) = (one for one in self.cluster.members if one.name == name)
        return found

    def pid(self, name: str) -> int:
        pid = self.member(name).child.pid
        assert pid is not None
        return pid

    def port(self, name: str) -> str:
        return self.member(name).plan.http.rpartition(":")[2]

    def state(self) -> ClusterState:
        state = read_state(self.folder / "data")
        assert state is not None
        return state

    def ended_at(self, port: str) -> float:
        return float((self.folder / f"{port}.ended").read_text())

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    def command(plan: ProcessPlan, *_: object) -> list[str]:
        return [sys.executable, "-m", "tests.support.fake_server", plan.http, str(tmp_path)]

    monkeypatch.setattr(local, "metadata_command", command)
    monkeypatch.setattr(local, "agent_command", command)
    monkeypatch.setattr(member, "BACKOFF_SECONDS", 0.2)
    world = World(tmp_path)
    yield world
    world.cluster.kill()
    await world.cluster.stop()
    await world.supervisor.stop()
    assert world.failures == []


async def test_it_starts_everything_says_where_and_stops_agents_before_metadata(world: World) -> None:
    await world.cluster.start()
    names = [one.name for one in world.cluster.members]
    assert names == ["metadata-1", "metadata-2", "agent-a-vip-1", "agent-b-vip-1"]
    state = world.state()
    assert [agent.name for agent in state.agents] == names[2:]
    assert [process.pid for process in state.metadata] == [world.pid(name) for name in names[:2]]
    assert [agent.kafka for agent in state.agents] == [agent.kafka for agent in world.cluster.agents]
    assert world.cluster.metadata_urls == [f"http://{process.http}" for process in state.metadata]
    ports = [world.port(name) for name in names]
    assert await world.cluster.stop() == []
    ended = [world.ended_at(port) for port in ports]
    assert max(ended[2:]) < min(ended[:2])
    assert read_state(world.folder / "data") is None
    assert world.said == []


@pytest.mark.parametrize("name", ["metadata-1", "agent-b-vip-1"])
async def test_one_that_dies_is_reported_with_its_last_words_and_started_again(world: World, name: str) -> None:
    await world.cluster.start()
    first = world.pid(name)
    os.kill(first, signal.SIGKILL)
    await world.until(lambda: world.said)
    assert f"{name} was ended by SIGKILL:\n  fake server on {world.port(name)}" in world.said[0]
    assert f"{name} is started again in 0.2 s" in world.said[0]
    await world.until(lambda: len(world.said) == 2)
    assert world.said[1] == f"{name} is ready again"
    written = {process.name: process for process in (*world.state().metadata, *world.state().agents)}[name]
    assert written.pid == world.pid(name) != first
    assert written.restarts == 1


async def test_the_backoff_doubles_up_to_a_limit_and_is_forgotten_after_a_steady_time(tmp_path: Path) -> None:
    plan = MetadataPlan("metadata-1", "127.0.0.1:1")
    one = Member(plan, local.Child("metadata-1", ["true"], tmp_path / "log"))
    assert [one.died(0.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert one.restart_at == 30
    one.started_at = 100.0
    assert one.died(100.0 + member.STEADY_SECONDS) == 1


async def test_agents_come_and_go_one_by_one(world: World) -> None:
    await world.cluster.start()
    added = await world.cluster.start_agent("a", "vip")
    assert added.name == "agent-a-vip-2"
    assert [agent.name for agent in world.state().agents] == ["agent-a-vip-1", "agent-b-vip-1", "agent-a-vip-2"]
    port = world.port("agent-a-vip-1")
    await world.cluster.drain_agent("agent-a-vip-1")
    assert world.ended_at(port) > 0
    assert [agent.name for agent in world.cluster.agents] == ["agent-b-vip-1", "agent-a-vip-2"]
    assert [agent.name for agent in world.state().agents] == ["agent-b-vip-1", "agent-a-vip-2"]
    with pytest.raises(KeyError):
        await world.cluster.drain_agent("agent-a-vip-1")
    await asyncio.sleep(0.4)
    assert world.said == [], "one that was drained is not started again"


async def test_one_that_does_not_drain_is_killed_and_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DRAIN_SECONDS", 0.3)
    await world.cluster.start()
    (world.folder / f"{world.port('agent-a-vip-1')}.deaf").touch()
    os.kill(world.pid("agent-a-vip-1"), signal.SIGKILL)
    await world.until(lambda: len(world.said) == 2)
    pid = world.pid("agent-a-vip-1")
    with pytest.raises(ClusterFailed, match=r"agent-a-vip-1 did not end within 0\.3 s and was killed"):
        await world.cluster.drain_agent("agent-a-vip-1")
    assert not Path(f"/proc/{pid}").exists()
    assert [agent.name for agent in world.cluster.agents] == ["agent-b-vip-1"]


@pytest.mark.parametrize(("code", "is_setting"), [(1, False), (2, True)])
async def test_a_start_fails_with_the_last_words_of_who_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, code: int, is_setting: bool
) -> None:
    ports = local.Ports(0, local.free_ports(1).pop)
    address = ports.http()
    (world.folder / f"{address.rpartition(':')[2]}.broken").write_text(str(code))

    def planned(zone: str, group: str, *_: object) -> AgentPlan:
        return AgentPlan(f"agent-{zone}", zone, group, 1, "127.0.0.1:1", address)

    monkeypatch.setattr(local, "plan_agent", planned)
    with pytest.raises(ClusterFailed, match=f"ended with exit code {code}:\n.*\n  something is wrong") as failed:
        await world.cluster.start()
    assert failed.value.is_setting is is_setting
    await asyncio.sleep(0.4)
    assert world.said == [], "it is not started again behind the failure"


async def test_one_that_never_becomes_ready_fails_the_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> bool:
        return False

    monkeypatch.setattr(local, "READY_SECONDS", 0.3)
    monkeypatch.setattr(LocalCluster, "_is_ready", never)
    with pytest.raises(ClusterFailed, match=r"metadata-1 is not ready after 0\.3 s"):
        await world.cluster.start()


async def test_a_start_that_is_given_up_leaves_nothing_behind(world: World) -> None:
    task = asyncio.create_task(world.cluster.start())
    await world.until(lambda: world.cluster.members)
    pids = [one.child.pid for one in world.cluster.members]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.cluster.stop()
    assert not [pid for pid in pids if pid is not None and Path(f"/proc/{pid}").exists()]


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "LOG_BYTES_MAX", 100)
    one = Member(MetadataPlan("m", "127.0.0.1:1"), local.Child("m", ["true"], tmp_path / "m.log"))
    one.bound_log()
    one.child.log_path.write_bytes(b"x" * 99)
    one.bound_log()
    assert one.child.log_path.stat().st_size == 99
    one.child.log_path.write_bytes(b"y" * 101)
    one.bound_log()
    assert one.child.log_path.read_bytes() == b""
    assert (tmp_path / "m.1.log").read_bytes() == b"y" * 101
    assert one.phase is Phase.STARTING


def test_one_folder_has_one_cluster(tmp_path: Path) -> None:
    first = lock_folder(tmp_path)
    with pytest.raises(FolderInUse, match=str(tmp_path)):
        lock_folder(tmp_path)
    os.close(first)
    os.close(lock_folder(tmp_path))


def test_a_state_file_that_is_none_says_so(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    (tmp_path / "cluster.json").write_text('{"pid": "x"}')
    with pytest.raises(ValueError, match=r"cluster\.json"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db:5432/tidelog", "postgresql://me:...@db:5432/tidelog"),
        ("postgresql://me@db/tidelog", "postgresql://me@db/tidelog"),
        ("sqlite:////data/metadata.sqlite", "sqlite:////data/metadata.sqlite"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
