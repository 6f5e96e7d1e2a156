from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from agent.fetch.patch import CorruptSegment
from metadata.model import ExtentsFound, MetadataUnavailable, Refusal
from storage.store import ObjectNotFound, StorageUnavailable
from tests.unit.agent.fetch.world import MIB, TOPIC, World, make_batch, records_of


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    for partition in range(3):
        world.create(partition)
    yield world
    await world.settle()
    assert world.budget.held_bytes == 0, dict(world.budget.by_purpose)


def numbered(first: int, count: int, size: int = 10) -> bytes:
    return make_batch([b"%0*d" % (size, number) for number in range(first, first + count)])


def numbers(chunks: object) -> list[int]:
    records = records_of(chunks)  # type: ignore[arg-type]
    assert [offset for offset, _ in records] == [int(value[-10:]) for _, value in records]
    return [offset for offset, _ in records]


async def test_the_tail_comes_from_the_writers_memory_and_asks_nobody_twice(world: World) -> None:
    await world.write([(0, [numbered(0, 3), numbered(3, 2)])])
    for _ in range(3):
        fetched = await world.fetch(0)
        answer = fetched.partitions[0]
        assert numbers(answer.chunks) == [0, 1, 2, 3, 4]
        assert (answer.high_watermark, answer.log_start_offset, answer.problem) == (5, 0, None)
        fetched.release()
    assert world.store.gets == []
    assert world.metadata.find_calls == 1, "the log start offset, once"
    assert (world.metrics.writer_hits, world.metrics.run_hits) == (1, 2)
    assert world.metrics.records_out == 15


async def test_an_offset_inside_a_batch_gets_that_whole_batch(world: World) -> None:
    await world.write([(0, [numbered(0, 3), numbered(3, 4), numbered(7, 1)])])
    fetched = await world.fetch(5)
    assert numbers(fetched.partitions[0].chunks) == [3, 4, 5, 6, 7]
    fetched.release()


async def test_max_bytes_of_one_still_gives_one_batch_per_request(world: World) -> None:
    await world.write([(partition, [numbered(0, 3), numbered(3, 3)]) for partition in range(3)])
    fetched = await world.fetch([(0, 0), (1, 0), (2, 4)], byte_max=1, partition_bytes=1)
    sent = [answer for answer in fetched.partitions if answer.chunks]
    assert len(sent) == 1
    assert len(numbers(sent[0].chunks)) == 3
    fetched.release()


async def test_partitions_take_turns_when_the_answer_is_small(world: World) -> None:
    await world.write([(partition, [numbered(0, 3)]) for partition in range(3)])
    served = []
    for _ in range(30):
        fetched = await world.fetch([(0, 0), (1, 0), (2, 0)], byte_max=1)
        served += [index for index, answer in enumerate(fetched.partitions) if answer.chunks]
        fetched.release()
    assert len(served) == 30
    assert all(served.count(index) >= 8 for index in range(3))


async def test_limits_hold_over_extents_and_partitions(world: World) -> None:
    for first in range(0, 30, 3):
        await world.write([(0, [numbered(first, 3)]), (1, [numbered(first, 3)])])
    size = len(numbered(0, 3))
    fetched = await world.fetch([(0, 0), (1, 0)], partition_bytes=4 * size, byte_max=7 * size)
    assert sorted(len(numbers(answer.chunks)) for answer in fetched.partitions) == [9, 12]
    fetched.release()


async def test_empty_partition_and_end_of_log_are_empty_answers(world: World) -> None:
    fetched = await world.fetch([(0, 0), (1, 0)])
    assert [(a.high_watermark, a.log_start_offset, a.byte_length, a.problem) for a in fetched.partitions] == [
        (0, 0, 0, None)
    ] * 2
    fetched.release()
    await world.write([(0, [numbered(0, 3)])])
    fetched = await world.fetch(3)
    assert (fetched.partitions[0].high_watermark, fetched.partitions[0].byte_length) == (3, 0)
    fetched.release()


