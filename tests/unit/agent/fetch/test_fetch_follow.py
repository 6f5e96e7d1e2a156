"""Partitions are followed before they are asked about, and let go of when nobody wants them."""

from __future__ import annotations

import asyncio

import pytest

from agent.fetch.follow import IDLE_SECONDS, Follower
from metadata.model import MetadataUnavailable
from runtime.tasks import Supervisor
from tests.unit.agent.fetch.world import TOPIC, FollowsAll, World, make_batch, records_of


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


class Slow(FollowsAll):
    """Calls wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[tuple[bytes, int]]] = []
        self.go = asyncio.Event()

    async def follow(self, partitions: list[tuple[bytes, int]]) -> None:  # type: ignore[override]
        self.calls.append(list(partitions))
        await self.go.wait()
        await super().follow(partitions)


def keys(*partitions: int) -> list[tuple[bytes, int]]:
    return [(TOPIC, partition) for partition in partitions]


async def test_what_many_want_at_once_is_one_call_and_the_next_waits_its_turn() -> None:
    subscription, forgotten = Slow(), []
    supervisor = Supervisor()
    follower = Follower(ManualClock(), supervisor, forgotten.append)
    follower.start(subscription)
    first = [asyncio.ensure_future(follower.follow(keys(number, 9))) for number in range(3)]
    await asyncio.sleep(0.001)
    late = asyncio.ensure_future(follower.follow(keys(1, 5)))
    await asyncio.sleep(0.001)
    assert len(subscription.calls) == 1 and sorted(subscription.calls[0]) == keys(0, 1, 2, 9)
    subscription.go.set()
    await asyncio.gather(*first, late)
    assert subscription.calls[1:] == [keys(5)], "what is followed already is not asked for again"
    assert sorted(forgotten) == keys(0, 1, 2, 5, 9), "what was known before was not kept up to date"
    assert follower.missing(keys(0, 5, 7)) == keys(7)
    await supervisor.stop()


async def test_one_who_goes_away_takes_nobody_along() -> None:
    subscription, supervisor = Slow(), Supervisor()
    follower = Follower(ManualClock(), supervisor, lambda _: None)
    follower.start(subscription)
    gone, stays = (asyncio.ensure_future(follower.follow(keys(0))) for _ in range(2))
    await asyncio.sleep(0.001)
    gone.cancel()
    await asyncio.sleep(0.001)
    subscription.go.set()
    await stays
    assert len(follower) == 1
    await supervisor.stop()


async def test_a_failure_reaches_everybody_who_waits_and_the_next_try_works() -> None:
    subscription, supervisor = FollowsAll(), Supervisor()
    follower = Follower(ManualClock(), supervisor, lambda _: None)
    follower.start(subscription)
    subscription.unavailable = True
    outcomes = await asyncio.gather(*(follower.follow(keys(0)) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, MetadataUnavailable) for outcome in outcomes)
    subscription.unavailable = False
    await follower.follow(keys(0))
    assert follower.missing(keys(0)) == []
    await supervisor.stop()


async def test_what_nobody_wants_is_let_go_of() -> None:
    clock, subscription, forgotten, supervisor = ManualClock(), FollowsAll(), [], Supervisor()
    follower = Follower(clock, supervisor, forgotten.append)
    follower.start(subscription)
    await follower.follow(keys(0, 1))
    forgotten.clear()
    clock.now = IDLE_SECONDS / 2
    follower.sweep()
    assert follower.missing(keys(1)) == []
    clock.now = IDLE_SECONDS
    follower.sweep()
    assert subscription.unfollowed == forgotten == keys(0)
    assert follower.missing(keys(0, 1)) == keys(0)
    await supervisor.stop()


async def test_a_partition_that_cannot_be_followed_is_an_error_of_its_own() -> None:
    world = World()
    for partition in range(2):
        world.create(partition)
    await world.write([(0, [make_batch([b"x"] * 3)]), (1, [make_batch([b"x"] * 2)])])
    (await world.fetch([(0, 0)])).release()
    world.subscription.unavailable = True
    fetched = await world.fetch([(0, 0), (1, 0)])
    assert len(records_of(fetched.partitions[0].chunks)) == 3
    assert isinstance(fetched.partitions[1].problem, MetadataUnavailable)
    fetched.release()
    world.subscription.unavailable = False
    fetched = await world.fetch([(0, 0), (1, 0)])
    assert [len(records_of(answer.chunks)) for answer in fetched.partitions] == [3, 2]
    fetched.release()
    await world.settle()


async def test_before_the_subscription_nothing_is_promised() -> None:
    follower = Follower(ManualClock(), Supervisor(), lambda _: None)
    with pytest.raises(MetadataUnavailable):
        await follower.follow(keys(0))
