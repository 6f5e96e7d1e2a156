"""The coordinator on a real pipeline and the memory store, with time in the test's hands."""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest
from prometheus_client import CollectorRegistry

from metadata import coordinator as coordinator_module
from metadata import group_lag as group_lag_module
from metadata.coordinator import EMPTY_GROUP_KEPT_MS, GroupCoordinator
from metadata.deadlines import STALE_ENTRIES_MAX, Deadlines
from metadata.group_model import (
    JoinGroup,
    JoinGroupAnswer,
    LeavingMember,
    OffsetCommit,
    OffsetCommitAnswer,
    OffsetRecord,
    SyncGroup,
)
from metadata.group_offsets import OFFSET_BYTES, CommittedOffsets
from metadata.metrics import MetadataMetrics
from metadata.model import Extent, ExtentsFound, ExtentsQuery, MetadataUnavailable, Refusal, Topic, TopicId
from metadata.pipeline import CommandPipeline
from metadata.store.memory import MemoryMetadataStore
from metadata.store.port import GroupSaved, TopicSaved
from runtime.clock import SeededEntropy
from runtime.settings import GroupSettings
from runtime.tasks import Supervisor
from tests.support.metadata import FaultyMetadataStore

TOPIC = Topic(b"t" * 16, "logs", 4, {}, 0)
DAY_MS = 86_400_000
STARTED_MS = 1_700_000_000_000


class ManualClock:
    """Time moves when the test says so."""

    def __init__(self) -> None:
        self.elapsed_ms = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = count()

    def now_ms(self) -> int:
        return STARTED_MS + self.elapsed_ms

    def monotonic(self) -> float:
        return self.elapsed_ms / 1000

    async def sleep(self, seconds: float) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.elapsed_ms + round(seconds * 1000), next(self._order), wake))
        await wake

    def sleeping(self) -> int:
        return sum(not wake.done() for _, _, wake in self._sleepers)

    async def advance(self, duration_ms: int) -> None:
        end_ms = self.elapsed_ms + duration_ms
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_ms:
            due_ms, _, wake = heapq.heappop(self._sleepers)
            if wake.done():
                continue
            self.elapsed_ms = max(due_ms, self.elapsed_ms)
            wake.set_result(None)
            await settle()
        self.elapsed_ms = end_ms