@pytest.mark.parametrize("offset", [-1, 1, 4, 2**62])
async def test_out_of_range_is_said_only_by_the_metadata_service(world: World, offset: int) -> None:
    await world.write([(0, [numbered(0, 3)])])
    world.metadata.logs[TOPIC, 0].log_start_offset = 2
    fetched = await world.fetch(offset, max_wait_ms=60_000)
    answer = fetched.partitions[0]
    assert (answer.problem, answer.high_watermark, answer.log_start_offset) == (Refusal.OFFSET_OUT_OF_RANGE, -1, -1)
    fetched.release()


async def test_an_agent_that_has_not_heard_yet_asks_before_it_judges(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])])
    (await world.fetch(0)).release()
    await world.write([(0, [numbered(3, 3)])], announce=False)
    fetched = await world.fetch(6)
    assert (fetched.partitions[0].problem, fetched.partitions[0].high_watermark) == (None, 6)
    fetched.release()
    fetched = await world.fetch(4)
    assert numbers(fetched.partitions[0].chunks) == [3, 4, 5]
    fetched.release()


async def test_unknown_and_deleted_topics_are_problems_at_once(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])])
    (await world.fetch(0)).release()
    del world.metadata.logs[TOPIC, 0]
    world.fetcher.topic_deleted([TOPIC])
    fetched = await world.fetch([(0, 0), (1, 0)], max_wait_ms=60_000)
    assert [answer.problem for answer in fetched.partitions] == [Refusal.UNKNOWN_TOPIC_ID, None]
    fetched.release()


async def test_metadata_down_is_a_problem_of_those_who_need_it(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])])
    (await world.fetch(0)).release()
    world.metadata.unavailable = True
    fetched = await world.fetch([(0, 0), (1, 0)], max_wait_ms=60_000)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    assert isinstance(fetched.partitions[1].problem, MetadataUnavailable)
    fetched.release()


# --- waiting --------------------------------------------------------------------------------------------


async def started(world: World, waiting: int = 1) -> None:
    while world.metrics.waiting < waiting:
        await asyncio.sleep(0)


async def test_a_commit_wakes_who_waits_for_it_at_once(world: World) -> None:
    waiting = asyncio.create_task(world.fetch([(0, 0), (1, 0)], max_wait_ms=60_000))
    await started(world)
    await world.write([(2, [numbered(0, 1)])])
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.write([(1, [numbered(0, 3)])])
    for _ in range(5):  # turns of the loop: no timer has a part in it
        await asyncio.sleep(0)
    assert waiting.done()
    fetched = await waiting
    assert numbers(fetched.partitions[1].chunks) == [0, 1, 2]
    assert world.metrics.waiting == 0
    fetched.release()


async def test_min_bytes_gathers_several_commits(world: World) -> None:
    size = len(numbered(0, 3))
    waiting = asyncio.create_task(world.fetch(0, byte_min=2 * size + 1, max_wait_ms=60_000))
    await started(world)
    for first in (0, 3):
        await world.write([(0, [numbered(first, 3)])])
        await asyncio.sleep(0.01)
        assert not waiting.done()
    await world.write([(0, [numbered(6, 3)])])
    fetched = await waiting
    assert numbers(fetched.partitions[0].chunks) == list(range(9))
    fetched.release()


async def test_max_wait_ends_with_what_there_is(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])])
    begin = time.perf_counter()
    fetched = await world.fetch(0, byte_min=MIB, max_wait_ms=50)
    assert 0.04 < time.perf_counter() - begin < 1
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    waiting = asyncio.create_task(world.fetch(3, byte_min=MIB, max_wait_ms=50))
    await started(world)
    await world.write([(0, [numbered(3, 3)])])
    fetched = await waiting
    assert numbers(fetched.partitions[0].chunks) == [3, 4, 5]
    fetched.release()


async def test_a_commit_during_the_metadata_call_is_not_missed(world: World) -> None:
    (await world.fetch(0)).release()
    inner = world.metadata.find_extents

    async def slow(queries: object) -> list[ExtentsFound]:
        answer = await inner(queries)  # type: ignore[arg-type]
        await world.write([(0, [numbered(0, 3)])])
        return answer

    world.metadata.find_extents = slow  # type: ignore[method-assign,assignment]
    fetched = await asyncio.wait_for(world.fetch([(0, 0), (1, 0)], max_wait_ms=60_000), 5)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()


