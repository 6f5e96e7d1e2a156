"""What every metadata store must do. The in-memory model is the measure; nothing here knows which one it talks to."""

from __future__ import annotations

import random

import pytest

from metadata.group_model import GroupRecord, MemberRecord, OffsetRecord
from metadata.model import EXTENTS_FOUND_MAX, Topic
from metadata.store.port import (
    AgentDropped,
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CallsForgotten,
    Change,
    CounterSaved,
    ExtentsAdded,
    GroupDropped,
    GroupSaved,
    OffsetsDropped,
    OffsetsSaved,
    PartitionRow,
    ProducerSaved,
    ProducersExpired,
    SegmentAdded,
    StoreSnapshot,
    StoreUnavailable,
    TopicDropped,
    TopicSaved,
)
from tests.support.metadata import added, extent, topic, topic_id
from tests.support.metadata_stores import Kept


def group(group_id: str, generation_id: int = 1) -> GroupRecord:
    member = MemberRecord("m-1", "static-1", "client", "/10.0.0.1", 60_000, 10_000, (("range", b"\x00\xff"),), b"\x01")
    return GroupRecord(group_id, generation_id, "consumer", "range", "m-1", (member,), 9_000)


def offset(partition: int, committed: int, number: int = 1) -> OffsetRecord:
    return OffsetRecord(topic_id(number), partition, committed, -1, "méta", 7_000)


async def test_the_cluster_id_is_given_once(kept: Kept) -> None:
    assert (await kept.reopened()).cluster_id == "cluster-1"
    assert (await kept.store.reload()).cluster_id == "cluster-1"


async def test_a_new_store_is_empty(kept: Kept) -> None:
    assert await kept.store.reload() == StoreSnapshot("cluster-1", (), (), (), (), (), {}, (), {})


async def test_all_hot_state_survives_a_restart(kept: Kept) -> None:
    wanted = Topic(topic_id(1), "logs.ünïcode", 2, {"retention.ms": "1000"}, 1_234)
    producer = ProducerSaved(topic_id(1), 1, 2**40, b"\x00state", 8_000)
    agent = AgentSaved(
        "agent-1", 1, 7, "zone-a", "default", "::1", 9092, "10.0.0.1:8080", "0.2", ("proxy", "jobs"), 8_000
    )
    fenced = AgentSaved("agent-2", 2, -1, "zone-b", "vip", registered_ms=1, fenced_ms=2)
    call = CallAnswered("c/1", b"\x00answer", 6_000)
    answer = SegmentAdded(7, 3, "segments/3", 1_000, 5_000, b"answer")
    await kept.store.write(
        [
            TopicSaved(wanted),
            agent,
            fenced,
            call,
            CounterSaved("agent_epoch", 7),
            answer,
            ExtentsAdded((extent(0, 9, key="segments/3", timestamp=42),)),
            producer,
            GroupSaved(group("g")),
            OffsetsSaved("g", (offset(0, 5),)),
            OffsetsSaved("only offsets", (offset(1, 6),)),
        ]
    )
    snapshot = await kept.reopened()
    assert snapshot == StoreSnapshot(
        "cluster-1",
        (wanted,),
        (PartitionRow(topic_id(1), 0, 0, 10, 42), PartitionRow(topic_id(1), 1, 0, 0, -1)),
        (producer,),
        (answer,),
        (agent, fenced),
        {"agent_epoch": 7},
        (group("g"),),
        {"g": (offset(0, 5),), "only offsets": (offset(1, 6),)},
        (call,),
    )
    assert await kept.store.reload() == snapshot


async def test_saving_again_replaces(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 9))])
    altered = Topic(topic_id(1), "topic-1", 2, {"cleanup.policy": "compact"}, 1_000)
    await kept.store.write(
        [
            TopicSaved(altered),
            ProducerSaved(topic_id(1), 0, 4, b"old", 1),
            ProducerSaved(topic_id(1), 0, 4, b"new", 2),
            AgentSaved("a", 1, 1, "z1", "g"),
            AgentSaved("a", 1, 2, "z2", "g"),
            GroupSaved(group("g", 1)),
            GroupSaved(group("g", 2)),
            OffsetsSaved("g", (offset(0, 5), offset(1, 5))),
            OffsetsSaved("g", (offset(0, 6),)),
        ]
    )
    snapshot = await kept.reopened()
    assert snapshot.topics == (altered,)
    assert snapshot.partitions[0].high_watermark == 10, "altering a topic leaves its partitions alone"
    assert snapshot.producers == (ProducerSaved(topic_id(1), 0, 4, b"new", 2),)
    assert snapshot.agents == (AgentSaved("a", 1, 2, "z2", "g"),)
    assert snapshot.groups == (group("g", 2),)
    assert set(snapshot.offsets["g"]) == {offset(0, 6), offset(1, 5)}