async def settle() -> None:
    """Let everything that can run without time passing run."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Cluster:
    """One life of the metadata service's group side; ``restart`` begins the next one on the same store."""

    store: FaultyMetadataStore
    clock: ManualClock
    settings: GroupSettings = field(default_factory=GroupSettings)
    high_watermarks: dict[tuple[TopicId, int], int] = field(default_factory=dict)
    extents: list[Extent] = field(default_factory=list)
    log_start_offset: int = 0

    async def start(self) -> None:
        self.supervisor = Supervisor()
        self.pipeline = CommandPipeline(self.store, self.clock, MetadataMetrics(CollectorRegistry()))
        self.groups = GroupCoordinator(
            self.pipeline,
            self.clock,
            SeededEntropy(1),
            self.supervisor,
            self.settings,
            lambda topic_id: TOPIC if topic_id == TOPIC.topic_id else None,
            lambda topic_id, partition: self.high_watermarks.get((topic_id, partition)),
            self._find_extents,
        )
        await self.pipeline.start(self.supervisor, "cluster")
        await self.groups.start()

    async def stop(self) -> None:
        await self.groups.stop()
        await self.pipeline.stop()
        await self.supervisor.stop()

    async def restart(self) -> None:
        await self.supervisor.stop()
        await self.start()

    async def delete(self, group_id: str) -> Refusal | None:
        return await self.pipeline.run(partial(self.groups.decide_delete, group_id))

    def hold(self) -> None:
        """Writes wait from now on."""
        self.store.gate = asyncio.Event()

    def release(self) -> None:
        if self.store.gate is not None:
            self.store.gate.set()

    async def _find_extents(self, queries: Sequence[ExtentsQuery]) -> list[ExtentsFound]:
        found = []
        for query in queries:
            high_watermark = self.high_watermarks[query.topic_id, query.partition]
            if query.offset < self.log_start_offset:
                refusal = Refusal.OFFSET_OUT_OF_RANGE
                found.append(ExtentsFound(high_watermark, self.log_start_offset, (), refusal))
                continue
            extents = tuple(extent for extent in self.extents if extent.last_offset >= query.offset)[:1]
            found.append(ExtentsFound(high_watermark, self.log_start_offset, extents))
        return found

    def join(self, member_id: str = "", **changes: object) -> asyncio.Task[JoinGroupAnswer]:
        values: dict[str, object] = {
            "group_id": "g",
            "member_id": member_id,
            "group_instance_id": None,
            "client_id": "shipper",
            "client_host": "/10.0.0.1",
            "session_timeout_ms": 10_000,
            "rebalance_timeout_ms": 60_000,
            "protocol_type": "consumer",
            "protocols": (("range", b"topics"),),
            "member_id_required": False,
        }
        join = JoinGroup(**{**values, **changes})  # type: ignore[arg-type]
        return asyncio.create_task(self.groups.join_group(join))

    async def member(self) -> JoinGroupAnswer:
        """The only member of a stable group."""
        joining = self.join()
        await self.clock.advance(3_000)
        joined = await joining
        await self.sync(joined.member_id, joined.generation_id, {joined.member_id: b"all"})
        return joined

    async def sync(self, member_id: str, generation_id: int, assignments: dict[str, bytes]) -> bytes:
        sync = SyncGroup("g", generation_id, member_id, None, None, None, tuple(assignments.items()))
        answer = await self.groups.sync_group(sync)
        assert answer.refusal is None
        return answer.assignment

    async def commit(
        self, offset: int, generation_id: int = -1, member_id: str = "", partition: int = 0, group_id: str = "g"
    ) -> OffsetCommitAnswer:
        record = OffsetRecord(TOPIC.topic_id, partition, offset, -1, "", 0)
        return await self.groups.commit_offsets(OffsetCommit(group_id, generation_id, member_id, None, (record,)))

    async def committed(self, group_id: str = "g") -> list[int]:
        return [record.offset for record in await self.groups.fetch_offsets(group_id, None)]

    async def state(self, group_id: str = "g") -> str:
        return (await self.groups.describe_groups([group_id]))[0].state


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster(FaultyMetadataStore(MemoryMetadataStore()), ManualClock())
    await cluster.start()
    await cluster.store.write([TopicSaved(TOPIC)])
    cluster.store.writes.clear()
    yield cluster
    cluster.release()
    await cluster.stop()


async def test_a_group_forms_and_is_durable_before_the_assignment_is_answered(cluster: Cluster) -> None:
    first, second = cluster.join(), cluster.join()
    await cluster.clock.advance(6_000)
    joined = [await first, await second]
    assert len(cluster.store.writes) == 0, "joining writes nothing"
    cluster.hold()
    assignments = {each.member_id: bytes([index]) for index, each in enumerate(joined)}
    syncs = [asyncio.create_task(cluster.sync(each.member_id, 1, assignments)) for each in joined]
    await settle()
    assert not any(sync.done() for sync in syncs)
    assert isinstance(cluster.store.writes[0][0], GroupSaved)
    cluster.release()
    assert [await sync for sync in syncs] == [b"\0", b"\1"]


async def test_heartbeats_and_idle_groups_write_nothing_and_wake_nobody(cluster: Cluster) -> None:
    joined = await cluster.member()
    cluster.store.writes.clear()
    for _ in range(20):
        await cluster.clock.advance(3_000)
        assert await cluster.groups.heartbeat("g", 1, joined.member_id, None) is None
    assert cluster.store.writes == []
    assert cluster.clock.sleeping() == 1, "one sleeper for all deadlines"


async def test_nothing_to_watch_means_nobody_sleeps(cluster: Cluster) -> None:
    await settle()
    assert cluster.clock.sleeping() == 0
    joining = cluster.join(member_id_required=True)
    assert (await joining).refusal is Refusal.MEMBER_ID_REQUIRED
    await settle()
    assert cluster.clock.sleeping() == 1
    await cluster.clock.advance(10_000)
    assert await cluster.state() == "Dead", "it was never more than an id handed out"
    assert cluster.clock.sleeping() == 0
    assert cluster.store.writes == []


