"""What every metadata client must do: over each store, with what travels sent through MessagePack, and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metadata.agent_model import (
    AgentCondition,
    AgentDescription,
    AgentHeartbeat,
    AgentInfo,
    AgentLoad,
    AgentRegistration,
)
from metadata.group_model import GroupLag, OffsetCommit, OffsetRecord
from metadata.model import (
    BatchCommitted,
    ExtentsFound,
    ExtentsQuery,
    Fenced,
    PartitionOffsets,
    Refusal,
    Refused,
    TopicsChanged,
)
from tests.support.metadata import (
    Recorder,
    batch,
    registration,
    segment,
    topic_id,
)
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


# --- agents ---------------------------------------------------------------------------------------------------


async def test_an_agent_keeps_its_node_id_and_gets_a_new_epoch(world: World) -> None:
    first = await world.client.register_agent(registration("b"))
    other = await world.client.register_agent(registration("c"))
    await world.restart()
    again = await world.client.register_agent(registration("b"))
    assert again.cluster_id == first.cluster_id
    assert again.node_id == first.node_id != other.node_id
    assert again.agent_epoch > other.agent_epoch > first.agent_epoch


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_replaced_epoch_commits_nothing(world: World, restarted: bool) -> None:
    commit = segment(1, (world.topic.topic_id, 0, [batch(3)]))
    await world.client.commit_segments(world.epoch, -1, [commit])
    renewed = await world.client.register_agent(registration())
    if restarted:
        await world.restart()
    for old in (commit, segment(2, (world.topic.topic_id, 0, [batch(3)]))):
        with pytest.raises(Fenced):
            await world.client.commit_segments(world.epoch, -1, [old])
    assert (await world.found(0)).high_watermark == 3
    (answer,) = await world.client.commit_segments(renewed.agent_epoch, -1, [commit])
    assert answer.extents[0][0].base_offset == 3, "sequences belong to an epoch"


async def test_an_epoch_that_never_existed_is_fenced(world: World) -> None:
    with pytest.raises(Fenced):
        await world.client.commit_segments(999, -1, [])
    with pytest.raises(Fenced):
        await world.client.heartbeat_agent(AgentHeartbeat(999, AgentCondition.READY))


async def conditions(world: World) -> dict[str, str]:
    return {each.info.agent_uid: each.info.condition.value for each in await world.client.describe_agents()}


async def test_the_roster_tells_what_an_agent_registered_and_said(world: World) -> None:
    listener = Recorder()
    assert [info.condition for info in (await world.client.subscribe(listener)).agents] == [AgentCondition.STARTING]
    hello = AgentRegistration("b", "zone-b", "vip", "::1", 9093, "9.9", "10.0.0.1:8080", ("jobs",))
    registered = await world.client.register_agent(hello)
    assert registered.session_timeout_ms == 10_000
    load = AgentLoad(bytes_in=1.5, connections=3, loop_lag_ms=7)
    await world.client.heartbeat_agent(AgentHeartbeat(registered.agent_epoch, AgentCondition.READY, "", load))
    await world.client.heartbeat_agent(
        AgentHeartbeat(registered.agent_epoch, AgentCondition.READY, "", AgentLoad(bytes_in=2))
    )
    await world.client.heartbeat_agent(AgentHeartbeat(registered.agent_epoch, AgentCondition.SICK, "uploads fail"))
    infos = [
        AgentInfo(
            registered.node_id,
            registered.agent_epoch,
            "b",
            "zone-b",
            "vip",
            "::1",
            9093,
            "10.0.0.1:8080",
            "9.9",
            ("jobs",),
            condition,
        )
        for condition in (AgentCondition.STARTING, AgentCondition.READY, AgentCondition.SICK)
    ]
    await world.heard(listener, rosters=3)
    assert [roster[1] for roster in listener.rosters] == infos, "told when something changed, and only then"
    _, described = await world.client.describe_agents()
    assert described == AgentDescription(
        infos[-1], AgentLoad(), "uploads fail", world.clock.wall_ms, world.clock.wall_ms
    )
    await world.client.subscribe(Recorder())
    await world.restart()
    for info, again in zip(infos[1:2], (await world.client.subscribe(Recorder())).agents[1:], strict=True):
        assert again == info, "a new leader takes everybody for alive and ready"


async def test_a_silent_agent_is_suspected_then_fenced_and_keeps_its_node_id(world: World) -> None:
    lively = await world.client.register_agent(registration("lively"))
    listener = Recorder()
    await world.client.subscribe(listener)
    ready = AgentHeartbeat(world.epoch, AgentCondition.READY)
    seen: list[dict[str, str]] = []
    await world.client.heartbeat_agent(ready)
    for _ in range(14):
        await world.client.heartbeat_agent(AgentHeartbeat(lively.agent_epoch, AgentCondition.READY))
        if (now := await conditions(world)) not in seen:
            seen.append(now)
        await world.clock.pass_seconds(1)
    assert seen == [
        {"agent-1": "ready", "lively": "ready"},
        {"agent-1": "sick", "lively": "ready"},
        {"lively": "ready"},
    ]
    await world.heard(listener, rosters=4)
    assert [len(roster) for roster in listener.rosters] == [2, 2, 2, 1]
    for _ in range(2):
        with pytest.raises(Fenced):
            await world.client.heartbeat_agent(ready)
        with pytest.raises(Fenced):
            await world.client.commit_segments(world.epoch, -1, [segment(1, (world.topic.topic_id, 0, [batch()]))])
        await world.restart()
        assert set(await conditions(world)) == {"lively"}
    again = await world.client.register_agent(registration())
    assert (again.node_id, again.agent_epoch > lively.agent_epoch) == (1, True)


async def test_a_heartbeat_ends_the_suspicion(world: World) -> None:
    ready = AgentHeartbeat(world.epoch, AgentCondition.READY)
    await world.client.heartbeat_agent(ready)
    await world.clock.pass_seconds(5)
    (described,) = await world.client.describe_agents()
    assert (described.info.condition, described.reason) == ("sick", "no heartbeat")
    await world.client.heartbeat_agent(ready)
    assert await conditions(world) == {"agent-1": "ready"}
    await world.clock.pass_seconds(7)
    await world.client.heartbeat_agent(ready)


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_agent_that_left_is_gone_at_once_and_for_good(world: World, restarted: bool) -> None:
    listener = Recorder()
    await world.client.subscribe(listener)
    await world.client.leave_agent(world.epoch)
    await world.heard(listener, rosters=1)
    assert listener.rosters == [()]
    if restarted:
        await world.restart()
    await world.client.leave_agent(world.epoch)
    await world.client.leave_agent(999)
    assert await world.client.describe_agents() == []
    with pytest.raises(Fenced):
        await world.client.heartbeat_agent(AgentHeartbeat(world.epoch, AgentCondition.READY))
    with pytest.raises(Fenced):
        await world.client.commit_segments(world.epoch, -1, [])
    assert (await world.client.register_agent(registration())).node_id == 1


async def test_an_agent_that_is_gone_for_long_is_forgotten_and_its_node_id_not_used_again(world: World) -> None:
    await world.client.leave_agent(world.epoch)
    await world.clock.pass_seconds(61)
    world.clock.wall_ms += 86_400_001
    await world.clock.pass_seconds(61)
    assert (await world.client.register_agent(registration())).node_id == 2


# --- commits --------------------------------------------------------------------------------------------------


async def test_every_batch_is_answered_with_its_own_offset(world: World) -> None:
    topic = world.topic.topic_id
    answers = await world.client.commit_segments(
        world.epoch,
        -1,
        [
            segment(1, (topic, 0, [batch(3), batch(2)]), (topic, 1, [batch(4)])),
            segment(2, (topic, 0, [batch(5)]), (topic, 0, [batch(1)])),
        ],
    )
    assert [[[each.base_offset for each in row] for row in answer.extents] for answer in answers] == [
        [[0, 3], [0]],
        [[5], [10]],
    ]
    found = await world.found(0)
    assert found.high_watermark == 11
    assert [(each.base_offset, each.last_offset, each.segment_key, each.byte_position) for each in found.extents] == [
        (0, 4, "segments/1", 0),
        (5, 9, "segments/2", 0),
        (10, 10, "segments/2", 100),
    ]


async def test_a_commit_without_batches_is_answered(world: World) -> None:
    (answer,) = await world.client.commit_segments(world.epoch, -1, [segment(1)])
    assert answer.extents == ()
    assert await world.client.commit_segments(world.epoch, -1, []) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_repeated_commit_gets_its_first_answer(world: World, restarted: bool) -> None:
    topic = world.topic.topic_id
    commits = [segment(1, (topic, 0, [batch(3)])), segment(2, (topic, 0, [batch(2)]))]
    first = await world.client.commit_segments(world.epoch, -1, commits[:1])
    if restarted:
        await world.restart()
    both = await world.client.commit_segments(world.epoch, -1, commits)
    assert both[0] == first[0]
    assert both[1].extents[0][0].base_offset == 3
    assert await world.client.commit_segments(world.epoch, -1, commits) == both
    assert (await world.found(0)).high_watermark == 5


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_copy_of_a_settled_commit_that_comes_late_changes_nothing(world: World, restarted: bool) -> None:
    commits = [segment(number, (world.topic.topic_id, 0, [batch()])) for number in (1, 2, 3)]
    await world.client.commit_segments(world.epoch, -1, commits[:2])
    await world.client.commit_segments(world.epoch, 2, commits[2:])
    if restarted:
        await world.restart()
    for late in commits[:2]:
        with pytest.raises(Refused) as refused:
            await world.client.commit_segments(world.epoch, -1, [late])
        assert refused.value.refusal is Refusal.INVALID_REQUEST
    assert (await world.found(0)).high_watermark == 3


async def test_batches_without_records_are_refused_with_the_whole_call(world: World) -> None:
    topic = world.topic.topic_id
    for bad in (batch(0), batch(1, size=0)):
        with pytest.raises(Refused):
            await world.client.commit_segments(
                world.epoch, -1, [segment(1, (topic, 0, [batch()])), segment(2, (topic, 0, [bad]))]
            )
    assert (await world.found(0)).high_watermark == 0


async def test_batches_of_a_deleted_topic_are_refused_and_only_those(world: World) -> None:
    other = await world.client.create_topic("other", 1, {})
    await world.client.delete_topic(other.topic_id)
    (answer,) = await world.client.commit_segments(
        world.epoch,
        -1,
        [
            segment(
                1,
                (other.topic_id, 0, [batch(), batch()]),
                (world.topic.topic_id, 0, [batch(4)]),
                (world.topic.topic_id, 2, [batch()]),
            )
        ],
    )
    gone = BatchCommitted(-1, -1, False, Refusal.UNKNOWN_TOPIC_ID)
    assert answer.extents[0] == (gone, gone)
    assert answer.extents[1] == (BatchCommitted(0, 0),)
    assert answer.extents[2] == (BatchCommitted(-1, -1, False, Refusal.UNKNOWN_TOPIC_OR_PARTITION),)
    (only,) = (await world.found(0)).extents
    assert only.byte_position == 200


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_duplicate_is_acknowledged_with_its_first_offset_from_any_agent(world: World, restarted: bool) -> None:
    topic = world.topic.topic_id
    sent = [batch(2, producer=7, epoch=0, sequence=0), batch(3, producer=7, epoch=0, sequence=2)]
    await world.client.commit_segments(world.epoch, -1, [segment(1, (topic, 0, sent))])
    if restarted:
        await world.restart()
    other = (await world.client.register_agent(registration("agent-2"))).agent_epoch
    retried = [batch(1), sent[1], batch(1, producer=7, epoch=0, sequence=5), sent[0], batch(1)]
    (answer,) = await world.client.commit_segments(other, -1, [segment(1, (topic, 0, retried), key="segments/other")])
    assert answer.extents[0] == (
        BatchCommitted(5, 0),
        BatchCommitted(2, 0, True),
        BatchCommitted(6, 0),
        BatchCommitted(0, 0, True),
        BatchCommitted(7, 0),
    )
    found = await world.found(5)
    assert [(each.base_offset, each.byte_position, each.byte_length) for each in found.extents] == [
        (5, 0, 100),
        (6, 200, 100),
        (7, 400, 100),
    ], "the bytes of a duplicate are in no extent"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_sequence_that_does_not_follow_is_refused(world: World, restarted: bool) -> None:
    topic = world.topic.topic_id
    await world.client.commit_segments(
        world.epoch, -1, [segment(1, (topic, 0, [batch(2, producer=7, epoch=1, sequence=0)]))]
    )
    if restarted:
        await world.restart()
    offered = [
        batch(1, producer=7, epoch=1, sequence=3),
        batch(1, producer=7, epoch=0, sequence=2),
        batch(1, producer=7, epoch=2, sequence=1),
        batch(1, producer=7, epoch=2, sequence=0),
    ]
    (answer,) = await world.client.commit_segments(world.epoch, -1, [segment(2, (topic, 0, offered))])
    assert [each.refusal for each in answer.extents[0]] == [
        Refusal.OUT_OF_ORDER_SEQUENCE,
        Refusal.INVALID_PRODUCER_EPOCH,
        Refusal.OUT_OF_ORDER_SEQUENCE,
        None,
    ]
    assert (await world.found(0)).high_watermark == 3


async def refusal_of(
    world: World, sequence: int, producer: int, base_sequence: int, topic: bytes | None = None, partition: int = 0
) -> Refusal | None:
    draft = batch(1, producer=producer, epoch=0, sequence=base_sequence)
    commit = segment(sequence, (topic or world.topic.topic_id, partition, [draft]), key=f"segments/s{sequence}")
    (answer,) = await world.client.commit_segments(world.epoch, sequence - 1, [commit])
    return answer.extents[0][0].refusal


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_producer_that_cannot_have_been_forgotten_begins_at_sequence_zero(
    world: World, restarted: bool
) -> None:
    """Else its first batch, which failed or is still to come, is overtaken: it could never be stored any more."""
    producer = (await world.client.grant_producer_id(-1, -1)).producer_id
    if restarted:
        await world.restart()
    assert await refusal_of(world, 1, producer, 1) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert await refusal_of(world, 2, producer, 2**31 - 1) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert await refusal_of(world, 3, 10**12, 1) is Refusal.UNKNOWN_PRODUCER_ID
    assert (await world.found(0)).high_watermark == 0
    assert await refusal_of(world, 4, producer, 0) is None
    assert await refusal_of(world, 5, producer, 1) is None
    assert await refusal_of(world, 6, producer, 2, partition=1) is Refusal.OUT_OF_ORDER_SEQUENCE, "of each partition"
    assert await refusal_of(world, 7, 10**12, 0) is None
    assert await refusal_of(world, 8, 10**12, 1) is None


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_producer_whose_state_expired_goes_on_where_it_was(world: World, restarted: bool) -> None:
    idle, young = [(await world.client.grant_producer_id(-1, -1)).producer_id for _ in range(2)]
    assert await refusal_of(world, 1, idle, 0) is None
    world.clock.wall_ms += 24 * 3_600_000
    await world.clock.pass_seconds(61)
    world.epoch = (await world.client.register_agent(registration())).agent_epoch
    if restarted:
        await world.restart()
    assert await refusal_of(world, 2, young, 1) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert await refusal_of(world, 3, idle, 1, partition=1) is Refusal.OUT_OF_ORDER_SEQUENCE, "it never was there"
    assert await refusal_of(world, 4, idle, 1) is None


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_producer_goes_on_in_a_topic_made_anew(world: World, restarted: bool) -> None:
    known = (await world.client.grant_producer_id(-1, -1)).producer_id
    assert await refusal_of(world, 1, known, 0) is None
    await world.client.delete_topic(world.topic.topic_id)
    young = (await world.client.grant_producer_id(-1, -1)).producer_id
    if restarted:
        await world.restart()
    again = (await world.client.create_topic("logs", 2, {})).topic_id
    other = (await world.client.create_topic("another", 1, {})).topic_id
    if restarted:
        await world.restart()
    assert await refusal_of(world, 2, young, 1, again) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert await refusal_of(world, 3, known, 1, other) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert await refusal_of(world, 4, known, 1, again) is None


async def test_a_commit_of_duplicates_only_is_remembered(world: World) -> None:
    sent = segment(1, (world.topic.topic_id, 0, [batch(2, producer=7, epoch=0, sequence=0)]))
    again = segment(2, (world.topic.topic_id, 0, [batch(2, producer=7, epoch=0, sequence=0)]))
    await world.client.commit_segments(world.epoch, -1, [sent])
    (answer,) = await world.client.commit_segments(world.epoch, 1, [again])
    await world.restart()
    assert await world.client.commit_segments(world.epoch, 1, [again]) == [answer]
    assert answer.extents[0][0] == BatchCommitted(0, 0, True)


# --- reads ----------------------------------------------------------------------------------------------------


async def commit_many(world: World, count: int) -> None:
    for sequence in range(count):
        await world.client.commit_segments(
            world.epoch,
            sequence - 1,
            [segment(sequence, (world.topic.topic_id, 0, [batch(10, timestamp=1_000 + sequence)]))],
        )


@pytest.mark.parametrize("restarted", [False, True])
async def test_extents_by_offset(world: World, restarted: bool) -> None:
    await commit_many(world, 10)
    if restarted:
        await world.restart()
        await world.client.commit_segments(
            world.epoch, -1, [segment(10, (world.topic.topic_id, 0, [batch(10, timestamp=5)]))]
        )
    high_watermark = 110 if restarted else 100

    async def bases(offset: int, byte_max: int) -> list[int]:
        found = await world.found(offset, byte_max)
        assert (found.high_watermark, found.log_start_offset, found.refusal) == (high_watermark, 0, None)
        return [each.base_offset for each in found.extents]

    assert await bases(0, 10**9) == list(range(0, high_watermark, 10))
    assert await bases(0, 1) == [0]
    assert await bases(19, 200) == [10, 20]
    assert await bases(85, 101) == [80, 90]
    assert await bases(99, 10**9) == list(range(90, high_watermark, 10))
    assert await bases(high_watermark, 10**9) == []
    for outside in (-1, high_watermark + 1):
        found = await world.found(outside)
        assert found == ExtentsFound(high_watermark, 0, (), Refusal.OFFSET_OUT_OF_RANGE)


async def test_extents_of_what_does_not_exist(world: World) -> None:
    assert (await world.found(0, partition=2)).refusal is Refusal.UNKNOWN_TOPIC_OR_PARTITION
    assert (await world.found(0, partition=-1)).refusal is Refusal.UNKNOWN_TOPIC_OR_PARTITION
    (found,) = await world.client.find_extents([ExtentsQuery(topic_id(99), 0, 0, 1)])
    assert found.refusal is Refusal.UNKNOWN_TOPIC_ID


async def test_extents_by_timestamp(world: World) -> None:
    await commit_many(world, 5)
    topic = world.topic.topic_id
    await world.client.commit_segments(world.epoch, -1, [segment(9, (topic, 0, [batch(1, timestamp=7)]))])
    for timestamp, base in ((0, 0), (1_000, 0), (1_001, 10), (1_004, 40), (1_005, None)):
        found = await world.client.find_extent_by_timestamp(topic, 0, timestamp)
        assert (None if found is None else found.base_offset) == base
    assert await world.client.find_extent_by_timestamp(topic, 1, 0) is None
    for unknown, refusal in (((topic_id(9), 0), Refusal.UNKNOWN_TOPIC_ID), ((topic, 5), "unknown_topic_or_partition")):
        with pytest.raises(Refused) as refused:
            await world.client.find_extent_by_timestamp(*unknown, 0)
        assert refused.value.refusal == refusal


async def test_partition_offsets(world: World) -> None:
    await commit_many(world, 2)
    asked = [(world.topic.topic_id, 0), (world.topic.topic_id, 1), (world.topic.topic_id, 2), (topic_id(9), 0)]
    expected = [PartitionOffsets(0, 20, 1_001), PartitionOffsets(0, 0, -1), None, None]
    assert await world.client.partition_offsets(asked) == expected
    await world.restart()
    assert await world.client.partition_offsets(asked) == expected


# --- topics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "configs", "refusal"),
    [
        ("logs", 1, {}, Refusal.TOPIC_ALREADY_EXISTS),
        ("", 1, {}, Refusal.INVALID_TOPIC),
        ("..", 1, {}, Refusal.INVALID_TOPIC),
        ("a b", 1, {}, Refusal.INVALID_TOPIC),
        ("x" * 250, 1, {}, Refusal.INVALID_TOPIC),
        ("new\n", 1, {}, Refusal.INVALID_TOPIC),
        ("new", 0, {}, Refusal.INVALID_PARTITIONS),
        ("new", 99, {}, Refusal.INVALID_PARTITIONS),
        ("new", 1, {"no.such.config": "1"}, Refusal.INVALID_CONFIG),
        ("new", 1, {"retention.ms": "soon"}, Refusal.INVALID_CONFIG),
    ],
)
async def test_topics_that_cannot_be_made(
    world: World, name: str, count: int, configs: dict[str, str], refusal: Refusal
) -> None:
    for validate_only in (True, False):
        with pytest.raises(Refused) as refused:
            await world.client.create_topic(name, count, configs, validate_only)
        assert refused.value.refusal is refusal
    assert (await world.client.subscribe(Recorder())).topics == (world.topic,)


async def test_names_that_differ_in_dots_and_underscores_collide(world: World) -> None:
    made = await world.client.create_topic("app.web_logs", 1, {})
    with pytest.raises(Refused) as refused:
        await world.client.create_topic("app_web.logs", 1, {})
    assert refused.value.refusal is Refusal.INVALID_TOPIC
    await world.client.delete_topic(made.topic_id)
    await world.client.create_topic("app_web.logs", 1, {})


async def test_validate_only_makes_nothing(world: World) -> None:
    checked = await world.client.create_topic("new", 3, {"retention.ms": "1000"}, validate_only=True)
    assert (checked.name, checked.partition_count, checked.configs) == ("new", 3, {"retention.ms": "1000"})
    assert await world.client.partition_offsets([(checked.topic_id, 0)]) == [None]
    await world.client.create_topic("new", 3, {})


async def test_configs_are_set_and_taken_back(world: World) -> None:
    topic = world.topic.topic_id
    altered = await world.client.alter_topic_configs(topic, {"retention.ms": "1000", "cleanup.policy": "compact"})
    assert altered.configs == {"retention.ms": "1000", "cleanup.policy": "compact"}
    for changes in ({"retention.ms": "soon"}, {"cleanup.policy": None, "nonsense": "1"}):
        with pytest.raises(Refused) as refused:
            await world.client.alter_topic_configs(topic, changes)  # type: ignore[arg-type]
        assert refused.value.refusal is Refusal.INVALID_CONFIG
    altered = await world.client.alter_topic_configs(topic, {"retention.ms": None, "max.message.bytes": None})
    await world.restart()
    assert (await world.client.subscribe(Recorder())).topics == (altered,)
    assert altered.configs == {"cleanup.policy": "compact"}
    with pytest.raises(Refused) as refused:
        await world.client.alter_topic_configs(topic_id(9), {})
    assert refused.value.refusal is Refusal.UNKNOWN_TOPIC_ID


async def test_delete_and_make_again_never_mixes_records(world: World) -> None:
    await commit_many(world, 3)
    await world.client.delete_topic(world.topic.topic_id)
    assert (await world.found(0)).refusal is Refusal.UNKNOWN_TOPIC_ID
    with pytest.raises(Refused) as refused:
        await world.client.delete_topic(world.topic.topic_id)
    assert refused.value.refusal is Refusal.UNKNOWN_TOPIC_ID
    world.topic = await world.client.create_topic("logs", 2, {})
    for _ in range(2):
        assert await world.found(0) == ExtentsFound(0, 0)
        await world.restart()


async def test_deleting_a_topic_drops_its_group_offsets(world: World) -> None:
    other = await world.client.create_topic("other", 1, {})
    offsets = tuple(OffsetRecord(topic, 0, 0, -1, "", 0) for topic in (world.topic.topic_id, other.topic_id))
    answer = await world.client.commit_offsets(OffsetCommit("g", -1, "", None, offsets))
    assert (answer.refusal, answer.offsets) == (None, (None, None))
    await world.client.delete_topic(other.topic_id)
    for _ in range(2):
        kept = await world.client.fetch_offsets("g", None)
        assert [offset.topic_id for offset in kept] == [world.topic.topic_id]
        await world.restart()


async def test_lag_in_records_and_in_seconds(world: World) -> None:
    topic = world.topic.topic_id
    start_ms = world.clock.wall_ms
    for sequence in range(3):
        await world.client.commit_segments(world.epoch, -1, [segment(sequence, (topic, 0, [batch(10)]))])
        world.clock.wall_ms += 10_000
    committed = (OffsetRecord(topic, 0, 15, -1, "", 0), OffsetRecord(topic, 1, 0, -1, "", 0))
    await world.client.commit_offsets(OffsetCommit("g", -1, "", None, committed))
    for _ in range(2):
        assert await world.client.group_lags() == [GroupLag("g", "logs", 0, 15, 20.0), GroupLag("g", "logs", 1, 0, 0.0)]
        await world.restart()
    assert world.clock.wall_ms == start_ms + 30_000


# --- producer ids ---------------------------------------------------------------------------------------------


async def test_a_producer_id_is_never_handed_out_twice(world: World) -> None:
    granted: list[int] = []
    for _ in range(3):
        granted += [(await world.client.grant_producer_id(-1, -1)).producer_id for _ in range(3)]
        await world.restart()
    assert len(set(granted)) == 9
    assert all(producer_id >= 0 for producer_id in granted)


async def test_the_next_epoch_of_a_producer(world: World) -> None:
    first = await world.client.grant_producer_id(-1, -1)
    assert first.producer_epoch == 0
    bumped = await world.client.grant_producer_id(first.producer_id, 0)
    assert (bumped.producer_id, bumped.producer_epoch) == (first.producer_id, 1)
    assert await world.client.grant_producer_id(first.producer_id, 0) == bumped, "a retry gets the same epoch"
    for used_up in ((first.producer_id, 32_766), (10**15, 0)):
        fresh = await world.client.grant_producer_id(*used_up)
        assert fresh.producer_id not in (first.producer_id, 10**15)
        assert fresh.producer_epoch == 0


# --- subscriptions --------------------------------------------------------------------------------------------


async def test_a_listener_hears_everything_once_and_in_order(world: World) -> None:
    listener = Recorder()
    subscription = await world.client.subscribe(listener)
    assert subscription.topics == (world.topic,)
    await subscription.follow([(world.topic.topic_id, 0)])
    other = await world.client.create_topic("other", 1, {})
    await commit_many(world, 2)
    altered = await world.client.alter_topic_configs(other.topic_id, {"retention.ms": "1"})
    await world.client.delete_topic(other.topic_id)
    extents = (await world.found(0)).extents
    await world.heard(listener, 5)
    assert listener.heard == [
        TopicsChanged((other,)),
        *extents,
        TopicsChanged((altered,)),
        TopicsChanged((), (other.topic_id,)),
    ]
    subscription.close()
    subscription.close()
    await world.client.create_topic("unheard", 1, {})
    await asyncio.sleep(0.05)
    assert len(listener.heard) == 5
