"""No batch of an idempotent producer is committed before an earlier one of it that failed has come back.

The writers know nothing of this: the metadata service refuses what would overtake, whichever agent it comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ingest.ticket import IngestFailed
from metadata.model import BatchCommitted, Fenced, Refusal, Topic
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from runtime.settings import KIB
from storage.store import StorageRefused
from tests.support.batches import build_batch
from tests.support.ingest_fakes import FakeStore, IngestBench, Put, all_failed, offsets
from tests.support.metadata import registration, running_service
from tests.support.virtual_time import VirtualClock

REFUSED = Put(0.05, StorageRefused("access denied"), effect=False)
BIG = 70_000
"""Batches of this size are a segment each."""
OVERTAKES = Refusal.OUT_OF_ORDER_SEQUENCE


class World:
    """A metadata service, its topic, and a producer id it granted."""

    def __init__(self, service: MetadataService, topic: Topic, producer_id: int) -> None:
        self.service = service
        self.topic = topic
        self.producer_id = producer_id

    async def agent(self, name: str = "agent-1", **settings: Any) -> Agent:
        epoch = (await self.service.register_agent(registration(name))).agent_epoch
        return Agent(self, epoch, **settings)

    def batch(self, sequence: int, producer_id: int | None = None, epoch: int = 0, size: int = 1) -> bytes:
        producer_id = self.producer_id if producer_id is None else producer_id
        value = b"%d/%d/" % (producer_id, sequence) + b"x" * size
        return build_batch([value], producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)


class Agent:
    """A writer over an object store of its own."""

    def __init__(self, world: World, epoch: int, **settings: Any) -> None:
        self.bench = IngestBench(
            store=FakeStore(hedged=False),
            metadata=world.service,
            agent_epoch=epoch,
            linger_ms=0,
            segment_bytes_max=64 * KIB,
            **settings,
        )
        self.puts = self.bench.store.puts
        self._topic_id = world.topic.topic_id

    def produce(self, *batches: bytes, partition: int = 0) -> asyncio.Future[list[Any]]:
        return self.bench.produce(*batches, partition=partition, topic_id=self._topic_id)


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    async with running_service(MemoryMetadataStore(), VirtualClock()) as service:
        topic = await service.create_topic("logs", 2, {})
        for _ in range(10):
            granted = await service.grant_producer_id(-1, -1)
        yield World(service, topic, granted.producer_id)


def refusals(outcomes: Sequence[Any]) -> list[Refusal | None]:
    assert all(isinstance(outcome, BatchCommitted) for outcome in outcomes), outcomes
    return [outcome.refusal for outcome in outcomes]


@pytest.mark.parametrize("failure", [REFUSED, Put(hang=True)])
async def test_what_a_producer_pipelined_behind_a_failed_batch_waits_for_it_to_come_back(failure: Put) -> None:
    async with a_world() as world:
        agent = await world.agent(upload_deadline_ms=1_000)
        agent.puts.append(failure)
        first = agent.produce(world.batch(0, size=BIG))
        behind = agent.produce(world.batch(1, size=BIG))
        assert all_failed(await first)
        assert refusals(await behind) == [OVERTAKES]
        # Read only after its client had been told of the failure of sequence 0, and before that comes back.
        assert refusals(await agent.produce(world.batch(2, size=BIG))) == [OVERTAKES]
        again = [agent.produce(world.batch(sequence, size=BIG)) for sequence in range(3)]
        assert [offsets(await future) for future in again] == [[0], [1], [2]]
        await agent.bench.writer.drain()
        assert len(agent.bench.store.objects) == 3, "objects of which nothing was committed are deleted"
        await agent.bench.close()


async def test_only_the_batches_that_would_overtake_are_refused() -> None:
    async with a_world() as world:
        agent = await world.agent()
        agent.puts.append(REFUSED)
        first = agent.produce(world.batch(0, size=BIG))
        mixed = agent.produce(
            world.batch(0, producer_id=8),
            world.batch(1),
            world.batch(2),
            world.batch(1, producer_id=8),
            build_batch(),
            world.batch(3),
        )
        other_partition = agent.produce(world.batch(0), partition=1)
        assert all_failed(await first)
        outcomes = await mixed
        assert refusals(outcomes) == [None, OVERTAKES, OVERTAKES, None, None, OVERTAKES]
        assert [outcome.base_offset for outcome in outcomes if outcome.refusal is None] == [0, 1, 2]
        assert offsets(await other_partition) == [0]
        await agent.bench.close()


async def test_a_retry_lets_what_follows_it_pass_even_in_one_segment() -> None:
    async with a_world() as world:
        agent = await world.agent()
        agent.puts.append(REFUSED)
        assert all_failed(await agent.produce(world.batch(0, size=BIG)))
        outcomes = await agent.produce(world.batch(1), world.batch(0), world.batch(1))
        assert refusals(outcomes) == [OVERTAKES, None, None]
        await agent.bench.close()


async def test_a_retry_that_fails_as_well_keeps_the_rule() -> None:
    async with a_world() as world:
        agent = await world.agent()
        agent.puts.extend([REFUSED, REFUSED])
        assert all_failed(await agent.produce(world.batch(0, size=BIG)))
        again = agent.produce(world.batch(0, size=BIG))
        behind = agent.produce(world.batch(1, size=BIG))
        assert all_failed(await again)
        assert refusals(await behind) == [OVERTAKES]
        assert offsets(await agent.produce(world.batch(0), world.batch(1))) == [0, 1]
        await agent.bench.close()


async def test_a_known_producer_and_a_new_epoch_are_no_different() -> None:
    async with a_world() as world:
        agent = await world.agent()
        assert offsets(await agent.produce(world.batch(0), world.batch(1))) == [0, 1]
        for epoch, next_sequence in ((0, 2), (1, 0)):
            agent.puts.append(REFUSED)
            failed = agent.produce(world.batch(next_sequence, epoch=epoch, size=BIG))
            behind = agent.produce(world.batch(next_sequence + 1, epoch=epoch, size=BIG))
            assert all_failed(await failed)
            assert refusals(await behind) == [OVERTAKES]
        assert offsets(await agent.produce(world.batch(0, epoch=1), world.batch(1, epoch=1))) == [2, 3]
        await agent.bench.close()


async def test_a_segment_that_fails_while_earlier_ones_upload_does_not_touch_them() -> None:
    async with a_world() as world:
        agent = await world.agent()
        agent.puts.extend([Put(1.0), REFUSED, Put(0.01)])
        futures = [agent.produce(world.batch(sequence, size=BIG)) for sequence in range(3)]
        assert all_failed(await futures[1])
        assert offsets(await futures[0]) == [0]
        assert refusals(await futures[2]) == [OVERTAKES]
        assert offsets(await agent.produce(world.batch(1), world.batch(2))) == [1, 2]
        await agent.bench.close()


async def test_a_producer_that_changes_agents_cannot_overtake_itself() -> None:
    """What an agent's own memory could not see."""
    async with a_world() as world:
        one, other = await world.agent("one"), await world.agent("other")
        one.puts.append(REFUSED)
        failing = one.produce(world.batch(0, size=BIG))
        assert refusals(await other.produce(world.batch(1))) == [OVERTAKES], "the first is still under way"
        assert all_failed(await failing)
        assert refusals(await other.produce(world.batch(1))) == [OVERTAKES]
        assert offsets(await other.produce(world.batch(0), world.batch(1))) == [0, 1]
        assert offsets(await one.produce(world.batch(2))) == [2]
        for agent in (one, other):
            await agent.bench.close()


async def test_what_failed_when_fenced_must_come_back_first_in_the_new_epoch() -> None:
    async with a_world() as world:
        agent = await world.agent()
        await agent.produce(build_batch())
        await world.service.register_agent(registration())  # a copy of the call, or another process
        assert all_failed(await agent.produce(world.batch(0)))
        assert all_failed(await agent.produce(world.batch(0)))
        agent.bench.writer.start((await world.service.register_agent(registration())).agent_epoch)
        assert refusals(await agent.produce(world.batch(1))) == [OVERTAKES]
        assert offsets(await agent.produce(world.batch(0), world.batch(1))) == [1, 2]
        await agent.bench.close()


async def test_a_failed_batch_of_nobody_in_particular_holds_up_nothing() -> None:
    async with a_world() as world:
        agent = await world.agent()
        agent.puts.append(REFUSED)
        first = agent.produce(build_batch([b"x" * BIG]))
        behind = agent.produce(build_batch([b"y" * BIG]))
        (failed,) = await first
        assert isinstance(failed, IngestFailed)
        assert offsets(await behind) == [0]
        with pytest.raises(Fenced):
            await world.service.commit_segments(99, -1, [])
        await agent.bench.close()
