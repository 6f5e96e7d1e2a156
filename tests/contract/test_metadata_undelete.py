"""Deleted topics that come back, over every store, in-process and over HTTP; and those that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata.group_model import OffsetCommit, OffsetRecord
from metadata.model import PartitionOffsets, RecordsDeletion, Refusal, Refused, TopicsChanged
from runtime.settings import LifecycleSettings
from tests.support.metadata import Recorder, batch, registration, segment
from tests.support.metadata_stores import STORES, metadata_url
from tests.support.metadata_world import World

SETTINGS = LifecycleSettings(undelete_ms=20_000, deletion_grace_ms=60_000)


@pytest.fixture(params=[(kind, transport) for kind in STORES for transport in ("packed", "http")], ids="-".join)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, transport = request.param
    with metadata_url(kind, tmp_path, request) as url:
        world = World(url, transport, SETTINGS)
        await world.start()
        world.epoch = (await world.client.register_agent(registration())).agent_epoch
        world.topic = await world.client.create_topic("logs", 2, {"retention.ms": "-1"})
        yield world
        await world.stop()


async def fill(world: World, sequence: int, sequence_of_producer: int = 0) -> None:
    (offset,) = await world.client.partition_offsets([(world.topic.topic_id, 0)])
    producer = (await world.client.grant_producer_id(-1, -1)).producer_id if sequence == 1 else 0
    draft = (world.topic.topic_id, 0, [batch(10, producer=producer, epoch=0, sequence=sequence_of_producer)])
    (answer,) = await world.client.commit_segments(world.epoch, sequence - 1, [segment(sequence, draft)])
    assert offset is not None and answer.extents[0][0].base_offset == offset.high_watermark


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
async def test_a_topic_comes_back_as_it_was(world: World, restarted: bool) -> None:
    await fill(world, 1)
    await world.client.delete_records([RecordsDeletion(world.topic.topic_id, 0, 3)])
    committed = (OffsetRecord(world.topic.topic_id, 0, 5, -1, "", world.clock.wall_ms),)
    await world.client.commit_offsets(OffsetCommit("g", -1, "", None, committed))
    await world.client.delete_topic(world.topic.topic_id)
    if restarted:
        await world.restart()
    (deleted,) = await world.client.deleted_topics()
    assert deleted.topic == world.topic
    assert (await world.found(3)).refusal is Refusal.UNKNOWN_TOPIC_ID
    assert await world.client.fetch_offsets("g", None) == []
    listener = Recorder()
    await world.client.subscribe(listener)
    assert await world.client.undelete_topic(world.topic.topic_id) == world.topic
    await world.heard(listener, 1)
    assert listener.heard == [TopicsChanged(upserted=(world.topic,))]
    for _ in range(2):
        assert await world.client.partition_offsets([(world.topic.topic_id, 0)]) == [PartitionOffsets(3, 10, 1_000)]
        assert [each.base_offset for each in (await world.found(3)).extents] == [0]
        assert await world.client.fetch_offsets("g", None) == [], "its offsets went with the deletion"
        assert await world.client.deleted_topics() == []
        await world.restart()
    await fill(world, 2, sequence_of_producer=10)
    assert [each.base_offset for each in (await world.found(3)).extents] == [0, 10]
    await world.pass_seconds(25)
    assert (await world.found(3)).refusal is None, "nothing of the deletion comes after it"


async def test_a_topic_that_nobody_brings_back_goes_for_good(world: World) -> None:
    await fill(world, 1)
    await world.client.delete_topic(world.topic.topic_id)
    await world.pass_seconds(15)
    assert len(await world.client.deleted_topics()) == 1
    await world.pass_seconds(8)
    async with asyncio.timeout(5):
        while await world.client.deleted_topics() or (await world.store.segment_totals(0, 9)).live_bytes:
            await asyncio.sleep(0.01)
    with pytest.raises(Refused) as refused:
        await world.client.undelete_topic(world.topic.topic_id)
    assert refused.value.refusal is Refusal.UNKNOWN_TOPIC_ID


async def test_the_name_of_a_deleted_topic_is_free_and_may_be_taken(world: World) -> None:
    await fill(world, 1)
    await world.client.delete_topic(world.topic.topic_id)
    second = await world.client.create_topic("logs", 1, {})
    assert await world.client.partition_offsets([(second.topic_id, 0)]) == [PartitionOffsets(0, 0, -1)]
    with pytest.raises(Refused) as refused:
        await world.client.undelete_topic(world.topic.topic_id)
    assert refused.value.refusal is Refusal.TOPIC_ALREADY_EXISTS
    await world.client.delete_topic(second.topic_id)
    assert [each.topic.topic_id for each in await world.client.deleted_topics()] in (
        [world.topic.topic_id, second.topic_id],
        [second.topic_id, world.topic.topic_id],  # both in the same millisecond
    )
    assert await world.client.undelete_topic(world.topic.topic_id) == world.topic
    assert [each.base_offset for each in (await world.found(0)).extents] == [0]