async def test_deletion_and_resynchronization_wake_those_who_wait(world: World) -> None:
    waiting = asyncio.create_task(world.fetch(0, max_wait_ms=60_000))
    await started(world)
    await world.write([(0, [numbered(0, 1)])], announce=False)
    await asyncio.sleep(0.01)
    assert not waiting.done()
    world.fetcher.resynchronize()
    fetched = await asyncio.wait_for(waiting, 5)
    assert numbers(fetched.partitions[0].chunks) == [0]
    fetched.release()
    waiting = asyncio.create_task(world.fetch(1, max_wait_ms=60_000))
    await started(world)
    del world.metadata.logs[TOPIC, 0]
    world.fetcher.topic_deleted([TOPIC])
    fetched = await asyncio.wait_for(waiting, 5)
    assert fetched.partitions[0].problem is Refusal.UNKNOWN_TOPIC_ID
    fetched.release()


async def test_a_cancelled_wait_leaves_nothing_behind(world: World) -> None:
    waiting = asyncio.create_task(world.fetch(0, max_wait_ms=60_000))
    await started(world)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert world.metrics.waiting == 0
    await world.write([(0, [numbered(0, 1)])])


# --- the object store -----------------------------------------------------------------------------------


async def test_without_the_writers_memory_blocks_are_read_once(world: World) -> None:
    await world.write([(0, [numbered(0, 100), numbered(100, 100)]), (1, [numbered(0, 3)])], tail=False)
    for _ in range(3):
        fetched = await world.fetch([(0, 0), (1, 0)])
        assert numbers(fetched.partitions[0].chunks) == list(range(200))
        assert numbers(fetched.partitions[1].chunks) == [0, 1, 2]
        fetched.release()
    assert len(world.store.gets) == 1
    assert world.metrics.block_reads == 1


async def test_extents_over_many_blocks_and_large_batches(world: World) -> None:
    await world.write([(1, [numbered(0, 1)]), (0, [numbered(0, 3, 100_000), numbered(3, 2, 90_000)])], tail=False)
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2, 3, 4]
    fetched.release()
    assert sorted(start for _, start in world.store.gets) == [0, 65536, 131072, 196608, 262144, 327680, 393216, 458752]


async def test_concurrent_readers_share_one_read(world: World) -> None:
    await world.write([(0, [numbered(0, 3)]), (1, [numbered(0, 5)])], tail=False)
    gate = asyncio.Event()

    async def hold(_: str) -> None:
        await gate.wait()

    world.store.before_get = hold
    fetches = [asyncio.create_task(world.fetch([(index % 2, 0)])) for index in range(6)]
    while not world.store.gets:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    fetches[0].cancel()
    fetches[1].cancel()
    await asyncio.sleep(0)
    gate.set()
    for index, task in enumerate(fetches[2:]):
        fetched = await task
        assert numbers(fetched.partitions[0].chunks) == ([0, 1, 2] if index % 2 == 0 else [0, 1, 2, 3, 4])
        fetched.release()
    assert len(world.store.gets) == 1


async def test_cancelling_every_reader_lets_the_read_finish_into_the_cache(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])], tail=False)
    gate = asyncio.Event()

    async def hold(_: str) -> None:
        await gate.wait()

    world.store.before_get = hold
    task = asyncio.create_task(world.fetch(0))
    while not world.store.gets:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    world.store.before_get = None
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    assert len(world.store.gets) == 1


