"""The group coordinator: runs the groups' state machines inside the metadata service's command pipeline.

Every request is decided by :mod:`metadata.groups` between two writes of the pipeline, so no decision stands on
state that may still be lost. What must survive (the record of a stable or empty group, committed offsets) is written
in the same transaction as everything else that was decided then, and waiting joins and syncs are answered once that
is durable. A heartbeat writes nothing. After a restart or a failed write the groups are those that were durable,
with their generation and members: consumers go on without a rebalance.

All deadlines of all groups sit in one heap, watched by one task that sleeps until the earliest.

Source: Kafka's GroupCoordinatorService, GroupMetadataManager and OffsetMetadataManager (3.9, 4.x). Left out: the
expiry of single offsets of a group that has members (Kafka does it for topics they no longer subscribe to).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from metadata.deadline_watch import DeadlineWatch
from metadata.group_admission import check_join
from metadata.group_lag import FindExtents, measure_lags
from metadata.group_model import (
    GroupDescription,
    GroupLag,
    JoinGroup,
    JoinGroupAnswer,
    LeavingMember,
    OffsetCommit,
    OffsetCommitAnswer,
    OffsetDeleteAnswer,
    OffsetRecord,
    SyncGroup,
    SyncGroupAnswer,
)
from metadata.group_offsets import CommittedOffsets
from metadata.group_roster import protocols_bytes
from metadata.group_states import Effects, GroupLimits, GroupState
from metadata.group_subscriptions import refuse_offset_deletion, subscribed_topics
from metadata.groups import Group
from metadata.model import Refusal, Topic, TopicId
from metadata.parked_calls import ParkedCalls
from metadata.pipeline import CommandPipeline, Transaction
from metadata.store.port import GroupDropped, GroupSaved, OffsetsDropped, OffsetsSaved, StoreSnapshot
from runtime.clock import Clock, Entropy
from runtime.settings import GroupSettings
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.groups")

GROUPS_MAX = 20_000
"""Groups at a time; ten times what large Kafka clusters have. Anybody may name a new one, and an empty one costs
about 2 KiB, so this is 40 MB."""
GROUPS_BYTES_MAX = 512 * 1024 * 1024
"""Names, protocol metadata and assignments of all groups' members, and their committed offsets: 500,000 members with
1 KiB each, or 1.5 million offsets."""
EMPTY_GROUP_KEPT_MS = 600_000
"""An empty group without offsets is forgotten after this (Kafka's offsets.retention.check.interval.ms)."""
CLIENT_ID_LENGTH_MAX = 255
"""Of the client's name in a member id."""
GROUPS_EXPIRED_PER_COMMAND = 100
OFFSETS_EXPIRED_PER_COMMAND = 1_000
"""They bound how long the loop and one transaction are busy with expiry."""


@dataclass(slots=True)
class _Entry:
    """A group, its offsets, and what the driver knows about it. Times here are wall clock."""

    group: Group
    offsets: CommittedOffsets
    state: GroupState
    state_changed_ms: int
    durable: bool = False
    """The store may have something of it."""
    held_bytes: int = 0
    check_ms: int | None = None
    """When this empty group or some of its offsets may have to go, at the earliest."""


class GroupCoordinator:
    """The group calls of the metadata service; one event loop.

    Parked calls (join, sync) may wait as long as the rebalance timeout. Cancelling one leaves the member as it is:
    as on Kafka, its session or the rebalance timeout decides. Every call raises
    :class:`metadata.model.MetadataUnavailable` when the pipeline does, with an unknown outcome.
    """

    def __init__(
        self,
        pipeline: CommandPipeline,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        settings: GroupSettings,
        topics: Callable[[TopicId], Topic | None],
        high_watermark: Callable[[TopicId, int], int | None],
        find_extents: FindExtents,
    ) -> None:
        """``topics`` and ``high_watermark`` answer from memory, None for what does not exist."""
        self._pipeline = pipeline
        self._clock = clock
        self._entropy = entropy
        self._settings = settings
        self._topics = topics
        self._high_watermark = high_watermark
        self._find_extents = find_extents
        self._limits = GroupLimits(
            settings.initial_rebalance_delay_ms,
            settings.session_timeout_ms_min,
            settings.session_timeout_ms_max,
            settings.members_max,
        )
        self._entries: dict[str, _Entry] = {}
        self._held_bytes = 0
        self._parked = ParkedCalls(pipeline)
        self._deadlines = DeadlineWatch("group-deadlines", clock, supervisor, self._due, GROUPS_EXPIRED_PER_COMMAND)
        pipeline.on_reload(self._load)

    async def start(self) -> None:
        """Begin to watch deadlines; the pipeline has loaded the groups before."""
        self._deadlines.start()

    async def stop(self) -> None:
        """Send everybody who waits to look for another coordinator. The supervisor ends the task."""
        self._parked.stop()

    # --- requests ---------------------------------------------------------------------------------------

    async def join_group(self, join: JoinGroup) -> JoinGroupAnswer:
        refusal = check_join(join, self._limits)
        if refusal is not None:
            return JoinGroupAnswer(refusal, join.member_id)
        return await self._parked.join(partial(self._join, join))

    async def sync_group(self, sync: SyncGroup) -> SyncGroupAnswer:
        return await self._parked.sync(partial(self._sync, sync))

    async def heartbeat(
        self, group_id: str, generation_id: int, member_id: str, group_instance_id: str | None
    ) -> Refusal | None:
        def decide(_: Transaction) -> Refusal | None:
            entry = self._entries.get(group_id)
            if entry is None:
                return Refusal.UNKNOWN_MEMBER_ID
            return entry.group.heartbeat(generation_id, member_id, group_instance_id, self._deadlines.now_ms())

        return await self._pipeline.run(decide)

    async def leave_group(self, group_id: str, members: Sequence[LeavingMember]) -> list[Refusal | None]:
        def decide(transaction: Transaction) -> list[Refusal | None]:
            entry = self._entries.get(group_id)
            if entry is None:
                return [Refusal.UNKNOWN_MEMBER_ID] * len(members)
            refusals, effects = entry.group.leave(members, self._deadlines.now_ms())
            self._carry_out(entry, effects, transaction)
            return refusals

        return await self._pipeline.run(decide)

    async def commit_offsets(self, commit: OffsetCommit) -> OffsetCommitAnswer:
        return await self._pipeline.run(partial(self._commit, commit))

    async def fetch_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]] | None
    ) -> list[OffsetRecord]:
        def decide(_: Transaction) -> list[OffsetRecord]:
            entry = self._entries.get(group_id)
            return [] if entry is None else entry.offsets.find(partitions)

        return await self._pipeline.run(decide)

    async def describe_groups(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        def decide(_: Transaction) -> list[GroupDescription]:
            found = ((group_id, self._entries.get(group_id)) for group_id in group_ids)
            return [
                GroupDescription(group_id, GroupState.DEAD.value, "", "", ())
                if entry is None
                else entry.group.describe()
                for group_id, entry in found
            ]

        return await self._pipeline.run(decide)

    async def list_groups(self) -> list[GroupDescription]:
        return await self._pipeline.run(
            lambda _: [entry.group.describe(with_members=False) for entry in self._entries.values()]
        )

    def decide_delete(self, group_id: str, transaction: Transaction) -> Refusal | None:
        """Delete a group that is empty, in the ``decide`` of a command."""
        entry = self._entries.get(group_id)
        if entry is None:
            return Refusal.GROUP_ID_NOT_FOUND
        refusal = entry.group.kill()
        if refusal is None:
            self._drop(entry, transaction)
        return refusal

    async def group_lags(self) -> list[GroupLag]:
        """Of all groups in the order of their ids, as :func:`metadata.group_lag.measure_lags` does: one query for each
        partition that a group has not read to its end."""
        group_ids = sorted(await self._pipeline.run(lambda _: list(self._entries)))

        def offsets_of(group_id: str) -> CommittedOffsets | None:
            entry = self._entries.get(group_id)
            return None if entry is None else entry.offsets

        return await measure_lags(
            group_ids, offsets_of, self._topics, self._high_watermark, self._find_extents, self._clock.now_ms
        )

    def forget_topic(self, topic_id: TopicId) -> None:
        """The topic is being deleted, and its offsets with it: call it in the ``decide`` that deletes it."""
        for entry in self._entries.values():
            entry.offsets.forget_topic(topic_id)
            self._count_bytes(entry)

    # --- decisions --------------------------------------------------------------------------------------

    def _join(self, join: JoinGroup, ticket: int, transaction: Transaction) -> None:
        entry = self._entries.get(join.group_id)
        refusal = None
        is_member = entry is not None and join.member_id in entry.group.roster.members
        if not is_member and self._held_bytes + protocols_bytes(join.protocols) > GROUPS_BYTES_MAX:
            refusal = Refusal.GROUP_MAX_SIZE_REACHED
        elif entry is None and join.member_id:
            refusal = Refusal.UNKNOWN_MEMBER_ID
        elif entry is None:
            entry = self._create(join.group_id)
            refusal = Refusal.GROUP_MAX_SIZE_REACHED if entry is None else None
        if entry is None or refusal is not None:
            answers = Effects(joins=[(ticket, JoinGroupAnswer(refusal, join.member_id))])
            transaction.after_durable(partial(self._parked.answer, answers))
            return
        effects = entry.group.join(join, ticket, self._member_id(join), self._deadlines.now_ms())
        self._carry_out(entry, effects, transaction)

    def _sync(self, sync: SyncGroup, ticket: int, transaction: Transaction) -> None:
        entry = self._entries.get(sync.group_id)
        if entry is None:
            answers = Effects(syncs=[(ticket, SyncGroupAnswer(Refusal.UNKNOWN_MEMBER_ID))])
            transaction.after_durable(partial(self._parked.answer, answers))
            return
        self._carry_out(entry, entry.group.sync(sync, ticket, self._deadlines.now_ms()), transaction)

    def _commit(self, commit: OffsetCommit, transaction: Transaction) -> OffsetCommitAnswer:
        entry = self._entries.get(commit.group_id)
        refusal: Refusal | None = None
        if entry is not None:
            refusal = entry.group.check_commit(
                commit.generation_id, commit.member_id, commit.group_instance_id, self._deadlines.now_ms()
            )
        elif commit.generation_id >= 0:
            refusal = Refusal.GROUP_ID_NOT_FOUND
        if refusal is not None:
            return OffsetCommitAnswer(refusal)
        refusals = tuple(self._refuse_offset(offset) for offset in commit.offsets)
        now_ms = self._clock.now_ms()
        accepted = tuple(
            msgspec.structs.replace(offset, commit_ms=now_ms)
            for offset, refused in zip(commit.offsets, refusals, strict=True)
            if refused is None
        )
        if accepted:
            growth_bytes = (CommittedOffsets() if entry is None else entry.offsets).growth_bytes(accepted)
            if growth_bytes > 0 and self._held_bytes + growth_bytes > GROUPS_BYTES_MAX:
                return OffsetCommitAnswer(Refusal.GROUP_MAX_SIZE_REACHED)
            # Without a generation the group only keeps offsets (a "simple" consumer's, or an administrator's).
            entry = entry or self._create(commit.group_id)
            if entry is None:
                return OffsetCommitAnswer(Refusal.GROUP_MAX_SIZE_REACHED)
            entry.offsets.put(accepted)
            self._count_bytes(entry)
            entry.durable = True
            transaction.change(OffsetsSaved(commit.group_id, accepted))
            self._arm(entry)
        return OffsetCommitAnswer(None, refusals)

    def decide_delete_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]], transaction: Transaction
    ) -> OffsetDeleteAnswer:
        """Delete offsets that no member needs, in the ``decide`` of a command."""
        entry = self._entries.get(group_id)
        refusal = Refusal.GROUP_ID_NOT_FOUND if entry is None else refuse_offset_deletion(entry.group)
        if entry is None or refusal is not None:
            return OffsetDeleteAnswer(refusal)
        subscribed = subscribed_topics(entry.group)
        refusals = tuple(self._refuse_deletion(*key, subscribed) for key in partitions)
        free = dict.fromkeys(key for key, refused in zip(partitions, refusals, strict=True) if refused is None)
        deleted = tuple((record.topic_id, record.partition) for record in entry.offsets.find(list(free)))
        if deleted:
            entry.offsets.drop(deleted)
            entry.check_ms = None
            self._count_bytes(entry)
            transaction.change(OffsetsDropped(group_id, deleted))
            self._arm(entry)
        return OffsetDeleteAnswer(None, refusals)

    def _refuse_deletion(self, topic_id: TopicId, partition: int, subscribed: frozenset[str] | None) -> Refusal | None:
        topic = self._topics(topic_id)
        if topic is None or not 0 <= partition < topic.partition_count:
            return Refusal.UNKNOWN_TOPIC_OR_PARTITION
        if subscribed is None or topic.name in subscribed:
            return Refusal.GROUP_SUBSCRIBED_TO_TOPIC
        return None

    def _refuse_offset(self, offset: OffsetRecord) -> Refusal | None:
        topic = self._topics(offset.topic_id)
        if topic is None or not 0 <= offset.partition < topic.partition_count:
            return Refusal.UNKNOWN_TOPIC_OR_PARTITION
        if len(offset.metadata.encode()) > self._settings.offset_metadata_bytes_max:
            return Refusal.OFFSET_METADATA_TOO_LARGE
        return None

    def _member_id(self, join: JoinGroup) -> str:
        name = join.client_id if join.group_instance_id is None else join.group_instance_id
        return f"{name[:CLIENT_ID_LENGTH_MAX]}-{uuid.UUID(bytes=self._entropy.uuid_bytes())}"

    def _create(self, group_id: str) -> _Entry | None:
        """A new empty group, None when there are too many."""
        if len(self._entries) >= GROUPS_MAX:
            return None
        entry = _Entry(Group(group_id, self._limits), CommittedOffsets(), GroupState.EMPTY, self._clock.now_ms())
        self._entries[group_id] = entry
        return entry

    def _drop(self, entry: _Entry, transaction: Transaction) -> None:
        group_id = entry.group.group_id
        del self._entries[group_id]
        self._held_bytes -= entry.held_bytes
        if entry.durable:
            transaction.change(GroupDropped(group_id))

    def _carry_out(self, entry: _Entry, effects: Effects, transaction: Transaction) -> None:
        """Persist what must be, answer what can be once that is durable, and watch the group's next deadline."""
        group = entry.group
        if entry.state is not group.state:
            entry.state, entry.state_changed_ms = group.state, self._clock.now_ms()
            entry.check_ms = None
        if effects.persist:
            transaction.change(GroupSaved(group.record(entry.state_changed_ms)))
            transaction.after_durable(partial(_log_group, group.describe(with_members=False), group.generation_id))
            entry.durable = True
        if effects.joins or effects.syncs:
            transaction.after_durable(partial(self._parked.answer, effects))
        self._count_bytes(entry)
        if group.state is GroupState.EMPTY and not (group.pending or entry.durable):
            self._drop(entry, transaction)
        else:
            self._arm(entry)

    def _load(self, snapshot: StoreSnapshot) -> None:
        """The groups are those that are durable. Who waited in one that is not must join anew."""
        self._parked.answer_all(Refusal.NOT_COORDINATOR)
        self._deadlines.clear()
        now_ms = self._deadlines.now_ms()
        self._entries = {}
        for record in snapshot.groups:
            group = Group.restore(record, self._limits, now_ms)
            offsets = CommittedOffsets(snapshot.offsets.get(record.group_id, ()))
            self._entries[record.group_id] = _Entry(group, offsets, group.state, record.state_changed_ms, True)
        for group_id, kept in snapshot.offsets.items():
            if group_id not in self._entries:
                group = Group(group_id, self._limits)
                self._entries[group_id] = _Entry(group, CommittedOffsets(kept), group.state, 0, True)
        self._held_bytes = 0
        for entry in self._entries.values():
            self._count_bytes(entry)
            self._arm(entry)

    def _count_bytes(self, entry: _Entry) -> None:
        """The group or its offsets may have changed in size."""
        held_bytes = entry.group.held_bytes + entry.offsets.held_bytes
        self._held_bytes += held_bytes - entry.held_bytes
        entry.held_bytes = held_bytes

    # --- time -------------------------------------------------------------------------------------------

    def _arm(self, entry: _Entry) -> None:
        """Watch the group's next deadline, and when it is empty, the end of its retention."""
        group = entry.group
        wake_ms = group.wake_ms
        if group.state is GroupState.EMPTY and not group.pending:
            if entry.check_ms is None:
                entry.check_ms = self._retained_until_ms(entry)
            check_ms = self._deadlines.now_ms() + max(entry.check_ms - self._clock.now_ms(), 0)
            wake_ms = check_ms if wake_ms is None else min(wake_ms, check_ms)
        if wake_ms is not None:
            self._deadlines.set(group.group_id, wake_ms)

    def _retained_until_ms(self, entry: _Entry) -> int:
        """When (wall clock) the empty group's oldest offset, or without offsets the group, has to go."""
        oldest_ms = entry.offsets.oldest_commit_ms()
        if oldest_ms is None:
            return entry.state_changed_ms + EMPTY_GROUP_KEPT_MS
        return max(oldest_ms, entry.state_changed_ms) + self._settings.offsets_retention_ms

    async def _due(self, group_ids: Sequence[str]) -> None:
        await self._pipeline.run(partial(self._expire, group_ids))

    def _expire(self, group_ids: Sequence[str], transaction: Transaction) -> None:
        """The deadlines of these groups have come."""
        now_ms = self._deadlines.now_ms()
        for group_id in group_ids:
            entry = self._entries.get(group_id)
            if entry is None:
                continue
            effects = entry.group.expire(now_ms)
            entry.check_ms = None
            if entry.group.state is GroupState.EMPTY and not entry.group.pending and not effects.persist:
                self._end_retention(entry, transaction)
            if group_id in self._entries:
                self._carry_out(entry, effects, transaction)

    def _end_retention(self, entry: _Entry, transaction: Transaction) -> None:
        """Forget offsets that are due, some at a time, and then the group."""
        now_ms = self._clock.now_ms()
        if self._retained_until_ms(entry) > now_ms:
            return
        expired = entry.offsets.expired(now_ms - self._settings.offsets_retention_ms, OFFSETS_EXPIRED_PER_COMMAND)
        if expired:
            entry.offsets.drop(expired)
            self._count_bytes(entry)
            transaction.change(OffsetsDropped(entry.group.group_id, expired))
        if not entry.offsets:
            self._drop(entry, transaction)


def _log_group(group: GroupDescription, generation_id: int) -> None:
    _log.info("group_saved", group=group.group_id, state=group.state, generation=generation_id)
