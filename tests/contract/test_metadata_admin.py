"""What administration asks of every metadata client: topics that grow, sizes, producers, deletions in groups."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata import service
from metadata.group_model import JoinGroup, LeavingMember, OffsetCommit, OffsetRecord, SyncGroup
from metadata.model import ExtentsFound, PartitionOffsets, ProducerDescription, Refusal, Refused, TopicsChanged
from metadata.topic_configs import ListEdit
from tests.support.metadata import Recorder, batch, registration, segment, topic_id
from tests.support.metadata_stores import STORES, metadata_url
from tests.support.metadata_world import World


@pytest.fixture(params=[f"{store}{transport}" for transport in ("", "-http") for store in STORES])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """An agent has registered and there is a topic of two partitions."""
    store, _, transport = request.param.partition("-")
    with metadata_url(store, tmp_path, request) as url:
        world = World(url, transport)
        await world.start()
        world.epoch = (await world.client.register_agent(registration())).agent_epoch
        world.topic = await world.client.create_topic("logs", 2, {})
        yield world
        await world.stop()


async def commit(world: World, sequence: int, /, *, partition: int = 0, records: int = 1, **fields: int) -> int:
    """One batch; the offset it got, or -1."""
    commit = segment(sequence, (world.topic.topic_id, partition, [batch(records, **fields)]))
    (answer,) = await world.client.commit_segments(world.epoch, -1, [commit])
    return answer.extents[0][0].base_offset


# --- partitions -----------------------------------------------------------------------------------------------


async def test_a_topic_grows_and_keeps_what_it_has(world: World) -> None:
    await commit(world, 1, records=3)
    listener = Recorder()
    subscription = await world.client.subscribe(listener)
    await subscription.follow([(world.topic.topic_id, 4)])
    grown = await world.client.create_partitions(world.topic.topic_id, 5)
    assert (grown.topic_id, grown.name, grown.partition_count) == (world.topic.topic_id, "logs", 5)
    await world.heard(listener, 1)
    assert listener.heard == [TopicsChanged((grown,))]
    with pytest.raises(Refused) as refused:
        await world.client.create_topic("other", 96, {})
    assert refused.value.refusal is Refusal.INVALID_PARTITIONS, "they count at once"
    assert await commit(world, 2, partition=4, records=7) == 0
    await world.heard(listener, 2)
    assert listener.heard[1].partition == 4, "who follows a partition before it exists hears of it"
    for _ in range(2):
        assert (await world.client.subscribe(Recorder())).topics == (grown,)
        offsets = await world.client.partition_offsets([(world.topic.topic_id, number) for number in range(6)])
        empty = PartitionOffsets(0, 0)
        assert offsets == [PartitionOffsets(0, 3, 1_000), empty, empty, empty, PartitionOffsets(0, 7, 1_000), None]
        assert await world.found(0, partition=3) == ExtentsFound(0, 0)
        await world.restart()
    assert await commit(world, 3, partition=4) == 7
    committed = OffsetRecord(world.topic.topic_id, 4, 8, -1, "", 0)
    answer = await world.client.commit_offsets(OffsetCommit("g", -1, "", None, (committed,)))
    assert (answer.refusal, answer.offsets) == (None, (None,))
    altered = await world.client.alter_topic_configs(world.topic.topic_id, {"retention.ms": "1000"})
    assert altered.partition_count == 5
    await world.client.delete_topic(world.topic.topic_id)
    await world.restart()
    assert (await world.client.subscribe(Recorder())).topics == ()
    assert (await world.client.create_topic("logs", 100, {})).partition_count == 100, "all places are free again"


async def test_a_topic_only_grows_and_within_bounds(world: World) -> None:
    await world.client.create_topic("other", 1, {})
    for count in (-1, 0, 1, 2, 100, 10_001):
        for validate_only in (True, False):
            with pytest.raises(Refused) as refused:
                await world.client.create_partitions(world.topic.topic_id, count, validate_only)
            assert refused.value.refusal is Refusal.INVALID_PARTITIONS
    with pytest.raises(Refused) as refused:
        await world.client.create_partitions(topic_id(9), 3)
    assert refused.value.refusal is Refusal.UNKNOWN_TOPIC_ID
    assert world.topic in (await world.client.subscribe(Recorder())).topics


async def test_partitions_that_are_only_checked_do_not_exist(world: World) -> None:
    checked = await world.client.create_partitions(world.topic.topic_id, 98, validate_only=True)
    assert checked.partition_count == 98
    assert await world.client.partition_offsets([(world.topic.topic_id, 2)]) == [None]
    assert await commit(world, 1, partition=2) == -1
    assert (await world.client.create_partitions(world.topic.topic_id, 100)).partition_count == 100


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_producer_of_a_deleted_topic_goes_on_in_a_partition_that_is_added_to_its_successor(
    world: World, restarted: bool
) -> None:
    producer = (await world.client.grant_producer_id(-1, -1)).producer_id
    assert await commit(world, 1, partition=1, producer=producer, epoch=0, sequence=0) == 0
    await world.client.delete_topic(world.topic.topic_id)
    world.topic = await world.client.create_topic("logs", 1, {})
    await world.client.create_partitions(world.topic.topic_id, 2)
    if restarted:
        await world.restart()
    assert await commit(world, 2, partition=1, producer=producer, epoch=0, sequence=1) == 0
    later = (await world.client.grant_producer_id(-1, -1)).producer_id
    assert await commit(world, 3, partition=1, producer=later, epoch=0, sequence=1) == -1


async def test_configs_are_replaced_whole(world: World) -> None:
    topic = world.topic.topic_id
    await world.client.alter_topic_configs(topic, {"retention.ms": "1000", "cleanup.policy": "compact"})
    replaced = await world.client.alter_topic_configs(topic, {"max.message.bytes": "77"}, True)
    assert replaced.configs == {"max.message.bytes": "77"}
    await world.restart()
    assert (await world.client.subscribe(Recorder())).topics == (replaced,)


async def test_lists_are_appended_to_and_subtracted_from(world: World) -> None:
    topic = world.topic.topic_id
    for edit, policy in (
        (ListEdit(add=("compact", "delete")), "delete,compact"),
        (ListEdit(remove=("delete", "absent")), "compact"),
        (ListEdit(add=("compact",)), "compact"),
    ):
        altered = await world.client.alter_topic_configs(topic, {"cleanup.policy": edit, "flush.ms": "1"})
        assert altered.configs == {"cleanup.policy": policy, "flush.ms": "1"}
    for wrong in (
        {"flush.ms": ListEdit(add=("1",))},
        {"no.such": ListEdit()},
        {"cleanup.policy": ListEdit((), ("compact",))},
    ):
        with pytest.raises(Refused) as refused:
            await world.client.alter_topic_configs(topic, wrong)
        assert refused.value.refusal is Refusal.INVALID_CONFIG
    await world.restart()
    assert (await world.client.subscribe(Recorder())).topics == (altered,)


# --- sizes and producers --------------------------------------------------------------------------------------


async def test_a_partition_is_as_large_as_its_extents(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "EXTENTS_SUMMED_MAX", 3)
    other = await world.client.create_topic("other", 1, {})
    asked = [(world.topic.topic_id, 0), (world.topic.topic_id, 1), (world.topic.topic_id, 2), (other.topic_id, 0)]
    assert await world.client.partition_bytes(asked) == [0, 0, None, 0]
    for sequence in range(9):
        await commit(world, sequence, records=5, size=100 + sequence)
    await commit(world, 9, partition=1, size=7)
    for _ in range(2):
        assert await world.client.partition_bytes(asked) == [936, 7, None, 0]
        await world.restart()
    await world.client.delete_topic(world.topic.topic_id)
    assert await world.client.partition_bytes(asked) == [None, None, None, 0]


async def test_the_producers_of_a_partition(world: World) -> None:
    first, second = [(await world.client.grant_producer_id(-1, -1)).producer_id for _ in range(2)]
    asked = [(world.topic.topic_id, 0), (world.topic.topic_id, 1), (world.topic.topic_id, 2)]
    assert await world.client.describe_producers(asked) == [[], [], None]
    began_ms = world.clock.wall_ms
    await commit(world, 1, producer=first, epoch=0, sequence=0, records=4)
    world.clock.wall_ms += 5
    await commit(world, 2, producer=second, epoch=0, sequence=0)
    await commit(world, 3, producer=second, epoch=0, sequence=1, records=2)
    await commit(world, 4, producer=second, epoch=0, sequence=9)  # refused
    for _ in range(2):
        assert await world.client.describe_producers(asked) == [
            [ProducerDescription(first, 0, 3, began_ms), ProducerDescription(second, 0, 2, began_ms + 5)],
            [],
            None,
        ]
        await world.restart()


# --- groups ---------------------------------------------------------------------------------------------------


def subscription(*topics: str) -> bytes:
    """As consumers send it, with user data behind."""
    names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in topics)
    return struct.pack(">hi", 1, len(topics)) + names + struct.pack(">i", -1)


async def stable_member(world: World, metadata: bytes, protocol_type: str = "consumer") -> str:
    """The only member of group ``g``, once it is stable; the group's initial delay passes at once."""
    join = JoinGroup("g", "", None, "c", "/h", 1_800_000, 1_800_000, protocol_type, (("range", metadata),), False)
    joining = asyncio.create_task(world.client.join_group(join))
    while not joining.done():
        await world.clock.pass_seconds(0.5)
    joined = joining.result()
    assert joined.refusal is None
    sync = SyncGroup("g", joined.generation_id, joined.member_id, None, None, None, ((joined.member_id, b"mine"),))
    assert (await world.client.sync_group(sync)).refusal is None
    return joined.member_id


