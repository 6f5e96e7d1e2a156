"""The metadata client over stores that fail before and after effect, are slow, or cannot be read for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

import metadata.pipeline
from metadata.agent_model import AgentCondition, AgentHeartbeat
from metadata.group_model import JoinGroup
from metadata.model import (
    ExtentsQuery,
    Fenced,
    MetadataUnavailable,
    PartitionOffsets,
    Refusal,
    Refused,
    SegmentCommit,
    SegmentCommitted,
    Topic,
    TopicsChanged,
)
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from metadata.store.port import Deposed
from tests.support.metadata import (
    FaultyMetadataStore,
    Recorder,
    batch,
    registration,
    running_service,
    segment,
)
from tests.support.metadata_stores import STORES, metadata_url


class World:
    """A service over a store that can be told to fail. An agent has registered and there is a topic."""

    def __init__(self, service: MetadataService, store: FaultyMetadataStore, epoch: int, topic: Topic) -> None:
        self.service = service
        self.store = store
        self.epoch = epoch
        self.topic = topic

    def segment(self, sequence: int, records: int = 1, producer: int = -1, first: int = -1) -> SegmentCommit:
        one = batch(records, producer=producer, epoch=0, sequence=first)
        return segment(sequence, (self.topic.topic_id, 0, [one]))

    async def commit(self, *commits: SegmentCommit) -> list[SegmentCommitted]:
        return await self.service.commit_segments(self.epoch, -1, commits)

    async def high_watermark(self) -> int:
        (offsets,) = await self.service.partition_offsets([(self.topic.topic_id, 0)])
        assert offsets is not None
        return offsets.high_watermark

    async def is_dense(self) -> bool:
        """From the store alone: every offset below the high watermark is in exactly one extent."""
        high_watermark = await self.high_watermark()
        expected = 0
        for extent in await self.store.find_extents(self.topic.topic_id, 0, 0, 10**9, high_watermark):
            assert extent.base_offset == expected
            expected = extent.last_offset + 1
        return expected == high_watermark


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    with metadata_url(request.param, tmp_path, request) as url:
        store = FaultyMetadataStore(open_metadata_store(url))
        async with running_service(store) as service:
            epoch = (await service.register_agent(registration())).agent_epoch
            yield World(service, store, epoch, await service.create_topic("logs", 1, {}))
            if store.gate is not None:
                store.gate.set()  # a test that failed must not hold up the stop


@pytest.mark.parametrize("effect", ["none", "taken"])
@pytest.mark.parametrize("producer", [-1, 5])
async def test_a_commit_of_unknown_outcome_is_settled_by_asking_again(world: World, effect: str, producer: int) -> None:
    listener = Recorder()
    await world.service.subscribe(listener)
    await world.commit(world.segment(1, 3, producer, 0))
    if effect == "none":
        world.store.fail_before = 1
    else:
        world.store.fail_after = 1
    with pytest.raises(MetadataUnavailable):
        await world.commit(world.segment(2, 2, producer, 3))
    (answer,) = await world.commit(world.segment(2, 2, producer, 3))
    assert answer.extents[0][0].base_offset == 3
    assert not answer.extents[0][0].duplicate, "the retry got the first answer, not a decision of its own"
    await world.commit(world.segment(3, 1, producer, 5))
    assert await world.high_watermark() == 6
    assert await world.is_dense()
    assert "resynchronize" in listener.heard
    (found,) = await world.service.find_extents([ExtentsQuery(world.topic.topic_id, 0, 0, 10**9)])
    assert [extent.base_offset for extent in found.extents] == [0, 3, 5]


@pytest.mark.parametrize("effect", ["none", "taken"])
async def test_a_batch_resent_in_another_segment_after_an_unknown_outcome(world: World, effect: str) -> None:
    """The trap: sequence state ahead of what is durable would acknowledge a batch that is nowhere."""
    if effect == "none":
        world.store.fail_before = 1
    else:
        world.store.fail_after = 1
    with pytest.raises(MetadataUnavailable):
        await world.commit(world.segment(1, 2, 5, 0))
    (answer,) = await world.commit(world.segment(2, 2, 5, 0))
    resent = answer.extents[0][0]
    assert (resent.base_offset, resent.duplicate) == (0, effect == "taken")
    assert await world.high_watermark() == 2
    assert await world.is_dense()


async def test_nothing_is_visible_before_it_is_durable(world: World) -> None:
    listener = Recorder()
    await world.service.subscribe(listener)
    world.store.gate = asyncio.Event()
    begun = len(world.store.writes)
    committing = asyncio.create_task(world.commit(world.segment(1, 3)))
    creating = asyncio.create_task(world.service.create_topic("new", 1, {}))
    while len(world.store.writes) == begun:
        await asyncio.sleep(0)
    assert await world.high_watermark() == 0
    (found,) = await world.service.find_extents([ExtentsQuery(world.topic.topic_id, 0, 0, 1)])
    assert (found.high_watermark, found.extents, found.refusal) == (0, (), None)
    assert (await world.service.subscribe(Recorder())).topics == (world.topic,)
    assert listener.heard == []
    assert not committing.done() and not creating.done()
    world.store.gate.set()
    await asyncio.gather(committing, creating)
    assert await world.high_watermark() == 3
    assert len(listener.heard) == 2


async def test_commands_that_arrive_during_a_write_share_the_next_one(world: World) -> None:
    world.store.gate = asyncio.Event()
    begun = len(world.store.writes)
    first = asyncio.create_task(world.commit(world.segment(0)))
    while len(world.store.writes) == begun:
        await asyncio.sleep(0)
    others = [asyncio.create_task(world.commit(world.segment(number))) for number in range(1, 51)]
    topic = asyncio.create_task(world.service.create_topic("new", 1, {}))
    await asyncio.sleep(0)
    world.store.gate.set()
    answers = [await first, *await asyncio.gather(*others)]
    await topic
    assert [answer[0].extents[0][0].base_offset for answer in answers] == list(range(51))
    assert len(world.store.writes) == begun + 2


async def test_one_refused_command_does_not_disturb_those_it_shares_a_write_with(world: World) -> None:
    async def fenced() -> None:
        with pytest.raises(Fenced):
            await world.service.commit_segments(world.epoch + 9, -1, [world.segment(1)])

    async def refused() -> None:
        with pytest.raises(Refused):
            await world.service.create_topic("logs", 1, {})

    begun = len(world.store.writes)
    answers = await asyncio.gather(world.commit(world.segment(1)), fenced(), refused(), world.commit(world.segment(2)))
    assert answers[0][0].extents[0][0].base_offset == 0
    assert answers[3][0].extents[0][0].base_offset == 1
    assert len(world.store.writes) == begun + 1


async def test_a_failed_write_fails_all_who_shared_it_and_nobody_after(world: World) -> None:
    world.store.fail_before = 1
    results = await asyncio.gather(*[world.commit(world.segment(n)) for n in range(5)], return_exceptions=True)
    assert all(isinstance(result, MetadataUnavailable) for result in results)
    assert len({id(result) for result in results}) == 5, "each waiter has its own exception"
    answers = await asyncio.gather(*[world.commit(world.segment(n)) for n in range(5)])
    assert [answer[0].extents[0][0].base_offset for answer in answers] == list(range(5))


async def test_an_answer_given_before_waits_for_the_write_it_depends_on(world: World) -> None:
    """A retry decided together with the commit it repeats has nothing to write, and still must not overtake it."""
    world.store.gate = asyncio.Event()
    begun = len(world.store.writes)
    committing = [asyncio.create_task(world.commit(world.segment(1, 3))) for _ in range(2)]
    while len(world.store.writes) == begun:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in committing)
    world.store.gate.set()
    first, repeated = await asyncio.gather(*committing)
    assert first == repeated


async def test_topics_of_unknown_outcome_reach_the_listeners(world: World) -> None:
    listener = Recorder()
    await world.service.subscribe(listener)
    world.store.fail_after = 1
    with pytest.raises(MetadataUnavailable):
        await world.service.create_topic("new", 1, {})
    with pytest.raises(Refused):
        await world.service.create_topic("new", 1, {})
    assert listener.heard[0] == "resynchronize"
    (change,) = listener.heard[1:]
    assert isinstance(change, TopicsChanged)
    assert [topic.name for topic in change.upserted] == ["new"]
    world.store.fail_after = 1
    with pytest.raises(MetadataUnavailable):
        await world.service.delete_topic(world.topic.topic_id)
    await world.service.grant_producer_id(-1, -1)  # decided after the reload
    assert await world.service.partition_offsets([(world.topic.topic_id, 0)]) == [None]
    assert listener.heard[-1] == TopicsChanged((), (world.topic.topic_id,))


async def test_producer_ids_after_unknown_outcomes_are_new(world: World) -> None:
    granted = []
    for fault in ("fail_before", "fail_after", ""):
        if fault:
            setattr(world.store, fault, 1)
            with pytest.raises(MetadataUnavailable):
                await asyncio.gather(world.service.grant_producer_id(-1, -1), world.commit(world.segment(len(granted))))
        granted.append((await world.service.grant_producer_id(-1, -1)).producer_id)
    assert len(set(granted)) == 3


async def test_an_unreadable_store_answers_unavailable_until_it_recovers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.pipeline, "RELOAD_PAUSE_SECONDS", (0.01, 0.02))
    world.store.fail_before = 1
    world.store.unreadable = 5
    failures = 0
    for _ in range(100):
        try:
            await world.commit(world.segment(1))
            break
        except MetadataUnavailable:
            failures += 1
            assert await world.high_watermark() == 0, "readers are still served from what is durable"
    assert failures >= 2
    assert world.service.problem() is None
    assert await world.high_watermark() == 1


async def test_too_many_queued_commands_are_turned_away_undecided(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.pipeline, "COMMANDS_QUEUED_MAX", 3)
    results = await asyncio.gather(*[world.commit(world.segment(n)) for n in range(5)], return_exceptions=True)
    assert [isinstance(result, MetadataUnavailable) for result in results] == [False, False, False, True, True]
    assert await world.high_watermark() == 3


async def test_a_command_cancelled_in_the_queue_is_dropped_and_one_that_was_decided_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.pipeline, "COMMANDS_PER_WRITE_MAX", 1)
    world.store.gate = asyncio.Event()
    begun = len(world.store.writes)
    writing = asyncio.create_task(world.commit(world.segment(1)))
    while len(world.store.writes) == begun:
        await asyncio.sleep(0)
    decided = asyncio.create_task(world.commit(world.segment(2)))
    queued = asyncio.create_task(world.commit(world.segment(3)))
    await asyncio.sleep(0)
    for task in (writing, decided, queued):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    world.store.gate.set()
    (answer,) = await world.commit(world.segment(4))
    assert answer.extents[0][0].base_offset == 2, "two were committed, the third never decided"


@pytest.mark.parametrize("effect", ["none", "taken"])
async def test_what_was_decided_during_a_write_that_fails_is_decided_anew(world: World, effect: str) -> None:
    listener = Recorder()
    await world.service.subscribe(listener)
    world.store.gate = asyncio.Event()
    if effect == "none":
        world.store.fail_before = 1
    else:
        world.store.fail_after = 1
    begun = len(world.store.writes)
    failing = asyncio.create_task(world.commit(world.segment(1, 3)))
    while len(world.store.writes) == begun:
        await asyncio.sleep(0)
    join = JoinGroup("g", "", None, "c", "h", 60_000, 10_000, "consumer", (("range", b""),), False)
    ahead = asyncio.gather(world.commit(world.segment(2, 2)), world.service.create_topic("new", 1, {}))
    joining = asyncio.create_task(world.service.join_group(join))
    await asyncio.sleep(0.01)
    assert not ahead.done(), "it stands on a write that is not durable"
    world.store.gate.set()
    with pytest.raises(MetadataUnavailable):
        await failing
    answers, topic = await ahead
    base = 0 if effect == "none" else 3
    assert answers[0].extents[0][0].base_offset == base
    assert (await world.service.subscribe(Recorder())).topics == (world.topic, topic)
    assert await world.high_watermark() == base + 2
    assert await world.is_dense()
    assert len(listener.heard) == 3 and listener.heard[0] == "resynchronize"
    answer = await joining
    assert answer.refusal is Refusal.MEMBER_ID_REQUIRED or answer.refusal is None


class Failing(Recorder):
    """A listener whose ``broken`` methods raise."""

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self._broken = broken

    def extents_committed(self, extents: Sequence[object]) -> None:
        if "extents" in self._broken:
            raise RuntimeError("planted")
        super().extents_committed(extents)  # type: ignore[arg-type]

    def resynchronize(self) -> None:
        if "resynchronize" in self._broken:
            raise RuntimeError("planted")
        super().resynchronize()


async def test_a_listener_that_fails_disturbs_nobody(world: World) -> None:
    before, failing, hopeless, after = (
        Recorder(),
        Failing("extents"),
        Failing("extents", "resynchronize"),
        Recorder(),
    )
    for listener in (before, failing, hopeless, after):
        await world.service.subscribe(listener)
    await world.commit(world.segment(1))
    await world.service.create_topic("new", 1, {})
    assert len(before.heard) == len(after.heard) == 2
    assert failing.heard[0] == "resynchronize" and len(failing.heard) == 2
    assert hopeless.heard == [], "it was dropped"


async def test_a_defect_in_a_decision_reaches_its_caller_and_leaves_the_state_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.commit(world.segment(1, 3))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("metadata.state.commit_extent", broken)
    with pytest.raises(ZeroDivisionError):
        await world.commit(world.segment(2))
    monkeypatch.undo()
    (answer,) = await world.commit(world.segment(2))
    assert answer.extents[0][0].base_offset == 3


@pytest.mark.parametrize("noticed", ["writing", "reloading"])
async def test_a_deposed_service_is_over(
    request: pytest.FixtureRequest, tmp_path: Path, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.pipeline, "RELOAD_PAUSE_SECONDS", (0.01, 0.02))
    failures: list[BaseException] = []
    with metadata_url("memory", tmp_path, request) as url:
        store = FaultyMetadataStore(open_metadata_store(url))
        async with running_service(store, failures=failures) as service:
            epoch = (await service.register_agent(registration())).agent_epoch
            topic = await service.create_topic("logs", 1, {})
            listener = Recorder()
            await service.subscribe(listener)
            world = World(service, store, epoch, topic)
            join = JoinGroup("g", "", None, "c", "h", 60_000, 10_000, "consumer", (("range", b""),), False)
            parked = asyncio.create_task(service.join_group(join))
            await asyncio.sleep(0.01)
            if noticed == "writing":
                store.deposed = True
            else:
                store.fail_after, store.unreadable = 1, 3
            writing = [asyncio.create_task(world.commit(world.segment(n))) for n in range(3)]
            while store.reloads < (3 if noticed == "reloading" else 0):
                await asyncio.sleep(0.001)
            store.deposed = True
            for task in writing:
                with pytest.raises(MetadataUnavailable):
                    await task
            while not failures:
                await asyncio.sleep(0.001)
            reloads = store.reloads
            await asyncio.sleep(0.05)
            assert store.reloads == reloads, "there is nothing to wait for"
            assert [type(failure) for failure in failures] == [Deposed]
            assert "leads" in (service.problem() or "")
            query = ExtentsQuery(topic.topic_id, 0, 0, 1)
            for call in (
                world.commit(world.segment(9)),
                service.create_topic("new", 1, {}),
                service.heartbeat_agent(AgentHeartbeat(epoch, AgentCondition.READY)),
                service.describe_agents(),
                service.find_extents([query]),
                service.find_extent_by_timestamp(topic.topic_id, 0, 0),
                service.partition_offsets([(topic.topic_id, 0)]),
                service.subscribe(Recorder()),
                service.register_agent(registration()),
                service.fetch_offsets("g", None),
                service.group_lags(),
            ):
                with pytest.raises(MetadataUnavailable, match="leads"):
                    await call
            assert [heard for heard in listener.heard if heard != "resynchronize"] == []
            assert not parked.done()
        assert (await parked).refusal is Refusal.NOT_COORDINATOR


async def test_a_stopped_service_refuses_and_finishes_what_was_queued(world: World) -> None:
    committing = [asyncio.create_task(world.commit(world.segment(n))) for n in range(3)]
    await asyncio.sleep(0)
    await world.service.stop()
    answers = await asyncio.gather(*committing)
    assert [answer[0].extents[0][0].base_offset for answer in answers] == [0, 1, 2]
    with pytest.raises(MetadataUnavailable):
        await world.commit(world.segment(9))


async def test_offsets_are_read_across_the_border_between_store_and_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the partition memory still has, a reader sees all of it, in order."""
    monkeypatch.setattr(world.service._visible, "_extents_max", 4)
    for sequence in range(10):
        await world.commit(world.segment(sequence, 10))
    for byte_max in (1, 100, 350, 700, 10_000):
        offset, seen = 0, []
        while offset < 100:
            (found,) = await world.service.find_extents([ExtentsQuery(world.topic.topic_id, 0, offset, byte_max)])
            assert found.extents[0].base_offset <= offset <= found.extents[0].last_offset
            assert len(found.extents) == min(-(-byte_max // 100), (100 - offset) // 10)
            seen += [extent.base_offset for extent in found.extents]
            offset = found.extents[-1].last_offset + 1
        assert seen == list(range(0, 100, 10))
    assert await world.service.partition_offsets([(world.topic.topic_id, 0)]) == [PartitionOffsets(0, 100, 1_000)]
