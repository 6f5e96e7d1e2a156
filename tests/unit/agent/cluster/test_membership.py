"""An agent among others: heard, sick, fenced, replaced, leaving. A real metadata service, virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.diagnosis import METADATA_AWAY_SECONDS, RECOVERY_SECONDS, STALLS_MAX, UPLOADS_FAIL_SECONDS
from metadata.agent_model import AgentCondition
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from tests.support.agents import MemberAgent
from tests.support.metadata import running_service
from tests.support.virtual_time import VirtualClock

READY, SICK, DRAINING = AgentCondition.READY, AgentCondition.SICK, AgentCondition.DRAINING


@pytest.fixture
async def service() -> AsyncIterator[MetadataService]:
    async with running_service(MemoryMetadataStore(), VirtualClock()) as started:
        yield started


@pytest.fixture
async def pair(service: MetadataService) -> AsyncIterator[tuple[MemberAgent, MemberAgent]]:
    """Two agents of one zone and group, READY."""
    first, second = MemberAgent(service, 1), MemberAgent(service, 2)
    for member in (first, second):
        await member.join()
    await asyncio.sleep(0.1)
    yield first, second
    for member in (first, second):
        await member.stop()


def named(member: MemberAgent) -> list[str]:
    return [endpoint.host for endpoint in member.roster.route("a", None, "h").endpoints]


async def conditions(service: MetadataService) -> dict[str, tuple[AgentCondition, str]]:
    return {
        described.info.host: (described.info.condition, described.reason)
        for described in await service.describe_agents()
    }


async def test_both_are_ready_heard_every_second_and_named(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, second = pair
    assert named(first) == named(second) == ["agent-1", "agent-2"]
    first.metadata.calls.clear()
    await asyncio.sleep(20)
    assert 19 <= first.metadata.calls.count("heartbeat_agent") <= 21
    assert await conditions(service) == {"agent-1": (READY, ""), "agent-2": (READY, "")}


async def test_its_load_is_what_it_measured_since_the_last_heartbeat(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, _ = pair
    await asyncio.sleep(0.95)
    first.metrics.received_bytes += 3_000
    first.metrics.sent_bytes += 500
    first.metrics.apis[3].ok += 7
    first.metrics.cross_zone.of("b").sent += 100
    first.metrics.connections_open = 4
    first.agent.budget.take("request", 99)
    await asyncio.sleep(1)
    load = next(described.load for described in await service.describe_agents() if described.info.host == "agent-1")
    assert (load.bytes_in, load.bytes_out, load.requests) == pytest.approx((3_000, 500, 7), rel=0.02)
    assert load.cross_zone_bytes == pytest.approx(100, rel=0.02)
    assert (load.connections, load.memory_held_bytes, load.memory_budget_bytes) == (4, 99, 1 << 20)
    await asyncio.sleep(2)
    load = next(described.load for described in await service.describe_agents() if described.info.host == "agent-1")
    assert (load.bytes_in, load.requests) == (0, 0), "rates, not sums"


async def test_failing_uploads_take_it_out_and_a_store_that_works_again_brings_it_back(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, second = pair
    first.writer.uploads_fail = first.store.problem = "503 SlowDown"
    await asyncio.sleep(UPLOADS_FAIL_SECONDS - 1)
    assert named(second) == ["agent-1", "agent-2"], "a few seconds are nothing"
    await asyncio.sleep(3)
    assert named(first) == named(second) == ["agent-2"]
    condition, reason = (await conditions(service))["agent-1"]
    assert condition is SICK
    assert "503 SlowDown" in reason
    assert first.membership.problem() == reason
    first.writer.uploads_fail = None  # its clients have gone: nothing is uploaded any more
    await asyncio.sleep(3 * RECOVERY_SECONDS)
    assert named(second) == ["agent-2"], "that alone is no proof that the store works"
    first.store.problem = None
    await asyncio.sleep(RECOVERY_SECONDS + 5)
    assert named(first) == named(second) == ["agent-1", "agent-2"]
    checks = first.store.checks
    await asyncio.sleep(30)
    assert first.store.checks == checks, "a healthy store is left alone"


async def test_a_loop_that_stalls_again_and_again_takes_it_out(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, second = pair
    loop = asyncio.get_running_loop()
    for number in range(STALLS_MAX):
        assert named(second) == ["agent-1", "agent-2"], number
        first.membership._probe.late(0.8, loop.time())
        await asyncio.sleep(1.1)
    assert named(second) == ["agent-2"]
    assert "stood still 3 times" in (await conditions(service))["agent-1"][1]
    await asyncio.sleep(30)
    assert named(second) == ["agent-1", "agent-2"]


async def test_cut_off_it_is_suspected_fenced_and_registers_anew_without_a_restart(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, second = pair
    before = first.agent.identity
    first.metadata.is_cut = True
    await asyncio.sleep(5)
    assert named(second) == ["agent-2"], "suspected"
    assert named(first) == ["agent-1", "agent-2"], "which it cannot know"
    await asyncio.sleep(METADATA_AWAY_SECONDS)
    assert "agent-1" not in await conditions(service), "fenced"
    assert named(first) == ["agent-2"], "it has understood that something is wrong with it"
    assert "has not answered for" in (first.membership.problem() or "")
    assert first.writer.started == [before.agent_epoch]
    first.metadata.is_cut = False
    await asyncio.sleep(2)
    assert first.agent.identity.agent_epoch > before.agent_epoch
    assert first.agent.identity.node_id == before.node_id
    assert first.writer.started == [before.agent_epoch, first.agent.identity.agent_epoch]
    assert first.writer.fences == 1
    await asyncio.sleep(RECOVERY_SECONDS + 2)
    assert named(first) == named(second) == ["agent-1", "agent-2"]
    assert first.replaced == []


async def test_the_writer_may_be_the_first_to_hear_that_it_was_fenced(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, _ = pair
    await service.leave_agent(first.agent.identity.agent_epoch)
    first.membership.fenced()
    assert first.membership.problem() == "fenced: registering anew"
    await asyncio.sleep(0.05)
    assert first.writer.started[-1] == first.agent.identity.agent_epoch
    assert len(first.writer.started) == 2
    assert first.membership.problem() is None


async def test_registering_anew_is_tried_until_it_works_and_is_not_misled_by_its_own_lost_answers(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, _ = pair
    await service.leave_agent(first.agent.identity.agent_epoch)
    first.metadata.answers_lost = 9
    await asyncio.sleep(30)
    assert first.replaced == [], "the newer epochs of its own name are its own"
    assert len(first.writer.started) == 2
    assert (await conditions(service))["agent-1"][0] is READY


async def test_another_process_with_its_name_takes_its_place(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, _ = pair
    successor = MemberAgent(service, 1)
    await successor.join()
    await asyncio.sleep(5)
    (error,) = first.replaced
    assert "another process has registered as this agent (a/default/1)" in str(error)
    assert len(first.writer.started) == 1
    assert successor.replaced == []
    await successor.stop()


async def test_a_drain_is_heard_by_everybody_before_it_goes_on_and_the_goodbye_fences(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, second = pair
    began = asyncio.get_running_loop().time()
    await first.membership.begin_drain()
    assert asyncio.get_running_loop().time() - began < 0.1, "it does not wait for the next heartbeat"
    assert named(first) == named(second) == ["agent-2"]
    assert (await conditions(service))["agent-1"][0] is DRAINING
    await first.membership.leave()
    assert list(await conditions(service)) == ["agent-2"]
    await asyncio.sleep(20)
    assert list(await conditions(service)) == ["agent-2"], "it does not come back"
    assert len(first.writer.started) == 1


async def test_a_drain_does_not_wait_for_a_metadata_service_that_is_away(
    pair: tuple[MemberAgent, MemberAgent],
) -> None:
    first, _ = pair
    first.metadata.is_cut = True
    began = asyncio.get_running_loop().time()
    await first.membership.begin_drain()
    assert asyncio.get_running_loop().time() - began < 1.5
    assert named(first) == ["agent-2"]
    await first.membership.leave()
    assert asyncio.get_running_loop().time() - began < 4


async def test_fenced_while_it_drains_it_is_silent(
    service: MetadataService, pair: tuple[MemberAgent, MemberAgent]
) -> None:
    first, _ = pair
    await first.membership.begin_drain()
    await service.leave_agent(first.agent.identity.agent_epoch)
    await asyncio.sleep(2)
    calls = len(first.metadata.calls)
    await asyncio.sleep(10)
    await first.membership.leave()
    assert len(first.metadata.calls) == calls, "no heartbeat, no registration, no goodbye"
    assert len(first.writer.started) == 1


async def test_a_sick_agent_that_is_the_only_one_is_still_where_clients_should_go(service: MetadataService) -> None:
    alone = MemberAgent(service, 1)
    await alone.join()
    alone.writer.uploads_fail = alone.store.problem = "503 SlowDown"
    await asyncio.sleep(UPLOADS_FAIL_SECONDS + 2)
    assert (await conditions(service))["agent-1"][0] is SICK
    assert named(alone) == ["agent-1"]
    assert alone.membership.problem() is None
    await alone.stop()


async def test_alone_it_drains_at_once(service: MetadataService) -> None:
    alone = MemberAgent(service, 1)
    await alone.join()
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    await alone.membership.begin_drain()
    assert asyncio.get_running_loop().time() == began
    assert named(alone) == ["agent-1"]
    await alone.membership.leave()
    await alone.stop()
