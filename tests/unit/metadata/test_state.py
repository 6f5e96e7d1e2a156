"""Decisions of the metadata service, without a service: what changes they ask for, and what they cost."""

from __future__ import annotations

import pytest

import metadata.state
import metadata.topics
from metadata.model import Extent, Refused, TopicId
from metadata.state import PRODUCER_EXPIRY_MS, PRODUCER_ID_BLOCK, State
from metadata.store.port import (
    AgentSaved,
    AnswersSettled,
    Change,
    CounterSaved,
    ExtentsAdded,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    TopicDropped,
    TopicSaved,
)
from tests.support.metadata import EMPTY, batch, registration, segment, topic_id


class World:
    """A state with one topic of two partitions and one agent; ``changes`` of the last command."""

    def __init__(self) -> None:
        self.state = State(EMPTY)
        self.changes: list[Change] = []
        self.topic: TopicId = self.state.topics.create("logs", 2, {}, topic_id(1), 1, 100, []).topic_id
        self.epoch = self.state.register_agent(registration(), 1_000, []).agent_epoch

    def commit(self, sequence: int, *drafts: object, settled: int = -1, now_ms: int = 5_000) -> list[Extent]:
        self.changes = []
        outcome = self.state.commit_segments(
            self.epoch,
            settled,
            [segment(sequence, *drafts)],  # type: ignore[arg-type]
            now_ms,
            self.changes,
        )
        return outcome.extents

    def of(self, kind: type[Change]) -> list[Change]:
        return [change for change in self.changes if isinstance(change, kind)]


@pytest.fixture
def world() -> World:
    return World()


def test_neighbouring_batches_become_one_extent(world: World) -> None:
    batches = [batch(2, size=10, timestamp=7), batch(3, size=20, timestamp=9), batch(1, size=30, timestamp=8)]
    (extent,) = world.commit(1, (world.topic, 1, batches))
    assert extent == Extent(world.topic, 1, 0, 5, "segments/1", 0, 60, 9, 5_000)


def test_a_batch_that_is_not_accepted_splits_the_extent(world: World) -> None:
    known = batch(1, producer=1, epoch=1, sequence=0)
    world.commit(1, (world.topic, 0, [known]))
    stale = batch(1, producer=1, epoch=0, sequence=1)
    batches = [known, batch(2, timestamp=50), stale, known, batch(3, timestamp=4), batch(1, timestamp=2), known]
    extents = world.commit(2, (world.topic, 0, batches))
    assert [
        (each.base_offset, each.last_offset, each.byte_position, each.byte_length, each.max_timestamp_ms)
        for each in extents
    ] == [(1, 2, 100, 100, 50), (3, 6, 400, 200, 4)]
    assert world.of(ExtentsAdded) == [ExtentsAdded(tuple(extents))]


def test_a_commit_asks_for_the_changes_of_its_effect_in_order(world: World) -> None:
    world.commit(1, (world.topic, 0, [batch(1, producer=5, epoch=0, sequence=0)]))
    assert [type(change) for change in world.changes] == [SegmentAdded, ExtentsAdded, ProducerSaved]
    world.commit(2, (world.topic, 0, [batch(1, producer=5, epoch=0, sequence=0)]), settled=1)
    assert [type(change) for change in world.changes] == [SegmentAdded, AnswersSettled]
    world.commit(2, (world.topic, 0, [batch(1, producer=5, epoch=0, sequence=0)]), settled=1)
    assert world.changes == [], "a repeated commit changes nothing"


def test_a_producer_is_saved_once_for_all_its_batches(world: World) -> None:
    batches = [batch(1, producer=5, epoch=0, sequence=number) for number in range(50)]
    world.commit(1, (world.topic, 0, batches), (world.topic, 1, [batch(1, producer=5, epoch=0, sequence=0)]))
    saved = world.of(ProducerSaved)
    assert [(change.partition, change.producer_id) for change in saved] == [(0, 5), (1, 5)]  # type: ignore[union-attr]


def test_a_refused_producer_is_not_saved(world: World) -> None:
    world.commit(1, (world.topic, 0, [batch(1, producer=5, epoch=0, sequence=0)]))
    world.commit(2, (world.topic, 0, [batch(1, producer=5, epoch=0, sequence=7)]))
    assert world.of(ProducerSaved) == []


def test_the_sequence_of_a_negative_producer_id_means_nothing(world: World) -> None:
    batches = [batch(1, producer=-1, epoch=-1, sequence=0) for _ in range(3)]
    (extent,) = world.commit(1, (world.topic, 0, batches))
    assert (extent.base_offset, extent.last_offset) == (0, 2)
    assert world.state.producer_count == 0


def test_a_refused_call_changes_nothing(world: World) -> None:
    with pytest.raises(Refused):
        world.state.commit_segments(
            world.epoch,
            -1,
            [segment(1, (world.topic, 0, [batch(5)])), segment(1, (world.topic, 0, [batch(5)]))],
            5_000,
            world.changes,
        )
    assert world.changes == []
    assert world.commit(2, (world.topic, 0, [batch(1)]))[0].base_offset == 0