@pytest.mark.parametrize("steps", range(30))
async def test_cancelling_at_any_step_gives_every_byte_back(world: World, steps: int) -> None:
    await world.write([(0, [numbered(0, 3, 60_000)]), (1, [numbered(0, 3)])], tail=False, announce=False)
    await world.write([(1, [numbered(3, 3)]), (2, [numbered(0, 3, 20_000)])])

    async def slow(_: str) -> None:
        await asyncio.sleep(0)

    world.store.before_get = slow
    tasks = [asyncio.create_task(world.fetch([(0, 0), (1, 0), (2, 0)])) for _ in range(3)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
    for fetched in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(fetched, BaseException):
            assert [len(numbers(answer.chunks)) for answer in fetched.partitions] == [3, 6, 3]
            fetched.release()


async def test_a_missing_object_is_resolved_once_more(world: World) -> None:
    (old,) = await world.write([(0, [numbered(0, 3)])], tail=False)
    (await world.fetch(0)).release()
    world.evict()
    await world.store.delete([old.segment_key])
    log = world.metadata.logs[TOPIC, 0]
    log.extents, log.high_watermark = [], 0
    await world.write([(0, [numbered(0, 3)])], tail=False, announce=False)  # compaction moved it
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    assert world.metrics.missing_objects == 1
    fetched.release()


async def test_what_is_found_when_a_missing_object_is_resolved_comes_with_its_own_high_watermark(world: World) -> None:
    """More was committed since the answer was begun: no record lies beyond its high watermark (simulation, seed 56)."""
    (old,) = await world.write([(0, [numbered(0, 3)])], tail=False)
    (await world.fetch(0)).release()
    world.evict()
    await world.store.delete([old.segment_key])
    log = world.metadata.logs[TOPIC, 0]
    log.extents, log.high_watermark = [], 0
    await world.write([(0, [numbered(0, 3), numbered(3, 2)])], tail=False, announce=False)
    fetched = await world.fetch(0)
    answer = fetched.partitions[0]
    assert numbers(answer.chunks) == [0, 1, 2, 3, 4] and answer.high_watermark == 5
    fetched.release()


async def test_an_object_that_stays_missing_is_a_problem(world: World) -> None:
    (gone,) = await world.write([(0, [numbered(0, 3)])], tail=False)
    await world.write([(1, [numbered(0, 3)])])
    await world.store.delete([gone.segment_key])
    fetched = await world.fetch([(0, 0), (1, 0)])
    assert isinstance(fetched.partitions[0].problem, ObjectNotFound)
    assert numbers(fetched.partitions[1].chunks) == [0, 1, 2]
    fetched.release()


@pytest.mark.parametrize("tail", [True, False])
async def test_a_corrupt_extent_is_a_problem_of_its_partition(world: World, tail: bool) -> None:
    bad = bytearray(numbered(3, 3))
    bad[16] = 1
    await world.write([(0, [numbered(0, 3), bytes(bad)]), (1, [numbered(0, 3)])], tail=tail)
    for _ in range(2):
        fetched = await world.fetch([(0, 0), (1, 0)])
        problem = fetched.partitions[0].problem
        assert isinstance(problem, CorruptSegment)
        assert f"-000000000001-00-00000000 at byte {len(numbered(0, 3))}: magic 1" in str(problem)
        assert numbers(fetched.partitions[1].chunks) == [0, 1, 2]
        fetched.release()


async def test_good_extents_before_a_bad_one_are_served(world: World) -> None:
    await world.write([(0, [numbered(0, 3)])], tail=False)
    (bad,) = await world.write([(0, [numbered(3, 3)])], tail=False)
    await world.store.delete([bad.segment_key])
    await world.store.put(bad.segment_key, [b"\0" * 10], 0)
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    fetched = await world.fetch(3)
    assert isinstance(fetched.partitions[0].problem, CorruptSegment)
    fetched.release()


async def test_a_read_that_hangs_fails_after_its_deadline() -> None:
    world = World(read_deadline_ms=100)
    world.create()
    await world.write([(0, [numbered(0, 3)])], tail=False)

    async def hang(_: str) -> None:
        await asyncio.sleep(60)

    world.store.before_get = hang
    fetched = await asyncio.wait_for(world.fetch(0), 5)
    assert isinstance(fetched.partitions[0].problem, StorageUnavailable)
    fetched.release()
    world.store.before_get = None
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    await world.settle()
    assert world.budget.held_bytes == 0


async def test_reads_are_bounded() -> None:
    world = World(reads_max=4, cold_reads_max=2)
    running = most = 0

    async def count(_: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    world.store.before_get = count
    for partition in range(12):
        world.create(partition)
    (await world.fetch([(partition, 0) for partition in range(12)])).release()  # followed from now on
    for announce, bound in ((True, 4), (False, 2)):
        for partition in range(12):
            log = world.metadata.logs[TOPIC, partition]
            first = log.high_watermark
            await world.write([(partition, [numbered(first, 3)])], tail=False, announce=announce)
        world.evict()
        most = 0
        if not announce:
            world.fetcher.resynchronize()
        fetched = await world.fetch([(partition, first) for partition in range(12)])
        assert all(len(numbers(answer.chunks)) == 3 for answer in fetched.partitions)
        fetched.release()
        assert most == bound
    await world.settle()


async def test_catching_up_reads_ahead(world: World) -> None:
    for first in range(20):
        await world.write([(0, [numbered(first, 1, 50_000)])], tail=False, announce=False)
    offset = 0
    while offset < 20:
        fetched = await world.fetch(offset, partition_bytes=1)
        got = numbers(fetched.partitions[0].chunks)
        fetched.release()
        assert got[0] == offset
        offset = got[-1] + 1
        await asyncio.sleep(0.001)
    assert world.metrics.read_ahead >= 15
    assert len(world.store.gets) == 20, "each block once"
    assert world.metadata.find_calls <= 2


# --- memory ---------------------------------------------------------------------------------------------


async def test_a_replay_cannot_push_the_tail_out() -> None:
    world = World()
    world.create()
    first = 0
    for _ in range(60):
        await world.write([(0, [numbered(first, 10, 100_000)])], tail=False, announce=False)
        first += 10
    tail_begin = first
    for _ in range(5):
        await world.write([(0, [numbered(first, 10, 100_000)])])
        first += 10
    fetched = await world.fetch(tail_begin, partition_bytes=50 * MIB)
    fetched.release()
    offset = 0
    while offset < tail_begin:
        fetched = await world.fetch(offset, partition_bytes=3 * MIB)
        got = numbers(fetched.partitions[0].chunks)
        offset = got[-1] + 1
        fetched.release()
        cold = world.fetcher.cache.cold
        assert cold.held_bytes + world.fetcher.cache.hot.held_bytes <= 32 * MIB
    gets = len(world.store.gets)
    assert gets > 60
    fetched = await world.fetch(tail_begin, partition_bytes=50 * MIB)
    assert numbers(fetched.partitions[0].chunks) == list(range(tail_begin, first))
    fetched.release()
    assert len(world.store.gets) == gets
    await world.settle()
    assert world.budget.held_bytes == 0


async def test_the_cache_stays_under_its_share_and_keeps_what_is_in_use() -> None:
    world = World()
    world.create()
    share = int(64 * MIB * world.settings.memory.cache_share)
    held = []
    for first in range(0, 1000, 10):
        await world.write([(0, [numbered(first, 10, 100_000)])])
        if first < 50:
            held.append((first, await world.fetch(first)))
        assert world.budget.by_purpose["cache"] <= share
    for first, fetched in held:
        assert numbers(fetched.partitions[0].chunks) == list(range(first, first + 10))
        fetched.release()
    await world.settle()
    assert world.budget.held_bytes == 0


async def test_evicted_bytes_in_use_are_counted_until_released(world: World) -> None:
    await world.write([(0, [numbered(0, 3, 50_000)])])
    fetched = await world.fetch(0)
    world.evict()
    assert world.budget.held_bytes > 150_000
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    assert world.budget.held_bytes == 0
    with pytest.raises(AssertionError, match="once"):
        fetched.release()


async def test_over_the_budget_a_fetch_still_gets_one_batch_and_holds_little() -> None:
    world = World()
    world.create()
    await world.write([(0, [numbered(first, 10, 2_000) for first in range(0, 200, 10)])], tail=False, announce=False)
    world.budget.take("request", 64 * MIB)
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == list(range(10))
    assert 20_000 < world.budget.by_purpose["response"] < 25_000
    await world.supervisor.stop()
    world.evict()
    assert world.budget.by_purpose["cache"] == 0
    fetched.release()
    assert world.budget.held_bytes == 64 * MIB


async def test_a_dropped_segment_is_not_served_from_memory(world: World) -> None:
    (extent,) = await world.write([(0, [numbered(0, 3)])])
    world.fetcher.segment_dropped(extent.segment_key)
    assert world.budget.held_bytes == 0
    fetched = await world.fetch(0)
    assert numbers(fetched.partitions[0].chunks) == [0, 1, 2]
    fetched.release()
    assert len(world.store.gets) == 1