async def test_sessions_end_by_the_clock(cluster: Cluster) -> None:
    await cluster.member()
    await cluster.clock.advance(9_999)
    assert await cluster.state() == "Stable"
    await cluster.clock.advance(1)
    assert await cluster.state() == "Empty"


async def test_a_later_group_with_an_earlier_deadline_is_watched(cluster: Cluster) -> None:
    await cluster.member()
    await settle()
    pending = cluster.join(group_id="h", member_id_required=True, session_timeout_ms=6_000)
    await pending
    await cluster.clock.advance(6_000)
    assert await cluster.state("h") == "Dead"
    assert await cluster.state("g") == "Stable"


async def test_after_a_restart_members_go_on_where_they_were(cluster: Cluster) -> None:
    joined = await cluster.member()
    await cluster.commit(17, 1, joined.member_id)
    await cluster.restart()
    assert await cluster.groups.heartbeat("g", 1, joined.member_id, None) is None
    assert await cluster.sync(joined.member_id, 1, {}) == b"all"
    assert await cluster.committed() == [17]
    await cluster.clock.advance(9_999)
    assert await cluster.state() == "Stable"
    await cluster.clock.advance(1)
    assert await cluster.state() == "Empty"
    again = cluster.join()
    await cluster.clock.advance(3_000)
    assert (await again).generation_id == 3


async def test_a_disconnect_while_joining_leaves_the_member_to_its_timeouts(cluster: Cluster) -> None:
    leaving, staying = cluster.join(), cluster.join()
    await settle()
    leaving.cancel()
    await cluster.clock.advance(6_000)
    joined = await staying
    assert len((await cluster.groups.describe_groups(["g"]))[0].members) == 2
    await cluster.clock.advance(10_000)
    assert len((await cluster.groups.describe_groups(["g"]))[0].members) <= 1
    assert joined.generation_id == 1


async def test_a_failed_write_sends_who_waits_to_join_anew(cluster: Cluster) -> None:
    joined = await cluster.member()
    parked = cluster.join()
    await settle()
    assert not parked.done()
    cluster.store.fail_before = 1
    with pytest.raises(MetadataUnavailable):
        await cluster.commit(1, 1, joined.member_id)
    await settle()
    assert (await parked).refusal is Refusal.NOT_COORDINATOR
    assert await cluster.state() == "Stable"
    assert await cluster.groups.heartbeat("g", 1, joined.member_id, None) is None
    assert await cluster.committed() == []


async def test_who_asks_while_a_write_fails_is_answered_too(cluster: Cluster) -> None:
    cluster.hold()
    cluster.store.fail_before = 1
    committing = asyncio.create_task(cluster.commit(1))
    await settle()
    joining = cluster.join("a-member-of-before")
    syncing = asyncio.create_task(
        cluster.groups.sync_group(SyncGroup("g", 1, "a-member-of-before", None, None, None, ()))
    )
    await settle()
    cluster.release()
    with pytest.raises(MetadataUnavailable):
        await committing
    assert (await asyncio.wait_for(joining, 5)).refusal is Refusal.UNKNOWN_MEMBER_ID
    assert (await asyncio.wait_for(syncing, 5)).refusal is Refusal.UNKNOWN_MEMBER_ID


async def test_a_commit_whose_write_failed_after_its_effect_is_seen(cluster: Cluster) -> None:
    cluster.store.fail_after = 1
    with pytest.raises(MetadataUnavailable):
        await cluster.commit(5)
    await settle()
    assert await cluster.committed() == [5]


async def test_a_fetch_sees_every_commit_that_was_answered_and_waits_for_one_under_way(cluster: Cluster) -> None:
    await cluster.commit(1)
    cluster.hold()
    committing = asyncio.create_task(cluster.commit(2))
    await settle()
    fetching = asyncio.create_task(cluster.committed())
    await settle()
    assert not fetching.done()
    cluster.release()
    assert await fetching == [2]
    assert (await committing).refusal is None


