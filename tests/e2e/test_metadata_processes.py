"""Real metadata processes: killed, stopped and refused, while an agent's client commits through them."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentLoad
from metadata.group_model import OffsetCommit, OffsetRecord
from metadata.model import ExtentsQuery, MetadataUnavailable, Topic
from metadata.rpc.client import RemoteMetadata
from tests.support.metadata import Recorder, batch, registration, segment
from tests.support.metadata_process import MetadataProcess
from tests.support.metadata_rpc import remote_metadata
from tests.support.metadata_stores import DURABLE_STORES, metadata_url

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timed, pytest.mark.timeout(180)]


@pytest.fixture(params=DURABLE_STORES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[MetadataProcess]]:
    """Two on one store; the first leads."""
    with metadata_url(request.param, tmp_path, request) as url:
        processes = [MetadataProcess(tmp_path, url) for _ in range(2)]
        try:
            processes[0].start()
            while not processes[0].leads():
                time.sleep(0.02)
            processes[1].start()
            yield processes
        finally:
            for process in processes:
                process.stop()


only_sqlite = pytest.mark.parametrize("pair", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("pair", ["postgresql"], indirect=True)


class Committing:
    """Commits without pause, and notes what was acknowledged and the longest time without an acknowledgement."""

    def __init__(self, client: RemoteMetadata, epoch: int, topic: Topic) -> None:
        self.client = client
        self.acknowledged: dict[str, int] = {}
        self.longest_pause = 0.0
        self._epoch = epoch
        self._topic = topic
        self._stopping = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        sequence = 0
        last = loop.time()
        while not self._stopping:
            commit = segment(sequence, (self._topic.topic_id, 0, [batch()]))
            (answer,) = await self.client.commit_segments(self._epoch, sequence - 1, [commit])
            self.acknowledged[commit.segment_key] = answer.extents[0][0].base_offset
            self.longest_pause = max(self.longest_pause, loop.time() - last)
            last = loop.time()
            if sequence % 50 == 0:
                await self.client.heartbeat_agent(AgentHeartbeat(self._epoch, AgentCondition.READY))
            sequence += 1

    def stop(self) -> None:
        self._stopping = True

    async def check(self) -> None:
        """Everything acknowledged is there, once, where it was acknowledged, and nothing else."""
        found: dict[str, int] = {}
        offset = 0
        while True:
            (page,) = await self.client.find_extents([ExtentsQuery(self._topic.topic_id, 0, offset, 10**9)])
            found.update({extent.segment_key: extent.base_offset for extent in page.extents})
            offset = page.extents[-1].last_offset + 1 if page.extents else offset
            if offset >= page.high_watermark:
                break
        assert found == self.acknowledged
        assert sorted(found.values()) == list(range(len(found)))


@asynccontextmanager
async def committing(processes: list[MetadataProcess]) -> AsyncIterator[Committing]:
    async with remote_metadata([process.url for process in processes]) as client:
        epoch = (await client.register_agent(registration())).agent_epoch
        work = Committing(client, epoch, await client.create_topic("logs", 1, {}))
        async with asyncio.TaskGroup() as group:
            group.create_task(work.run())
            yield work
            work.stop()
        await work.check()


async def test_kill_9_of_the_leader_again_and_again(pair: list[MetadataProcess]) -> None:
    async with committing(pair) as work:
        listener = Recorder()
        subscription = await work.client.subscribe(listener)
        await subscription.follow([(work._topic.topic_id, 0)])
        for turn in range(4):
            await asyncio.sleep(0.7)
            leader = next(process for process in pair if process.leads())
            assert leader is pair[turn % 2]
            await asyncio.to_thread(leader.kill)
            await asyncio.sleep(0.7)
            await asyncio.to_thread(leader.start)
        await asyncio.sleep(1)
        assert work.client.generation == 5
    assert work.longest_pause < 2.0, "a killed leader's lock is free at once"
    assert listener.heard.count("resynchronize") == 4


async def test_a_leader_that_is_told_to_stop_makes_room_at_once(pair: list[MetadataProcess]) -> None:
    async with committing(pair) as work:
        for turn in range(4):
            await asyncio.sleep(0.5)
            leader = pair[turn % 2]
            assert await asyncio.to_thread(leader.terminate) == 0
            assert "Traceback" not in leader.log()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(leader.start)
    assert work.longest_pause < 1.0


@only_postgresql
async def test_a_frozen_leader_is_replaced_and_changes_nothing_when_it_thaws(pair: list[MetadataProcess]) -> None:
    async with committing(pair) as work:
        for turn in range(2):
            frozen, other = pair[turn % 2], pair[(turn + 1) % 2]
            await asyncio.sleep(0.7)
            frozen.freeze()
            async with asyncio.timeout(10):
                while not await asyncio.to_thread(other.leads):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            frozen.thaw()
            await asyncio.sleep(1.5)
            assert frozen.ready() == {"status": "ok", "role": "standby"}
            assert other.leads()
    assert work.longest_pause < 8.0, "the lease is 4 s"


@only_sqlite
async def test_a_leader_that_stands_still_for_a_while_goes_on(pair: list[MetadataProcess]) -> None:
    """On one SQLite file nobody else can take over from a frozen process: nothing is lost, and no agent is blamed."""
    async with committing(pair):
        await asyncio.sleep(0.5)
        pair[0].freeze()
        await asyncio.sleep(4.5)
        pair[0].thaw()
        await asyncio.sleep(0.5)
    assert pair[0].leads()
    assert "agent_fenced" not in pair[0].log()


@only_sqlite
async def test_what_a_metadata_process_shows(pair: list[MetadataProcess]) -> None:
    async with remote_metadata([process.url for process in pair]) as client:
        epoch = (await client.register_agent(registration())).agent_epoch
        load = AgentLoad(bytes_in=5.0, connections=2)
        await client.heartbeat_agent(AgentHeartbeat(epoch, AgentCondition.READY, "", load))
        topic = await client.create_topic("logs", 3, {})
        await client.commit_segments(epoch, -1, [segment(1, (topic.topic_id, 1, [batch(7)]))])
        offset = OffsetRecord(topic.topic_id, 1, 2, -1, "", 0)
        await client.commit_offsets(OffsetCommit("readers", -1, "", None, (offset,)))
        await (await client.subscribe(Recorder())).follow([(topic.topic_id, 1)])
        page = await asyncio.to_thread(get_json, f"{pair[0].url}/cluster")
        metrics = (await asyncio.to_thread(get, f"{pair[0].url}/metrics"))[1].decode()
    assert (page["leader"], page["generation"], page["partitions_count"]) == (True, 1, 3)
    (agent,) = page["agents"]
    assert (agent["agent"], agent["condition"], agent["load"]["connections"]) == ("agent-1", "ready", 2)
    assert page["topics"] == [{"topic": "logs", "id": topic.topic_id.hex(), "partitions": 3, "records": 7}]
    (group,) = page["groups"]
    assert (group["group"], group["state"], group["lag_records"]) == ("readers", "Empty", 5)
    for line in (
        "tidelog_metadata_is_leader 1.0",
        "tidelog_metadata_generation 1.0",
        "tidelog_metadata_watchers_count 1.0",
        "tidelog_metadata_partitions_followed_count 1.0",
        'tidelog_metadata_rpc_calls_total{method="create_topic",outcome="value"} 1.0',
        'tidelog_group_lag_records{group="readers",topic="logs"} 5.0',
    ):
        assert line in metrics.splitlines()
    assert pair[1].ready() == {"status": "ok", "role": "standby"}
    assert get_json(f"{pair[1].url}/cluster") == {"leader": False, "generation": -1}
    assert "tidelog_metadata_is_leader 0.0" in get(f"{pair[1].url}/metrics")[1].decode().splitlines()


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get_json(url: str) -> Any:
    status, body = get(url)
    assert status == 200
    return json.loads(body)


async def test_a_secret_is_required_when_it_is_set(tmp_path: Path) -> None:
    secret = "correct horse battery staple"
    process = MetadataProcess(tmp_path, "memory://", {"SECRET": secret})
    process.start()
    try:
        while not process.leads():
            await asyncio.sleep(0.05)
        async with remote_metadata([process.url], secret=secret) as client:
            await client.create_topic("logs", 1, {})
        async with remote_metadata([process.url], secret="not it", patience_seconds=0.5) as client:
            with pytest.raises(MetadataUnavailable, match="secret"):
                await client.create_topic("more", 1, {})
        assert get(f"{process.url}/cluster")[0] == 401
        assert get(f"{process.url}/cluster", {"Authorization": f"Bearer {secret}"})[0] == 200
        assert get(f"{process.url}/readyz")[0] == 200
        assert "rpc_unauthorized" in process.log()
        assert secret not in process.log()
        assert await asyncio.to_thread(process.terminate) == 0
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("http://127.0.0.1:1", "metadata = 'http://127.0.0.1:1'"),
        ("sqlite:///", "--store"),
        ("mysql://x", "--store"),
    ],
)
def test_a_store_that_is_none_stops_the_start(tmp_path: Path, store: str, expected: str) -> None:
    process = MetadataProcess(tmp_path, store)
    with pytest.raises(AssertionError, match="exited with 2"):
        process.start()
    assert expected in process.log()
    assert "Traceback" not in process.log()


@only_sqlite
def test_an_address_in_use_stops_the_start(pair: list[MetadataProcess], tmp_path: Path) -> None:
    process = MetadataProcess(tmp_path, "memory://")
    process.command[process.command.index("--listen") + 1] = pair[0].address
    with pytest.raises(AssertionError, match="exited with 2"):
        process.start()
    assert f"listen.metadata = '{pair[0].address}'" in process.log()
