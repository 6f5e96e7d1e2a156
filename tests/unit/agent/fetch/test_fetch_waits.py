from __future__ import annotations

import asyncio

from agent.fetch.waits import Waits
from metadata.model import Extent
from tests.unit.agent.fetch.world import TOPIC


def extent(partition: int, byte_length: int = 10) -> Extent:
    return Extent(TOPIC, partition, 0, 0, "s", 0, byte_length, 0, 0)


async def test_only_those_who_wait_for_the_partition_are_touched() -> None:
    waits = Waits()
    waiters = [waits.enter([(TOPIC, index), (TOPIC, 1000 + index)], 1) for index in range(100)]
    tasks = [asyncio.create_task(waiter.wait(60)) for waiter in waiters]
    await asyncio.sleep(0)
    waits.committed([extent(5), extent(1007), extent(99_999)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [index for index, task in enumerate(tasks) if task.done()] == [5, 7]
    assert all(task.result() for task in tasks if task.done())
    for task in tasks:
        task.cancel()
    for waiter in waiters:
        waits.leave(waiter)
    assert len(waits) == 0 and not waits._by_partition


async def test_time_alone_is_told_apart() -> None:
    waits = Waits()
    waiter = waits.enter([(TOPIC, 0)], 100)
    waits.committed([extent(0, 99)])
    assert await waiter.wait(0.01) is False
    waits.leave(waiter)
    waits.leave(waiter)
    waiter = waits.enter([(TOPIC, 0)], 100)
    waits.committed([extent(0, 99), extent(0, 1)])
    waits.committed([extent(0, 99)])
    assert await waiter.wait(60) is True


async def test_a_partition_named_twice_is_one_wait() -> None:
    waits = Waits()
    waiter = waits.enter([(TOPIC, 0), (TOPIC, 0)], 1)
    waits.committed([extent(0)])
    assert await waiter.wait(60)
    waits.leave(waiter)
    assert not waits._by_partition
