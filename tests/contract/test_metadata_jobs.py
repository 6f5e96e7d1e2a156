"""Background jobs as agents see them, over every store, in-process and over HTTP: leases, deletion, orphans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from metadata.job_model import DELETE_OBJECTS, SWEEP_ORPHANS, JobLease, ObjectsToDelete, Sweep, Swept, SweptObject
from metadata.model import Fenced
from metadata.store.port import DeadSegment
from runtime.settings import LifecycleSettings
from tests.support.metadata import batch, registration, segment
from tests.support.metadata_stores import STORES, metadata_url
from tests.support.metadata_world import World

SETTINGS = LifecycleSettings(
    undelete_ms=0, deletion_grace_ms=60_000, orphan_age_ms=30_000, sweep_interval_ms=3_600_000, job_lease_ms=20_000
)
EVER_MS = 10**15


@pytest.fixture(params=[(kind, transport) for kind in STORES for transport in ("packed", "http")], ids="-".join)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    kind, transport = request.param
    with metadata_url(kind, tmp_path, request) as url:
        world = World(url, transport, SETTINGS)
        await world.start()
        world.epoch = (await world.client.register_agent(registration())).agent_epoch
        world.topic = await world.client.create_topic("logs", 2, {"retention.ms": "-1"})
        yield world
        await world.stop()


async def commit(world: World, sequence: int, *partitions: int, epoch: int | None = None, settled: int = -1) -> str:
    drafts = [(world.topic.topic_id, partition, [batch(10, size=50)]) for partition in partitions]
    made = segment(sequence, *drafts, key=f"segments/0/{epoch or world.epoch}-{sequence}")
    await world.client.commit_segments(epoch or world.epoch, settled, [made])
    return made.segment_key


async def leased(world: World, kind: str = DELETE_OBJECTS, epoch: int | None = None) -> list[JobLease]:
    """What an agent gets within some looks of the service."""
    for _ in range(30):
        leases = await world.client.lease_jobs(epoch or world.epoch, [kind], 64)
        if leases:
            return leases
        await world.pass_seconds(0.5)
    return []


async def dead(world: World) -> list[DeadSegment]:
    return await world.store.find_dead_segments(EVER_MS, 100)


def keys(lease: JobLease) -> list[str]:
    return [key for _, _, key in msgspec.msgpack.decode(lease.payload, type=ObjectsToDelete).segments]


async def test_objects_are_deleted_a_grace_after_nothing_references_them(world: World) -> None:
    first = await commit(world, 1, 0)
    await commit(world, 2, 0, settled=1)
    await world.pass_seconds(61)
    assert await leased(world) == [], "both are referenced"
    await world.client.delete_topic(world.topic.topic_id)
    await world.client.commit_segments(world.epoch, 2, [segment(3)])
    async with asyncio.timeout(5):
        while len(await dead(world)) < 2:
            await asyncio.sleep(0.01)
    await world.pass_seconds(30)
    assert await leased(world) == []
    await world.pass_seconds(31)
    (lease,) = await leased(world)
    assert first in keys(lease) and len(keys(lease)) == 2
    assert await leased(world) == [], "they are being deleted"
    assert await world.client.finish_job(world.epoch, lease.lease_id, b"")
    assert [each.sequence for each in await dead(world)] == []
    assert not await world.client.finish_job(world.epoch, lease.lease_id, b""), "it is done once"


async def test_nothing_is_deleted_before_this_service_has_counted_a_grace(world: World) -> None:
    await world.client.commit_segments(world.epoch, -1, [segment(1)])
    await world.client.commit_segments(world.epoch, 1, [segment(2)])
    world.clock.wall_ms += 10**9
    await world.restart()
    world.epoch = (await world.client.register_agent(registration())).agent_epoch
    await world.pass_seconds(40)
    assert await leased(world) == [], "whatever clock says how long it has been dead"
    await world.pass_seconds(21)
    assert len(await leased(world)) == 1


async def test_leases_end_with_time_with_the_agent_and_with_the_service(world: World) -> None:
    await world.client.commit_segments(world.epoch, -1, [segment(1)])
    await world.client.commit_segments(world.epoch, 1, [segment(2)])
    other = (await world.client.register_agent(registration("agent-2"))).agent_epoch
    await world.pass_seconds(61)
    (lease,) = await leased(world)
    assert await world.client.renew_jobs(world.epoch, [lease.lease_id, 99]) == [lease.lease_id]
    assert await world.client.renew_jobs(other, [lease.lease_id]) == []
    await world.pass_seconds(21)
    (again,) = await leased(world, epoch=other)
    assert keys(again) == keys(lease)
    assert await world.client.renew_jobs(world.epoch, [lease.lease_id]) == []
    assert not await world.client.finish_job(world.epoch, lease.lease_id, b"")
    await world.client.leave_agent(other)
    (third,) = await leased(world)
    assert keys(third) == keys(lease)
    with pytest.raises(Fenced):
        await world.client.finish_job(other, again.lease_id, b"")
    with pytest.raises(Fenced):
        await world.client.lease_jobs(other, [DELETE_OBJECTS], 1)
    await world.restart()
    assert not await world.client.finish_job(world.epoch, third.lease_id, b"")
    assert len(await dead(world)) == 1
    await world.pass_seconds(61)
    (fourth,) = await leased(world)
    assert keys(fourth) == keys(lease)


async def test_a_job_given_back_comes_up_again(world: World) -> None:
    await world.client.commit_segments(world.epoch, -1, [segment(1)])
    await world.client.commit_segments(world.epoch, 1, [segment(2)])
    await world.pass_seconds(61)
    (lease,) = await leased(world)
    assert await world.client.finish_job(world.epoch, lease.lease_id, None)
    assert await world.client.lease_jobs(world.epoch, [DELETE_OBJECTS], 1) == []
    assert [keys(each) for each in await leased(world)] == [keys(lease)]


# --- orphans --------------------------------------------------------------------------------------------------


async def orphans(world: World, *objects: tuple[int, int, str], modified_ms: int | None = None) -> list[str]:
    modified_ms = world.clock.wall_ms if modified_ms is None else modified_ms
    return await world.client.find_orphans([SweptObject(*each, modified_ms) for each in objects])


async def test_only_what_no_commit_can_name_any_more_is_an_orphan(world: World) -> None:
    first = await commit(world, 1, 0)
    third = await commit(world, 3, 0)
    epoch = world.epoch
    hedge, skipped = "segments/0/hedge", "segments/0/skipped"
    assert await orphans(
        world,
        (epoch, 1, first),
        (epoch, 1, hedge),
        (epoch, 2, skipped),
        (epoch, 3, third),
        (epoch, 3, hedge + "3"),
        (epoch, 4, "segments/0/under way"),
        (epoch + 1, 1, "segments/0/never granted"),
        (-1, 1, "segments/0/no epoch"),
    ) == [hedge, skipped, hedge + "3"]
    await world.restart()
    late = (epoch, 4, "segments/0/under way")
    assert await orphans(world, (epoch, 3, third), (epoch, 2, skipped), late) == [skipped]
    await world.client.leave_agent(epoch)
    assert await orphans(world, (epoch, 1, first), (epoch, 3, third), late) == [late[2]]
    with pytest.raises(Fenced):
        await commit(world, 4, 0, epoch=epoch)


async def test_what_was_in_the_bucket_before_the_cluster_is_left_alone(world: World) -> None:
    await world.client.leave_agent(world.epoch)
    before = world.clock.wall_ms - 1
    assert await orphans(world, (world.epoch, 9, "segments/0/old"), modified_ms=before) == []
    assert await orphans(world, (world.epoch, 9, "segments/0/new")) == ["segments/0/new"]


async def test_everything_is_swept_in_parts_and_then_not_for_the_interval(world: World) -> None:
    leases = await leased(world, SWEEP_ORPHANS)
    sweeps = [msgspec.msgpack.decode(lease.payload, type=Sweep) for lease in leases]
    assert sweeps == [Sweep(30_000, -1, part) for part in range(16)]
    for lease in leases[1:]:
        assert await world.client.finish_job(world.epoch, lease.lease_id, msgspec.msgpack.encode(Swept(9, 2, 50)))
    assert not await world.client.finish_job(world.epoch, leases[0].lease_id, b"rubbish")
    (again,) = await leased(world, SWEEP_ORPHANS)
    assert again.target == "part 0"
    assert await world.client.finish_job(world.epoch, again.lease_id, msgspec.msgpack.encode(Swept(9, 2, 50)))
    await world.restart()
    assert await leased(world, SWEEP_ORPHANS) == []
    world.clock.wall_ms += 3_600_000
    assert len(await leased(world, SWEEP_ORPHANS)) == 16


async def test_an_epoch_that_is_fenced_is_swept_by_itself_once_its_objects_are_old_enough(world: World) -> None:
    for lease in await leased(world, SWEEP_ORPHANS):
        await world.client.finish_job(world.epoch, lease.lease_id, msgspec.msgpack.encode(Swept()))
    gone = (await world.client.register_agent(registration("agent-2"))).agent_epoch
    await world.client.leave_agent(gone)
    await world.pass_seconds(10)
    assert await world.client.lease_jobs(world.epoch, [SWEEP_ORPHANS], 64) == []
    await world.pass_seconds(22)
    (lease,) = await leased(world, SWEEP_ORPHANS)
    assert msgspec.msgpack.decode(lease.payload, type=Sweep) == Sweep(30_000, gone, -1)
    assert await world.client.finish_job(world.epoch, lease.lease_id, msgspec.msgpack.encode(Swept()))
    await world.pass_seconds(5)
    assert await world.client.lease_jobs(world.epoch, [SWEEP_ORPHANS], 64) == []