async def commit_offsets(world: World, *keys: tuple[bytes, int]) -> None:
    offsets = tuple(OffsetRecord(topic, partition, 0, -1, "", 0) for topic, partition in keys)
    assert (await world.client.commit_offsets(OffsetCommit("g", -1, "", None, offsets))).refusal is None


async def kept_offsets(world: World) -> list[tuple[bytes, int]]:
    return [(record.topic_id, record.partition) for record in await world.client.fetch_offsets("g", None)]


async def test_offsets_are_deleted_one_by_one(world: World) -> None:
    logs = world.topic.topic_id
    asked = [(logs, 0), (logs, 1), (logs, 2), (topic_id(9), 0)]
    assert (await world.client.delete_offsets("g", asked)).refusal is Refusal.GROUP_ID_NOT_FOUND
    await commit_offsets(world, (logs, 0), (logs, 1))
    deleted = await world.client.delete_offsets("g", asked[:1] * 2 + asked[2:])
    unknown = Refusal.UNKNOWN_TOPIC_OR_PARTITION
    assert (deleted.refusal, deleted.partitions) == (None, (None, None, unknown, unknown))
    for _ in range(2):
        assert await kept_offsets(world) == [(logs, 1)]
        await world.restart()
    again = await world.client.delete_offsets("g", asked[:1])
    assert (again.refusal, again.partitions) == (None, (None,)), "what is not there is deleted"