def test_answers_are_forgotten_as_they_are_settled_but_the_newest_stays(world: World) -> None:
    for sequence in range(1, 5):
        world.commit(sequence, settled=sequence - 1)
        settled = world.of(AnswersSettled)
        assert settled == ([AnswersSettled(world.epoch, sequence - 1)] if sequence > 1 else [])
    world.commit(5, settled=99)
    assert world.of(AnswersSettled) == [AnswersSettled(world.epoch, 4)]


def test_a_new_epoch_drops_the_answers_of_the_old_one(world: World) -> None:
    changes: list[Change] = []
    world.state.register_agent(registration(), 6_000, changes)
    assert changes == [
        CounterSaved("agent_epoch", 2),
        AnswersSettled(world.epoch, 2**63 - 1),
        AgentSaved("agent-1", 1, 2, "zone-a", "default", "127.0.0.1", 9092, "", "0.1.0", ("proxy", "jobs"), 6_000),
    ]


def test_producer_ids_are_reserved_by_the_block(world: World) -> None:
    changes: list[Change] = []
    granted = {world.state.grant_producer_id(-1, -1, changes).producer_id for _ in range(PRODUCER_ID_BLOCK + 1)}
    assert granted == set(range(PRODUCER_ID_BLOCK + 1))
    assert changes == [
        CounterSaved("producer_id", PRODUCER_ID_BLOCK),
        CounterSaved("producer_id", 2 * PRODUCER_ID_BLOCK),
    ]


def test_a_deletion_is_remembered_by_name_and_when_there_are_too_many_for_every_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.topics, "DELETED_NAMES_MAX", 2)

    def floor(name: str, number: int) -> int:
        changes: list[Change] = []
        world.state.topics.create(name, 1, {}, topic_id(number), 1, 100, changes)
        (saved,) = changes
        assert isinstance(saved, TopicSaved)
        return saved.producer_id_floor

    for number, name in enumerate(("a", "b", "a"), 10):
        assert floor(name, number) == {10: 0, 11: 0, 12: 1}[number]
        world.state.grant_producer_id(-1, -1, [])
        world.state.topics.delete(topic_id(number), world.state.producer_ids_granted, None, [])
    assert (floor("a", 20), floor("b", 21), floor("c", 22)) == (3, 2, 0)
    world.state.topics.delete(topic_id(22), world.state.producer_ids_granted, None, [])
    assert floor("d", 24) == 3
    assert floor("c", 25) == 3


def test_idle_producers_expire_oldest_first_and_only_as_many_as_asked(world: World) -> None:
    for number in range(5):
        world.commit(number, (world.topic, 0, [batch(1, producer=number, epoch=0, sequence=0)]), now_ms=number)
    world.commit(9, (world.topic, 0, [batch(1, producer=0, epoch=0, sequence=1)]), now_ms=50)
    changes: list[Change] = []
    assert world.state.expire_producers(PRODUCER_EXPIRY_MS, 10, changes) == 0, "producer 0 is the oldest no more"
    assert world.state.expire_producers(PRODUCER_EXPIRY_MS + 3, 2, changes) == 2
    assert world.state.expire_producers(PRODUCER_EXPIRY_MS + 3, 2, changes) == 1
    assert changes == [
        ProducersExpired(((world.topic, 0, 1), (world.topic, 0, 2))),
        ProducersExpired(((world.topic, 0, 3),)),
    ]
    assert world.state.producer_count == 2
    world.commit(10, (world.topic, 0, [batch(1, producer=1, epoch=0, sequence=77)]))
    assert world.state.producer_count == 3, "an expired producer may begin anywhere"


def test_too_many_producers_expire_early(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata.state, "PRODUCERS_MAX", 3)
    for number in range(5):
        world.commit(number, (world.topic, 0, [batch(1, producer=number, epoch=0, sequence=0)]), now_ms=number)
    assert world.state.expire_producers(10, 100, []) == 2
    assert world.state.producer_count == 3


def test_producers_of_a_deleted_topic_go_without_a_change_of_their_own(world: World) -> None:
    world.commit(1, (world.topic, 0, [batch(1, producer=1, epoch=0, sequence=0)]))
    changes: list[Change] = []
    world.state.topics.delete(world.topic, 0, None, changes)
    assert changes == [TopicDropped(world.topic)]
    assert world.state.expire_producers(5_000, 100, changes) == 1
    assert changes == [TopicDropped(world.topic)]


def test_the_partitions_of_deleted_topics_may_be_used_again(world: World) -> None:
    world.state.topics.create("big", 98, {}, topic_id(2), 1, 100, [])
    with pytest.raises(Refused):
        world.state.topics.create("one more", 1, {}, topic_id(3), 1, 100, [])
    world.state.topics.delete(topic_id(2), world.state.producer_ids_granted, None, [])
    changes: list[Change] = []
    world.state.topics.create("one-more", 98, {}, topic_id(3), 1, 100, changes)
    assert len(changes) == 1 and isinstance(changes[0], TopicSaved)
