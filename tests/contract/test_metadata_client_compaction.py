"""Swapping extents as every metadata client must do it: compare and set, all or nothing, safe to repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agent.fetch.patch import RunBuilder
from agent.fetch.placed import run_builder
from metadata.compaction import ExtentSwap
from metadata.model import Extent, Fenced, Refusal, Refused
from runtime.settings import LifecycleSettings
from tests.contract.test_metadata_client import World
from tests.support.metadata import Recorder, batch, registration, segment
from tests.support.metadata_stores import STORES, metadata_url

SECOND = 500_000_000_000


@pytest.fixture(params=[f"{store}{transport}" for transport in ("", "-http") for store in STORES])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Six segments with ten records of partition 0 each, and five of partition 1."""
    store, _, transport = request.param.partition("-")
    with metadata_url(store, tmp_path, request) as url:
        world = World(url, transport)
        await world.start()
        world.epoch = (await world.client.register_agent(registration())).agent_epoch
        world.topic = await world.client.create_topic("logs", 2, {})
        for number in range(6):
            await commit(world, number)
        yield world
        await world.stop()


async def commit(world: World, number: int) -> None:
    topic = world.topic.topic_id
    drafts = segment(number, (topic, 0, [batch(10, size=1_000)]), (topic, 1, [batch(5)]))
    await world.client.commit_segments(world.epoch, number - 1, [drafts])


def swap(world: World, *ranges: tuple[int, int, int], number: int = 0, inputs: range = range(6)) -> ExtentSwap:
    """``ranges``: (partition, base offset, last offset)."""
    key = f"segments/c{number}"
    extents = [
        Extent(world.topic.topic_id, partition, base, last, key, 3_000 * index, 3_000, 1_000, world.clock.now_ms(), 1)
        for index, (partition, base, last) in enumerate(ranges)
    ]
    keys = frozenset(f"segments/{each}" for each in inputs)
    return ExtentSwap(SECOND + number, key, 9_000, 1, world.clock.now_ms(), keys, tuple(extents))


async def bases(world: World, partition: int = 0) -> list[tuple[int, int, int]]:
    found = await world.found(0, partition=partition)
    return [(each.base_offset, each.last_offset, each.level) for each in found.extents]


async def test_readers_see_the_new_extents_and_nothing_else_has_changed(world: World) -> None:
    listener = Recorder()
    subscription = await world.client.subscribe(listener)
    await subscription.follow([(world.topic.topic_id, 0)])
    wanted = swap(world, (0, 10, 39), (1, 0, 29))
    await world.client.swap_extents(world.epoch, wanted)
    expected = [(0, 9, 0), (10, 39, 1), (40, 49, 0), (50, 59, 0)]
    assert await bases(world) == expected
    assert await bases(world, 1) == [(0, 29, 1)]
    found = await world.found(25, byte_max=1)
    assert (found.high_watermark, found.log_start_offset, found.extents) == (60, 0, wanted.extents[:1])
    await commit(world, 6)
    await world.heard(listener, 1)
    assert await bases(world) == [*expected, (60, 69, 0)]
    await world.restart()
    assert await bases(world) == [*expected, (60, 69, 0)]
    subscription.close()


async def test_segments_tell_what_is_in_them(world: World) -> None:
    await world.client.swap_extents(world.epoch, swap(world, (0, 0, 29)))
    found = await world.client.find_segment_extents([(world.epoch, 1), (world.epoch, 4)])
    assert sorted((each.partition, each.base_offset, each.segment_key) for each in found) == [
        (0, 40, "segments/4"),
        (1, 5, "segments/1"),
        (1, 20, "segments/4"),
    ]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_repeated_swap_changes_nothing(world: World, restarted: bool) -> None:
    wanted = swap(world, (0, 0, 59))
    await world.client.swap_extents(world.epoch, wanted)
    if restarted:
        await world.restart()
    await world.client.swap_extents(world.epoch, wanted)
    assert await bases(world) == [(0, 59, 1)]
    more = swap(world, (0, 0, 59), (1, 0, 29))
    await world.client.swap_extents(world.epoch, more)
    assert await bases(world, 1) == [(0, 29, 1)], "what was not done yet"


