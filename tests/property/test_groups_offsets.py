"""Committed offsets through failing writes, reloads and restarts: what was answered is never lost or undone."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from prometheus_client import CollectorRegistry

from metadata.coordinator import GroupCoordinator
from metadata.group_model import OffsetCommit, OffsetRecord
from metadata.metrics import MetadataMetrics
from metadata.model import ExtentsFound, MetadataUnavailable, Topic
from metadata.pipeline import CommandPipeline
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import TopicSaved
from runtime.clock import SeededEntropy
from runtime.settings import GroupSettings
from runtime.tasks import Supervisor
from tests.support.metadata import FaultyMetadataStore
from tests.support.virtual_time import VirtualClock, VirtualTimeLoop

TOPIC = Topic(b"t" * 16, "logs", 2, {}, 0)
PARTITIONS = [(TOPIC.topic_id, 0), (TOPIC.topic_id, 1)]


class OneGroup:
    """A consumer that commits ever higher offsets, and knows which commits were answered."""

    def __init__(self) -> None:
        self.store = FaultyMetadataStore(MemoryMetadataStore())
        self.attempted = {partition: [-1] for partition in PARTITIONS}
        self.at_least = dict.fromkeys(PARTITIONS, -1)
        self.under_way: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self.supervisor = Supervisor()
        clock = VirtualClock()
        self.pipeline = CommandPipeline(self.store, clock, MetadataMetrics(CollectorRegistry()))
        self.groups = GroupCoordinator(
            self.pipeline,
            clock,
            SeededEntropy(1),
            self.supervisor,
            GroupSettings(),
            lambda topic_id: TOPIC if topic_id == TOPIC.topic_id else None,
            lambda topic_id, partition: None,
            self.find_extents,
        )
        await self.pipeline.start(self.supervisor, "cluster")
        await self.groups.start()

    async def find_extents(self, queries: object) -> list[ExtentsFound]:
        raise AssertionError(f"nobody asks for lag here: {queries}")

    async def commit(self, index: int) -> None:
        partition = PARTITIONS[index]
        offset = len(self.attempted[partition])
        self.attempted[partition].append(offset)
        record = OffsetRecord(*partition, offset, -1, "", 0)
        try:
            answer = await self.groups.commit_offsets(OffsetCommit("g", -1, "", None, (record,)))
        except MetadataUnavailable:
            return
        assert answer.refusal is None
        assert answer.offsets == (None,)
        self.at_least[partition] = max(self.at_least[partition], offset)

    async def fetch(self) -> None:
        expected = dict(self.at_least)
        try:
            found = await self.groups.fetch_offsets("g", PARTITIONS)
        except MetadataUnavailable:
            return
        offsets = {(record.topic_id, record.partition): record.offset for record in found}
        for partition in PARTITIONS:
            offset = offsets.get(partition, -1)
            assert offset >= expected[partition], "older than what was answered or read before"
            assert offset in self.attempted[partition]
            self.at_least[partition] = max(self.at_least[partition], offset)

    async def request(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for it, or only for its beginning while writes are held back."""
        self.under_way.append(asyncio.get_running_loop().create_task(work))
        await (asyncio.sleep(0.001) if self.store.gate is not None else self.under_way[-1])

    def release(self) -> None:
        if self.store.gate is not None:
            self.store.gate.set()
        self.store.gate = None

    async def step(self, step: str) -> None:
        match step:
            case "commit 0" | "commit 1":
                await self.request(self.commit(int(step[-1])))
            case "fetch":
                await self.request(self.fetch())
            case "hold":
                self.store.gate = self.store.gate or asyncio.Event()
            case "release":
                self.release()
            case "fail before":
                self.store.fail_before += 1
            case "fail after":
                self.store.fail_after += 1
            case "unreadable":
                self.store.unreadable += 1
            case "wait":
                await asyncio.sleep(5)
            case "restart":
                self.release()
                await self.supervisor.stop()
                await asyncio.gather(*self.under_way)
                await self.start()

    async def live(self, steps: list[str]) -> None:
        await self.store.open("cluster")
        await self.store.write([TopicSaved(TOPIC)])
        await self.start()
        for step in steps:
            await self.step(step)
        self.release()
        await asyncio.gather(*self.under_way)
        self.store.fail_before = self.store.fail_after = self.store.unreadable = 0
        await asyncio.sleep(10)
        await self.fetch()
        await self.groups.stop()
        await self.pipeline.stop()
        await self.supervisor.stop()


STEPS = [
    "commit 0",
    "commit 1",
    "hold",
    "release",
    "fetch",
    "fetch",
    "fail before",
    "fail after",
    "unreadable",
    "wait",
    "restart",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=30))
def test_committed_offsets_never_go_back(steps: list[str]) -> None:
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(OneGroup().live(steps))
    finally:
        loop.close()