async def test_a_dropped_topic_takes_everything_of_it_along(kept: Kept) -> None:
    await kept.store.write(
        [
            TopicSaved(topic(1)),
            TopicSaved(topic(2)),
            *added(1, extent(0, 9), extent(0, 4, of=topic_id(2))),
            ProducerSaved(topic_id(1), 0, 4, b"x", 1),
            ProducerSaved(topic_id(2), 0, 4, b"y", 1),
            OffsetsSaved("g", (offset(0, 5), offset(0, 3, number=2))),
        ]
    )
    await kept.store.write([TopicDropped(topic_id(1))])
    for snapshot in (await kept.store.reload(), await kept.reopened()):
        assert [each.topic_id for each in snapshot.topics] == [topic_id(2)]
        assert {row.topic_id for row in snapshot.partitions} == {topic_id(2)}
        assert snapshot.producers == (ProducerSaved(topic_id(2), 0, 4, b"y", 1),)
        assert snapshot.offsets == {"g": (offset(0, 3, number=2),)}
    assert await kept.store.find_extents(topic_id(1), 0, 0, 1_000, 10) == []
    assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, 0) is None
    assert len(await kept.store.find_extents(topic_id(2), 0, 0, 1_000, 10)) == 1


async def test_a_topic_made_again_starts_empty(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic(1, name="logs")), *added(1, extent(0, 9))])
    await kept.store.write([TopicDropped(topic_id(1)), TopicSaved(topic(2, name="logs"))])
    assert await kept.store.find_extents(topic_id(2), 0, 0, 1_000, 10) == []
    await kept.store.write(added(2, extent(0, 1, of=topic_id(2), key="segments/2")))
    (found,) = await kept.store.find_extents(topic_id(2), 0, 0, 1_000, 10)
    assert found.segment_key == "segments/2"


async def test_extents_are_found_from_the_one_that_holds_the_offset(kept: Kept) -> None:
    extents = [extent(base, base + 9, size=100) for base in range(0, 100, 10)]
    await kept.store.write([TopicSaved(topic()), *added(1, *extents, extent(0, 4, partition=1, size=7))])

    async def find(offset: int, byte_max: int, before: int = 100) -> list[int]:
        found = await kept.store.find_extents(topic_id(1), 0, offset, byte_max, before)
        assert all(each == extents[each.base_offset // 10] for each in found)
        return [each.base_offset for each in found]

    assert await find(0, 10**9) == list(range(0, 100, 10))
    assert await find(0, 1) == [0], "at least one"
    assert await find(9, 100) == [0]
    assert await find(15, 101) == [10, 20], "until they sum to the bytes asked for"
    assert await find(99, 10**9) == [90]
    assert await find(100, 10**9) == []
    assert await find(35, 10**9, before=60) == [30, 40, 50]
    assert await find(35, 10**9, before=35) == [30], "an extent belongs to the offset it begins with"
    assert await find(35, 10**9, before=30) == []
    assert await kept.store.find_extents(topic_id(1), 7, 0, 100, 100) == []
    assert await kept.store.find_extents(topic_id(9), 0, 0, 100, 100) == []


async def test_one_answer_is_bounded(kept: Kept) -> None:
    count = EXTENTS_FOUND_MAX + 10
    await kept.store.write([TopicSaved(topic()), *added(1, *[extent(each, each, size=1) for each in range(count)])])
    for byte_max, before, wanted in (
        (10**9, count, EXTENTS_FOUND_MAX),
        (500, count, 500),
        (10**9, 83, 80),
        (16, 83, 16),
    ):
        found = await kept.store.find_extents(topic_id(1), 0, 3, byte_max, before)
        assert [each.base_offset for each in found] == list(range(3, 3 + wanted))


async def test_the_first_extent_at_or_after_a_timestamp(kept: Kept) -> None:
    generator = random.Random(7)
    base, changes, expected = 0, [TopicSaved(topic())], []
    for sequence in range(60):
        last = base + generator.randrange(1, 50)
        one = extent(base, last, key=f"segments/{sequence}", timestamp=generator.randrange(sequence, sequence + 30))
        expected.append(one)
        changes += added(sequence, one)
        base = last + 1
    await kept.store.write(changes)
    for timestamp in range(-1, 95):
        wanted = next((each for each in expected if each.max_timestamp_ms >= timestamp), None)
        assert await kept.store.find_extent_by_timestamp(topic_id(1), 0, timestamp) == wanted, timestamp
    assert await kept.store.find_extent_by_timestamp(topic_id(1), 1, 0) is None


async def test_offsets_as_large_as_kafka_allows(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 2**62))])
    await kept.store.write(added(2, extent(2**62 + 1, 2**63 - 2, key="segments/2")))
    assert (await kept.reopened()).partitions[0].high_watermark == 2**63 - 1
    (found,) = await kept.store.find_extents(topic_id(1), 0, 2**63 - 2, 1, 2**63 - 1)
    assert found.segment_key == "segments/2"