async def test_of_two_who_compact_the_same_one_wins(world: World) -> None:
    swaps = [swap(world, (0, 0, 39), number=1), swap(world, (0, 20, 59), number=2), swap(world, (0, 0, 59), number=3)]
    outcomes = await asyncio.gather(
        *(world.client.swap_extents(world.epoch, each) for each in swaps), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert len(refused) == 2
    assert {each.refusal for each in refused} == {Refusal.INVALID_REQUEST}
    assert sum(level for _, _, level in await bases(world)) == 1


@pytest.mark.parametrize(
    ("ranges", "inputs"),
    [
        ([(1, 0, 29), (0, 5, 39)], range(6)),
        ([(1, 0, 29), (0, 10, 41)], range(6)),
        ([(1, 0, 29), (0, 50, 69)], range(6)),
        ([(1, 0, 29), (7, 0, 9)], range(6)),
        ([(0, 0, 59), (1, 0, 29)], range(5)),
    ],
)
async def test_extents_that_are_not_there_as_read_are_refused_with_all_others(
    world: World, ranges: list[tuple[int, int, int]], inputs: range
) -> None:
    before = await bases(world), await bases(world, 1)
    with pytest.raises(Refused) as refused:
        await world.client.swap_extents(world.epoch, swap(world, *ranges, inputs=inputs))
    assert refused.value.refusal is Refusal.INVALID_REQUEST
    assert (await bases(world), await bases(world, 1)) == before


async def test_a_segment_cannot_pretend_to_be_another(world: World) -> None:
    wanted = swap(world, (0, 0, 59))
    for wrong in (
        msgspec.structs.replace(wanted, segment_key="segments/other"),
        msgspec.structs.replace(wanted, level=2),
        msgspec.structs.replace(
            wanted, level=0, extents=tuple(msgspec.structs.replace(e, level=0) for e in wanted.extents)
        ),
    ):
        with pytest.raises(Refused):
            await world.client.swap_extents(world.epoch, wrong)
    assert len(await bases(world)) == 6


async def test_a_sequence_is_of_one_segment(world: World) -> None:
    await world.client.swap_extents(world.epoch, swap(world, (0, 0, 29)))
    for number, sequence in ((1, SECOND), (2, 3)):
        wrong = msgspec.structs.replace(swap(world, (1, 0, 29), number=number), sequence=sequence)
        with pytest.raises(Refused):
            await world.client.swap_extents(world.epoch, wrong)
    assert len(await bases(world, 1)) == 6


async def test_a_fenced_epoch_swaps_nothing(world: World) -> None:
    old = world.epoch
    world.epoch = (await world.client.register_agent(registration())).agent_epoch
    with pytest.raises(Fenced):
        await world.client.swap_extents(old, swap(world, (0, 0, 59)))
    assert len(await bases(world)) == 6
    await world.client.swap_extents(world.epoch, swap(world, (0, 0, 59)))
    assert await bases(world) == [(0, 59, 1)]


async def test_extents_of_a_topic_that_may_come_back_are_swapped_but_not_offered(world: World) -> None:
    """A compacted segment has many topics: one that is deleted meanwhile does not make all of it void."""
    wanted = swap(world, (0, 0, 59))
    await world.client.delete_topic(world.topic.topic_id)
    assert await world.client.find_segment_extents([(world.epoch, 1)]) == []
    await world.client.swap_extents(world.epoch, wanted)
    await world.client.undelete_topic(world.topic.topic_id)
    for _ in range(2):
        assert await bases(world) == [(0, 59, 1)]
        assert len(await bases(world, 1)) == 6
        await world.restart()


async def test_extents_of_a_topic_that_is_gone_are_not_swapped(world: World) -> None:
    world.lifecycle = LifecycleSettings(undelete_ms=0)
    await world.restart()
    await world.client.delete_topic(world.topic.topic_id)
    with pytest.raises(Refused):
        await world.client.swap_extents(world.epoch, swap(world, (0, 0, 59)))


async def test_a_duplicate_is_still_known_by_its_first_offsets(world: World) -> None:
    topic = world.topic.topic_id
    sent = [batch(3, producer=(await world.client.grant_producer_id(-1, -1)).producer_id, epoch=0, sequence=0)]
    await world.client.commit_segments(world.epoch, 5, [segment(6, (topic, 0, sent))])
    await world.client.swap_extents(world.epoch, swap(world, (0, 50, 62), inputs=range(7)))
    (answer,) = await world.client.commit_segments(world.epoch, 6, [segment(7, (topic, 0, sent))])
    assert (answer.extents[0][0].base_offset, answer.extents[0][0].duplicate) == (60, True)
    assert (await bases(world))[-1] == (50, 62, 1)


async def test_a_segment_that_is_large_as_it_is_does_not_read_as_placed(world: World) -> None:
    """Its batches carry no offsets. What is found in the store says the same of it as what is still in memory."""
    draft = (world.topic.topic_id, 0, [batch(10, size=8 << 20)])
    await world.client.commit_segments(world.epoch, 5, [segment(6, draft)])
    for _ in range(2):
        extent = (await world.found(60)).extents[0]
        assert extent.base_offset == 60 and extent.level <= 0
        assert type(run_builder(extent, [memoryview(bytes(extent.byte_length))])) is RunBuilder
        await world.restart()