async def test_offsets_of_topics_that_members_read_are_not_deleted(world: World) -> None:
    other = await world.client.create_topic("other", 1, {})
    logs = world.topic.topic_id
    await commit_offsets(world, (logs, 0), (other.topic_id, 0))
    member = await stable_member(world, subscription("logs", "elsewhere"))
    for _ in range(2):
        deleted = await world.client.delete_offsets("g", [(logs, 0), (other.topic_id, 0)])
        assert (deleted.refusal, deleted.partitions) == (None, (Refusal.GROUP_SUBSCRIBED_TO_TOPIC, None))
        assert await kept_offsets(world) == [(logs, 0)]
        await world.restart()
    assert await world.client.delete_group("g") is Refusal.NON_EMPTY_GROUP
    assert await world.client.leave_group("g", [LeavingMember(member, None)]) == [None]
    assert (await world.client.delete_offsets("g", [(logs, 0)])).partitions == (None,)
    assert await kept_offsets(world) == []
    assert await world.client.delete_group("g") is None
    assert await world.client.delete_group("g") is Refusal.GROUP_ID_NOT_FOUND


async def test_members_that_are_no_consumers_keep_all_their_offsets(world: World) -> None:
    await commit_offsets(world, (world.topic.topic_id, 0))
    await stable_member(world, subscription(), "connect")
    refused = await world.client.delete_offsets("g", [(world.topic.topic_id, 0)])
    assert (refused.refusal, refused.partitions) == (Refusal.NON_EMPTY_GROUP, ())
    assert await kept_offsets(world) == [(world.topic.topic_id, 0)]


async def test_a_subscription_that_cannot_be_read_may_be_to_any_topic(world: World) -> None:
    await commit_offsets(world, (world.topic.topic_id, 0))
    await stable_member(world, b"nonsense")
    answer = await world.client.delete_offsets("g", [(world.topic.topic_id, 0)])
    assert answer.partitions == (Refusal.GROUP_SUBSCRIBED_TO_TOPIC,)