async def test_stopping_answers_everybody(cluster: Cluster) -> None:
    parked = cluster.join()
    await settle()
    await cluster.groups.stop()
    assert (await parked).refusal is Refusal.NOT_COORDINATOR
    with pytest.raises(MetadataUnavailable):
        await cluster.join()


# --- offsets ----------------------------------------------------------------------------------------------


async def test_a_commit_without_a_generation_makes_a_group(cluster: Cluster) -> None:
    assert await cluster.commit(3) == OffsetCommitAnswer(None, (None,))
    (group,) = await cluster.groups.list_groups()
    assert (group.group_id, group.state, group.protocol_type, group.members) == ("g", "Empty", "", ())
    await cluster.restart()
    assert await cluster.committed() == [3]


async def test_a_commit_with_a_generation_wants_its_group(cluster: Cluster) -> None:
    assert (await cluster.commit(3, 4, "m")).refusal is Refusal.GROUP_ID_NOT_FOUND
    assert await cluster.state() == "Dead"


async def test_each_offset_is_refused_on_its_own(cluster: Cluster) -> None:
    offsets = (
        OffsetRecord(TOPIC.topic_id, 0, 1, -1, "x" * 4_096, 0),
        OffsetRecord(TOPIC.topic_id, 1, 1, -1, "x" * 4_097, 0),
        OffsetRecord(TOPIC.topic_id, 2, 1, -1, "ä" * 2_049, 0),
        OffsetRecord(TOPIC.topic_id, 4, 1, -1, "", 0),
        OffsetRecord(b"?" * 16, 0, 1, -1, "", 0),
    )
    answer = await cluster.groups.commit_offsets(OffsetCommit("g", -1, "", None, offsets))
    large, unknown = Refusal.OFFSET_METADATA_TOO_LARGE, Refusal.UNKNOWN_TOPIC_OR_PARTITION
    assert answer.offsets == (None, large, large, unknown, unknown)
    kept = await cluster.groups.fetch_offsets("g", [(TOPIC.topic_id, partition) for partition in range(4)])
    assert [(record.partition, record.commit_ms) for record in kept] == [(0, STARTED_MS)]


async def test_a_commit_that_keeps_nothing_makes_no_group(cluster: Cluster) -> None:
    await cluster.commit(1, partition=99)
    assert await cluster.groups.list_groups() == []


async def test_offsets_of_a_deleted_topic_are_forgotten(cluster: Cluster) -> None:
    await cluster.commit(1)
    cluster.groups.forget_topic(TOPIC.topic_id)
    assert await cluster.committed() == []


async def test_offsets_are_kept_while_the_group_lives_and_seven_days_longer(cluster: Cluster) -> None:
    joined = await cluster.member()
    await cluster.commit(9, 1, joined.member_id)
    for _ in range(30 * 24 * 600):
        cluster.clock.elapsed_ms += 6_000
        await cluster.groups.heartbeat("g", 1, joined.member_id, None)
        if cluster.clock.elapsed_ms > 8 * DAY_MS:
            break
    assert await cluster.committed() == [9]
    await cluster.groups.leave_group("g", [LeavingMember(joined.member_id, None)])
    await cluster.clock.advance(7 * DAY_MS - 1)
    assert await cluster.committed() == [9]
    await cluster.clock.advance(2)
    assert await cluster.committed() == []
    assert await cluster.state() == "Dead"
    await cluster.restart()
    assert await cluster.groups.list_groups() == []


async def test_offsets_of_a_simple_group_expire_seven_days_after_each_commit(cluster: Cluster) -> None:
    await cluster.commit(1, partition=0)
    await cluster.clock.advance(DAY_MS)
    await cluster.commit(2, partition=1)
    await cluster.clock.advance(6 * DAY_MS + 1)
    assert await cluster.committed() == [2]
    await cluster.restart()
    assert await cluster.committed() == [2]
    await cluster.clock.advance(DAY_MS)
    assert await cluster.state() == "Dead"