async def test_settled_answers_are_forgotten_and_others_kept(kept: Kept) -> None:
    await kept.store.write([*added(1), *added(2), *added(3), *added(1, epoch=2)])
    await kept.store.write([AnswersSettled(1, 2)])
    snapshot = await kept.reopened()
    assert {(answer.agent_epoch, answer.sequence) for answer in snapshot.answers} == {(1, 3), (2, 1)}


async def test_dropped_agents_are_gone(kept: Kept) -> None:
    await kept.store.write([AgentSaved("a", 1, 1, "z", "g"), AgentSaved("b", 2, -1, "z", "g", fenced_ms=5)])
    await kept.store.write([AgentDropped("b"), AgentDropped("never there")])
    assert (await kept.reopened()).agents == (AgentSaved("a", 1, 1, "z", "g"),)


async def test_answers_of_calls_are_kept_until_they_are_old(kept: Kept) -> None:
    calls = [CallAnswered(f"c/{number}", bytes([number]), number) for number in range(4)]
    await kept.store.write([*calls, CallsForgotten(2)])
    assert (await kept.reopened()).calls == tuple(calls[2:])


async def test_counters_only_grow(kept: Kept) -> None:
    await kept.store.write([CounterSaved("producer_id", 5)])
    await kept.store.write([CounterSaved("producer_id", 3), CounterSaved("node_id", 1)])
    assert (await kept.reopened()).counters == {"producer_id": 5, "node_id": 1}


async def test_expired_producers_are_gone(kept: Kept) -> None:
    await kept.store.write(
        [TopicSaved(topic()), *[ProducerSaved(topic_id(1), 0, number, b"x", number) for number in range(5)]]
    )
    await kept.store.write(
        [ProducersExpired((*[(topic_id(1), 0, number) for number in (0, 1, 99)], (topic_id(8), 0, 0)))]
    )
    snapshot = await kept.reopened()
    assert {producer.producer_id for producer in snapshot.producers} == {2, 3, 4}
    assert [row.producer_id_floor for row in snapshot.partitions] == [100, 0]


async def test_the_floor_of_producer_ids_only_rises(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic(1), 7), TopicSaved(topic(2))])
    await kept.store.write([ProducersExpired(((topic_id(1), 0, 3), (topic_id(1), 1, 9), (topic_id(1), 1, 8)))])
    await kept.store.write([TopicSaved(topic(1), 50), ProducersExpired(((topic_id(2), 0, 2**50),))])
    rows = (await kept.reopened()).partitions
    assert [row.producer_id_floor for row in rows] == [7, 10, 2**50 + 1, 0]


async def test_dropping_groups_and_offsets(kept: Kept) -> None:
    await kept.store.write(
        [
            TopicSaved(topic()),
            GroupSaved(group("a")),
            GroupSaved(group("b")),
            OffsetsSaved("a", (offset(0, 1),)),
            OffsetsSaved("b", (offset(0, 2), offset(1, 3))),
        ]
    )
    await kept.store.write([GroupDropped("a"), OffsetsDropped("b", ((topic_id(1), 0), (topic_id(5), 0)))])
    snapshot = await kept.reopened()
    assert snapshot.groups == (group("b"),)
    assert snapshot.offsets == {"b": (offset(1, 3),)}


async def test_whatever_text_clients_choose_is_kept(kept: Kept) -> None:
    name, note = "a\x00b\U0001f600'\"\\", "\x00\x7f\ufeff"
    committed = OffsetRecord(topic_id(1), 0, 1, -1, note, 7_000)
    configured = Topic(topic_id(1), "logs", 1, {"unknown.config": name}, 1_000)
    changes: list[Change] = [TopicSaved(configured), GroupSaved(group(name)), OffsetsSaved(name, (committed,))]
    await kept.store.write(changes)
    snapshot = await kept.reopened()
    assert snapshot.groups == (group(name),)
    assert snapshot.offsets == {name: (committed,)}
    assert snapshot.topics == (configured,)
    await kept.store.write([GroupDropped(name)])
    snapshot = await kept.reopened()
    assert (snapshot.groups, snapshot.offsets) == ((), {})


