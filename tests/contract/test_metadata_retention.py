"""Logs that are cut: by age, by size and by request, over every store, in-process and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata.model import LogStart, PartitionOffsets, RecordsDeleted, RecordsDeletion, Refusal
from runtime.settings import LifecycleSettings
from tests.support.metadata import Recorder, batch, registration, segment
from tests.support.metadata_stores import STORES, metadata_url
from tests.support.metadata_world import World

SETTINGS = LifecycleSettings(deletion_grace_ms=60_000, retention_interval_ms=1_000)


@pytest.fixture(params=[(kind, transport) for kind in STORES for transport in ("packed", "http")], ids="-".join)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, transport = request.param
    with metadata_url(kind, tmp_path, request) as url:
        world = World(url, transport, SETTINGS)
        await world.start()
        world.epoch = (await world.client.register_agent(registration())).agent_epoch
        yield world
        await world.stop()


async def topic(world: World, **configs: str) -> None:
    world.topic = await world.client.create_topic(
        "logs", 2, {name.replace("_", "."): value for name, value in configs.items()}
    )


async def fill(world: World, *timestamps: int, first: int = 1, size: int = 50) -> None:
    """A segment of ten records for each, all in partition 0."""
    for sequence, timestamp in enumerate(timestamps, first):
        draft = (world.topic.topic_id, 0, [batch(10, size=size, timestamp=timestamp)])
        await world.client.commit_segments(world.epoch, sequence - 1, [segment(sequence, draft)])


async def offsets(world: World) -> PartitionOffsets:
    (found,) = await world.client.partition_offsets([(world.topic.topic_id, 0)])
    assert found is not None
    return found


async def begins_at(world: World, offset: int) -> None:
    """Within moments; a store over a network takes its time however fast the clock goes."""
    async with asyncio.timeout(5):
        while (await offsets(world)).log_start_offset != offset:
            await asyncio.sleep(0.01)


async def delete(world: World, offset: int, partition: int = 0) -> RecordsDeleted:
    (deleted,) = await world.client.delete_records([RecordsDeletion(world.topic.topic_id, partition, offset)])
    return deleted


async def live_bytes(world: World) -> int:
    return (await world.store.segment_totals(0, 1_000)).live_bytes


async def test_deleted_records_are_gone_at_once_and_their_bytes_later(world: World) -> None:
    await topic(world)
    await fill(world, 1_000, 2_000, 3_000)
    assert await delete(world, 15) == RecordsDeleted(15)
    assert await offsets(world) == PartitionOffsets(15, 30, 3_000)
    for offset in (0, 14):
        assert (await world.found(offset)).refusal is Refusal.OFFSET_OUT_OF_RANGE
    found = await world.found(15)
    assert (found.log_start_offset, [each.base_offset for each in found.extents]) == (15, [10, 20])
    async with asyncio.timeout(5):
        while await live_bytes(world) != 100:
            await asyncio.sleep(0.01)
    assert await delete(world, 3) == RecordsDeleted(15), "it never falls, and that is no error"
    await world.restart()
    assert await offsets(world) == PartitionOffsets(15, 30, 3_000)
    assert [each.base_offset for each in (await world.found(15)).extents] == [10, 20]
    assert await delete(world, -1) == RecordsDeleted(30)
    assert await offsets(world) == PartitionOffsets(30, 30, -1)
    found = await world.found(30)
    assert (found.refusal, found.extents) == (None, ())
    await fill(world, 500, first=4)
    assert await offsets(world) == PartitionOffsets(30, 40, 500)
    assert await world.client.find_extent_by_timestamp(world.topic.topic_id, 0, 501) is None


async def test_deletions_that_are_refused_change_nothing_and_do_not_disturb_others(world: World) -> None:
    await topic(world)
    await fill(world, 1_000)
    known, unknown = world.topic.topic_id, bytes(16)
    compacted = await world.client.create_topic("table", 1, {"cleanup.policy": "compact"})
    answers = await world.client.delete_records(
        [
            RecordsDeletion(known, 0, 11),
            RecordsDeletion(known, 0, -2),
            RecordsDeletion(known, 2, 0),
            RecordsDeletion(unknown, 0, 0),
            RecordsDeletion(compacted.topic_id, 0, 0),
            RecordsDeletion(known, 1, -1),
            RecordsDeletion(known, 0, 4),
        ]
    )
    assert [answer.refusal for answer in answers] == [
        Refusal.OFFSET_OUT_OF_RANGE,
        Refusal.OFFSET_OUT_OF_RANGE,
        Refusal.UNKNOWN_TOPIC_OR_PARTITION,
        Refusal.UNKNOWN_TOPIC_ID,
        Refusal.POLICY_VIOLATION,
        None,
        None,
    ]
    assert answers[5:] == [RecordsDeleted(0), RecordsDeleted(4)]
    assert await offsets(world) == PartitionOffsets(4, 10, 1_000)


async def test_followers_hear_that_a_log_was_cut(world: World) -> None:
    await topic(world)
    await fill(world, 1_000)
    listener = Recorder()
    subscription = await world.client.subscribe(listener)
    await subscription.follow([(world.topic.topic_id, 0)])
    await delete(world, 4)
    await world.heard(listener, 1)
    assert listener.heard == [LogStart(world.topic.topic_id, 0, 4)]
    subscription.close()


async def test_retention_by_time_cuts_whole_extents_once_they_are_too_old(world: World) -> None:
    await topic(world, retention_ms="60000")
    now = world.clock.wall_ms
    await fill(world, now - 50_000, now - 40_000, now)
    await world.pass_seconds(5)
    assert (await offsets(world)).log_start_offset == 0
    await world.pass_seconds(8)
    await begins_at(world, 10)
    await world.pass_seconds(10)
    await begins_at(world, 20)
    async with asyncio.timeout(5):
        while await live_bytes(world) != 50:
            await asyncio.sleep(0.01)
    await world.pass_seconds(45)
    await begins_at(world, 30)
    assert await offsets(world) == PartitionOffsets(30, 30, -1)


async def test_retention_by_size_keeps_as_much_as_it_says(world: World) -> None:
    await topic(world, retention_bytes="120", retention_ms="-1")
    await fill(world, 1, 2)
    await world.pass_seconds(3)
    assert (await offsets(world)).log_start_offset == 0
    await fill(world, 3, 4, 5, first=3)
    await world.pass_seconds(3)
    await begins_at(world, 20)  # 150 bytes are left: with one extent less they would be too few
    await world.restart()
    await fill(world, 6, first=6, size=500)
    await world.pass_seconds(3)
    await begins_at(world, 50)


async def test_limits_that_change_hold_from_the_next_look_on(world: World) -> None:
    await topic(world, retention_ms="-1", cleanup_policy="compact,delete")
    await fill(world, 1, 2, 3)
    await world.pass_seconds(3)
    assert (await offsets(world)).log_start_offset == 0
    await world.client.alter_topic_configs(world.topic.topic_id, {"retention.ms": "1000", "cleanup.policy": "compact"})
    await world.pass_seconds(3)
    assert (await offsets(world)).log_start_offset == 0
    await world.client.alter_topic_configs(world.topic.topic_id, {"cleanup.policy": None})
    await world.pass_seconds(3)
    await begins_at(world, 30)


async def test_a_log_longer_than_one_answer_is_cut_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadata.retention_service.COUNTED_ROWS", 7)
    await topic(world, retention_ms="1000", retention_bytes="1000000")
    draft = (world.topic.topic_id, 0, [batch(1, size=1, timestamp=5)])
    skipped = (world.topic.topic_id, 1, [batch(1, size=1, timestamp=5)])
    commits = [segment(number, draft, skipped, draft) for number in range(1, 60)]
    await world.client.commit_segments(world.epoch, 0, commits)
    assert (await offsets(world)).high_watermark == 118
    await world.pass_seconds(3)
    await begins_at(world, 118)
    assert await offsets(world) == PartitionOffsets(118, 118, -1)