async def test_many_offsets_expire_some_at_a_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "OFFSETS_EXPIRED_PER_COMMAND", 1)
    for partition in range(4):
        await cluster.commit(1, partition=partition)
    cluster.store.writes.clear()
    await cluster.clock.advance(7 * DAY_MS + 10)
    assert len(cluster.store.writes) == 4
    assert await cluster.state() == "Dead"


async def test_an_empty_group_without_offsets_is_forgotten(cluster: Cluster) -> None:
    joined = await cluster.member()
    await cluster.groups.leave_group("g", [LeavingMember(joined.member_id, None)])
    await cluster.clock.advance(EMPTY_GROUP_KEPT_MS - 1)
    assert await cluster.state() == "Empty"
    await cluster.clock.advance(2)
    assert await cluster.state() == "Dead"
    await cluster.restart()
    assert await cluster.groups.list_groups() == []


# --- the rest ---------------------------------------------------------------------------------------------


async def test_requests_to_groups_that_do_not_exist(cluster: Cluster) -> None:
    assert (await cluster.join("m")).refusal is Refusal.UNKNOWN_MEMBER_ID
    assert (await cluster.groups.sync_group(SyncGroup("g", 1, "m", None, None, None, ()))).refusal is (
        Refusal.UNKNOWN_MEMBER_ID
    )
    assert await cluster.groups.heartbeat("g", 1, "m", None) is Refusal.UNKNOWN_MEMBER_ID
    leaving = [LeavingMember("m", None)] * 2
    assert await cluster.groups.leave_group("g", leaving) == [Refusal.UNKNOWN_MEMBER_ID] * 2
    assert await cluster.delete("g") is Refusal.GROUP_ID_NOT_FOUND
    assert await cluster.groups.fetch_offsets("g", None) == []
    assert await cluster.groups.list_groups() == []


async def test_joins_are_checked_before_a_group_is_made(cluster: Cluster) -> None:
    assert (await cluster.join(group_id="")).refusal is Refusal.INVALID_GROUP_ID
    assert (await cluster.join(session_timeout_ms=1)).refusal is Refusal.INVALID_SESSION_TIMEOUT
    assert (await cluster.join(protocols=())).refusal is Refusal.INCONSISTENT_GROUP_PROTOCOL
    assert await cluster.groups.list_groups() == []


async def test_member_ids_carry_the_clients_name(cluster: Cluster) -> None:
    assert (await cluster.join(member_id_required=True)).member_id.startswith("shipper-")
    joining = cluster.join(group_id="h", group_instance_id="pod-1")
    await cluster.clock.advance(3_000)
    assert (await joining).member_id.startswith("pod-1-")
    long = (await cluster.join(client_id="c" * 30_000, member_id_required=True)).member_id
    assert len(long) == 255 + 1 + 36


async def test_an_empty_group_can_be_deleted_with_its_offsets(cluster: Cluster) -> None:
    joined = await cluster.member()
    await cluster.commit(1, 1, joined.member_id)
    assert await cluster.delete("g") is Refusal.NON_EMPTY_GROUP
    await cluster.groups.leave_group("g", [LeavingMember(joined.member_id, None)])
    assert await cluster.delete("g") is None
    await cluster.restart()
    assert await cluster.state() == "Dead"
    assert await cluster.committed() == []


async def test_the_number_of_groups_is_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "GROUPS_MAX", 1)
    await cluster.commit(1)
    assert (await cluster.commit(1, group_id="h")).refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert (await cluster.join(group_id="h")).refusal is Refusal.GROUP_MAX_SIZE_REACHED


async def test_the_bytes_of_all_groups_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "GROUPS_BYTES_MAX", 1_000)
    joined = await cluster.member()
    big = (("range", bytes(990)),)
    assert (await cluster.join(protocols=big)).refusal is Refusal.GROUP_MAX_SIZE_REACHED
    await cluster.groups.leave_group("g", [LeavingMember(joined.member_id, None)])
    assert (await cluster.join(protocols=big, member_id_required=True)).refusal is Refusal.MEMBER_ID_REQUIRED