async def test_of_changes_to_the_same_thing_in_one_write_the_last_one_holds(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, epoch=3)])
    await kept.store.write(
        [
            GroupSaved(group("g", 1)),
            OffsetsSaved("g", (offset(0, 1), offset(0, 2))),
            GroupDropped("g"),
            GroupSaved(group("g", 2)),
            OffsetsSaved("g", (offset(1, 3),)),
            ProducerSaved(topic_id(1), 0, 4, b"old", 1),
            ProducersExpired(((topic_id(1), 0, 4),)),
            ProducerSaved(topic_id(1), 0, 5, b"new", 2),
            *added(2, epoch=3),
            AnswersSettled(3, 2),
            *added(3, epoch=3),
            AnswersSettled(3, 1),
            CounterSaved("node_id", 7),
            CounterSaved("node_id", 6),
            OffsetsDropped("g", ((topic_id(1), 0),)),
            AgentSaved("a", 1, 1, "z", "g"),
            AgentDropped("a"),
        ]
    )
    snapshot = await kept.reopened()
    assert snapshot.groups == (group("g", 2),)
    assert snapshot.offsets == {"g": (offset(1, 3),)}
    assert snapshot.producers == (ProducerSaved(topic_id(1), 0, 5, b"new", 2),)
    assert [answer.sequence for answer in snapshot.answers] == [3]
    assert snapshot.counters == {"node_id": 7}
    assert snapshot.agents == ()


async def test_offsets_of_partitions_that_are_gone_are_left_out(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), TopicDropped(topic_id(1)), OffsetsSaved("g", (offset(0, 1),))])
    assert (await kept.reopened()).offsets == {}


MANY = 1_200
"""Extents of one write, which a store may take another way than a few."""


def many(first_sequence: int, base: int) -> list[Change]:
    """Of both partitions in turn, in segments of 100 extents."""
    changes: list[Change] = []
    for sequence in range(first_sequence, first_sequence + MANY // 100):
        key = f"segments/{sequence}"
        numbers = [base + (sequence - first_sequence) * 50 + number // 2 for number in range(100)]
        extents = [
            extent(at, at, partition=number % 2, key=key, timestamp=at % 7 - 1, position=number * 100)
            for number, at in enumerate(numbers)
        ]
        changes += added(sequence, *extents)
    return changes


async def test_many_extents_in_one_write(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *many(1, 0)])
    snapshot = await kept.reopened()
    assert [(row.high_watermark, row.max_timestamp_ms) for row in snapshot.partitions] == [(MANY // 2, 5)] * 2
    for partition in (0, 1):
        found = await kept.store.find_extents(topic_id(1), partition, 0, 10**9, MANY)
        expected = [each for change in many(1, 0) if isinstance(change, ExtentsAdded) for each in change.extents]
        assert found == [each for each in expected if each.partition == partition]
        first = await kept.store.find_extent_by_timestamp(topic_id(1), partition, 5)
        assert first is not None and first.base_offset == 6


async def test_of_many_extents_with_a_contradiction_nothing_is_written(kept: Kept) -> None:
    await kept.store.write([TopicSaved(topic()), *many(1, 0)])
    before = await kept.store.reload()
    with pytest.raises((ValueError, StoreUnavailable)):
        await kept.store.write([*many(100, MANY // 2), SegmentAdded(1, 1, "segments/other", 1, 1, b"")])
    assert await kept.store.reload() == before
    assert await kept.store.find_extents(topic_id(1), 0, MANY // 2, 10**9, 2 * MANY) == []
    await kept.store.write(many(100, MANY // 2))
    assert (await kept.reopened()).partitions[0].high_watermark == MANY


@pytest.mark.parametrize(
    "wrong",
    [
        [ExtentsAdded((extent(11, 12, key="segments/2"),))],
        [ExtentsAdded((extent(9, 12, key="segments/2"),))],
        [ExtentsAdded((extent(10, 12, key="never added"),))],
        [ExtentsAdded((extent(0, 1, partition=2, key="segments/2"),))],
        [SegmentAdded(1, 1, "segments/other", 1, 1, b"")],
    ],
    ids=["a hole", "an offset twice", "no segment", "no partition", "a sequence twice"],
)
async def test_what_contradicts_the_store_is_not_written_nor_anything_with_it(kept: Kept, wrong: list[Change]) -> None:
    await kept.store.write([TopicSaved(topic()), *added(1, extent(0, 9))])
    before = await kept.store.reload()
    with pytest.raises((ValueError, StoreUnavailable)):
        await kept.store.write([*added(2), CounterSaved("node_id", 5), *wrong, CounterSaved("agent_epoch", 5)])
    assert await kept.store.reload() == before
    await kept.store.write(added(2, extent(10, 12, key="segments/2")))
    assert (await kept.reopened()).partitions[0].high_watermark == 13
