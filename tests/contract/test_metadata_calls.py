"""A call that creates, deletes, alters or registers is carried out once, however often it is repeated and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from metadata import calls
from metadata.group_model import OffsetCommit, OffsetRecord
from metadata.model import Refusal, Refused
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from metadata.store.port import CallAnswered, CallsForgotten
from tests.support.metadata import FaultyMetadataStore, Recorder, SettableClock, registration, running_service
from tests.support.metadata_rpc import RpcNode, remote_metadata
from tests.support.metadata_stores import STORES, metadata_url


class World:
    """A service, and the next one over the same store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = AsyncExitStack()
        self._starts = 0
        self.clock = SettableClock()
        self.store = FaultyMetadataStore(open_metadata_store(url))
        self.service: MetadataService

    async def start(self) -> None:
        if self._starts and not self._url.startswith("memory"):
            self.store = FaultyMetadataStore(open_metadata_store(self._url))
        self._starts += 1
        self.service = await self._stack.enter_async_context(running_service(self.store, self.clock, self._starts))

    async def stop(self) -> None:
        await self._stack.aclose()

    async def fail_over(self) -> None:
        await self.stop()
        await self.start()


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    with metadata_url(request.param, tmp_path, request) as url:
        world = World(url)
        await world.start()
        yield world
        await world.stop()


@pytest.mark.parametrize("failed_over", [False, True])
async def test_a_repetition_gets_the_first_answer_and_changes_nothing(world: World, failed_over: bool) -> None:
    async def all_calls() -> list[object]:
        service = world.service
        topic = await service.create_topic("logs", 2, {}, call_id="c/1")
        offset = OffsetRecord(topic.topic_id, 0, 0, -1, "", 0)
        registered = await service.register_agent(registration(), call_id="c/2")
        altered = await service.alter_topic_configs(topic.topic_id, {"retention.ms": "1000"}, call_id="c/3")
        await service.commit_offsets(OffsetCommit("g", -1, "", None, (offset,)))
        grown = await service.create_partitions(topic.topic_id, 3, call_id="c/9")
        deleted = await service.delete_group("g", call_id="c/4")
        left = await service.leave_agent(registered.agent_epoch, call_id="c/5")
        gone = await service.delete_topic(topic.topic_id, call_id="c/6")
        return [topic, registered, altered, grown, deleted, left, gone]

    first = await all_calls()
    if failed_over:
        await world.fail_over()
    assert await all_calls() == first
    assert (await world.service.subscribe(Recorder())).topics == ()
    assert await world.service.describe_agents() == []
    assert await world.service.delete_group("g", call_id="c/7") is Refusal.GROUP_ID_NOT_FOUND
    assert (await world.service.create_topic("logs", 2, {}, call_id="c/8")).topic_id != first[0].topic_id  # type: ignore[attr-defined]


@pytest.mark.parametrize("failed_over", [False, True])
async def test_a_late_copy_of_a_deletion_leaves_an_offset_that_was_committed_since(
    world: World, failed_over: bool
) -> None:
    topic = await world.service.create_topic("logs", 1, {})
    commit = OffsetCommit("g", -1, "", None, (OffsetRecord(topic.topic_id, 0, 5, -1, "", 0),))
    await world.service.commit_offsets(commit)
    first = await world.service.delete_offsets("g", [(topic.topic_id, 0)], call_id="c/1")
    await world.service.commit_offsets(commit)
    if failed_over:
        await world.fail_over()
    assert await world.service.delete_offsets("g", [(topic.topic_id, 0)], call_id="c/1") == first
    assert [record.offset for record in await world.service.fetch_offsets("g", None)] == [5]


async def test_the_answer_is_written_with_the_effect_and_only_then(world: World) -> None:
    world.store.writes.clear()
    await world.service.create_topic("logs", 1, {}, call_id="c/1")
    (write,) = world.store.writes
    assert [call.call_id for call in write if isinstance(call, CallAnswered)] == ["c/1"]
    await world.service.create_topic("other", 1, {}, validate_only=True, call_id="c/2")
    with pytest.raises(Refused):
        await world.service.create_topic("logs", 1, {}, call_id="c/3")
    await world.service.leave_agent(99, call_id="c/4")
    await world.service.create_topic("plain", 1, {})
    assert len(world.store.writes) == 2
    assert not [call for call in world.store.writes[1] if isinstance(call, CallAnswered)]


async def test_answers_are_forgotten_in_time_and_bounded_in_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CALLS_MAX", 3)
    for number in range(5):
        world.clock.wall_ms += 1
        await world.service.create_topic(f"t{number}", 1, {}, call_id=f"c/{number}")
    assert len((await world.store.reload()).calls) == 3
    for number in range(5):
        if number < 2:
            with pytest.raises(Refused):
                await world.service.create_topic(f"t{number}", 1, {}, call_id=f"c/{number}")
        else:
            await world.service.create_topic(f"t{number}", 1, {}, call_id=f"c/{number}")
    world.clock.wall_ms += calls.CALLS_KEPT_MS + 10
    await world.clock.pass_seconds(61)
    await world.service.leave_agent(99)  # decided after what has been forgotten
    assert (await world.store.reload()).calls == ()
    assert [change for write in world.store.writes for change in write if isinstance(change, CallsForgotten)]


@pytest.mark.parametrize("effect", ["none", "taken"])
async def test_a_remote_call_of_unknown_outcome_is_carried_out_once(world: World, effect: str) -> None:
    node = RpcNode()
    await node.start()
    await node.lead(world.service, 1)
    async with remote_metadata([node.url]) as client:
        for attempt in range(2):
            if effect == "none":
                world.store.fail_before = 1
            else:
                world.store.fail_after = 1
            topic = await client.create_topic(f"t{attempt}", 1, {})
            assert topic.name == f"t{attempt}"
            if not attempt:
                await node.stand_by()
                await world.fail_over()
                await node.lead(world.service, 2)
        assert await client.register_agent(registration()) is not None
        await client.delete_topic(topic.topic_id)
    await node.stop()