async def test_committed_offsets_count_too_and_can_always_be_renewed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_module, "GROUPS_BYTES_MAX", 2 * OFFSET_BYTES + 100)
    assert (await cluster.commit(1, partition=0)).offsets == (None,)
    assert (await cluster.commit(1, partition=1)).offsets == (None,)
    assert (await cluster.commit(1, partition=2)).refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert (await cluster.commit(1, group_id="h")).refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert [group.group_id for group in await cluster.groups.list_groups()] == ["g"]
    assert (await cluster.commit(2, partition=0)).offsets == (None,)
    await cluster.restart()
    assert (await cluster.commit(1, group_id="h")).refusal is Refusal.GROUP_MAX_SIZE_REACHED
    assert await cluster.delete("g") is None
    assert (await cluster.commit(1, group_id="h")).offsets == (None,)


def test_the_bytes_of_offsets_follow_every_change() -> None:
    topic_id, other = b"t" * 16, b"o" * 16
    kept = CommittedOffsets([OffsetRecord(topic_id, 0, 1, -1, "ab", 1), OffsetRecord(other, 0, 1, -1, "", 1)])
    assert (len(kept), kept.held_bytes) == (2, 2 * OFFSET_BYTES + 2)
    longer = [OffsetRecord(topic_id, 0, 2, -1, "abcd", 1), OffsetRecord(topic_id, 1, 2, -1, "", 1)]
    assert kept.growth_bytes(longer) == OFFSET_BYTES + 2
    kept.put(longer)
    assert (len(kept), kept.held_bytes) == (3, 3 * OFFSET_BYTES + 4)
    kept.drop([(topic_id, 0)])
    kept.forget_topic(other)
    assert (len(kept), kept.held_bytes) == (1, OFFSET_BYTES)


async def test_lags_are_measured_for_whole_groups_up_to_a_bound(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.high_watermarks = {(TOPIC.topic_id, partition): 1 for partition in range(2)}
    for group_id, partition in (("a", 0), ("b", 0), ("b", 1), ("c", 1)):
        await cluster.commit(1, group_id=group_id, partition=partition)
    monkeypatch.setattr(group_lag_module, "LAGS_MAX", 2)
    assert [lag.group_id for lag in await cluster.groups.group_lags()] == ["a", "c"]


async def test_lag_is_counted_in_records_and_seconds(cluster: Cluster) -> None:
    cluster.high_watermarks = {(TOPIC.topic_id, 0): 100, (TOPIC.topic_id, 1): 7}
    cluster.extents = [Extent(TOPIC.topic_id, 0, 50, 99, "s", 0, 1, 0, STARTED_MS - 4_000)]
    cluster.log_start_offset = 50
    await cluster.commit(10, partition=0)
    await cluster.commit(7, partition=1)
    await cluster.commit(1, partition=2)
    lags = {lag.partition: (lag.topic, lag.records, lag.seconds) for lag in await cluster.groups.group_lags()}
    assert lags == {0: ("logs", 50, 4.0), 1: ("logs", 0, 0.0)}


async def test_deadlines_that_cannot_be_decided_are_tried_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cluster.member()
    run: Callable[..., object] = cluster.pipeline.run

    async def refuse(_: object) -> None:
        raise MetadataUnavailable("planted")

    monkeypatch.setattr(cluster.pipeline, "run", refuse)
    await cluster.clock.advance(10_000)
    monkeypatch.setattr(cluster.pipeline, "run", run)
    assert await cluster.state() == "Stable"
    await cluster.clock.advance(1_000)
    assert await cluster.state() == "Empty"


def test_deadlines_only_move_earlier_and_stale_ones_do_not_pile_up() -> None:
    deadlines = Deadlines()
    for deadline_ms in range(10 * STALE_ENTRIES_MAX, 0, -1):
        deadlines.set("a", deadline_ms)
    deadlines.set("a", 5)
    deadlines.set("b", 3)
    assert len(deadlines) == 2
    assert len(deadlines._heap) <= STALE_ENTRIES_MAX + 5
    assert deadlines.next_ms() == 1
    assert deadlines.due(2, 10) == ["a"]
    assert deadlines.due(2, 10) == []
    deadlines.set("a", 4)
    assert deadlines.due(9, 1) == ["b"]
    assert deadlines.due(9, 1) == ["a"]
    assert deadlines.next_ms() is None
