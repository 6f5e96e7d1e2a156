"""The metadata service: decides through :mod:`metadata.state`, writes through the pipeline, shows what is durable.

It is the in-process :class:`metadata.client.MetadataClient`; a server adds a transport, nothing else.

Calls that create, delete, alter or register take a ``call_id`` besides, from a transport: the name of the call, the
same in each repetition and in no other call. A repetition gets the first answer, whichever process leads by then, for
ten minutes. All other calls are safe to repeat without.

Once the store says that another process leads, the task ``metadata-pipeline`` fails with
:class:`metadata.store.port.Deposed` (the supervisor's ``on_failure`` hears of it), and every call raises
:class:`metadata.model.MetadataUnavailable`. The owner then calls :meth:`MetadataService.stop`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog

from metadata.agent_model import AgentDescription, AgentHeartbeat, AgentInfo, AgentRegistered, AgentRegistration
from metadata.agent_watch import AgentWatch
from metadata.cleaning_jobs import CleaningJobs
from metadata.client import MetadataListener
from metadata.compaction import CLEANED_LEVEL, ExtentSwap
from metadata.compaction_jobs import CompactionJobs
from metadata.coordinator import GroupCoordinator
from metadata.garbage import DeadSegments, Orphans, find_orphans
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
from metadata.job_model import CLEAN_PARTITION, COMPACT_SEGMENTS, JobLease, SweptObject
from metadata.job_service import JobService
from metadata.journal.journal import Journal
from metadata.lifecycle import Purger, SegmentCounts, SteadyTime
from metadata.listeners import Listeners, MetadataSubscription
from metadata.metrics import MetadataMetrics
from metadata.model import (
    EXTENTS_FOUND_MAX,
    DeletedTopic,
    Extent,
    ExtentsFound,
    ExtentsQuery,
    LogStart,
    MetadataUnavailable,
    PartitionOffsets,
    ProducerDescription,
    ProducerIdGranted,
    RecordsDeleted,
    RecordsDeletion,
    Refusal,
    Refused,
    SegmentCommit,
    SegmentCommitted,
    Topic,
    TopicId,
    TopicsChanged,
)
from metadata.partitions import CommitOutcome
from metadata.pipeline import CommandPipeline, Transaction
from metadata.retention_service import Retention
from metadata.state import State
from metadata.store.port import LogStartMoved, MetadataStore, StoreSnapshot, StoreUnavailable
from metadata.swaps import RangeSwap, match_swap
from metadata.topic_configs import ConfigChanges, changed_configs, validate_topic_configs
from metadata.visible import VisibleIndex
from runtime.clock import Clock, Entropy
from runtime.settings import AgentsSettings, CompactionSettings, GroupSettings, LifecycleSettings, TopicSettings
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata")

T = TypeVar("T")

EXPIRY_SECONDS = 60.0
"""Pause between two looks for idle producers, agents that are gone, and old answers."""
EXTENTS_SUMMED_MAX = 10_000
"""Rows of the index read at once to tell how large a partition is."""
PRODUCERS_PER_COMMAND = 1_000
"""Producer states forgotten in one command: bounds how long the loop and the write are busy."""
_NOTHING = StoreSnapshot("", (), (), (), (), (), {}, (), {})


class MetadataService:
    """Implements :class:`metadata.client.MetadataClient`; owns the store from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        store: MetadataStore,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: MetadataMetrics,
        group_settings: GroupSettings,
        topic_settings: TopicSettings,
        agent_settings: AgentsSettings,
        lifecycle_settings: LifecycleSettings | None = None,
        compaction_settings: CompactionSettings | None = None,
        journal: Journal | None = None,
    ) -> None:
        lifecycle_settings = lifecycle_settings or LifecycleSettings()
        self._store = store
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._metrics = metrics
        self._topic_settings = topic_settings
        self._state = State(_NOTHING)
        self._visible = VisibleIndex(_NOTHING)
        self._swap_turn = asyncio.Lock()
        self._listeners = Listeners()
        self._pipeline = CommandPipeline(store, clock, metrics)
        self._pipeline.on_reload(self._load)
        self._agents = AgentWatch(
            self._pipeline, clock, supervisor, agent_settings, lambda: self._state, self._agents_changed
        )
        self._pipeline.on_reload(self._agents.load)
        self._groups = GroupCoordinator(
            self._pipeline,
            clock,
            entropy,
            supervisor,
            group_settings,
            self._decided_topic,
            self._high_watermark,
            self.find_extents,
        )
        self._time = SteadyTime(clock)
        self._undelete_ms = lifecycle_settings.undelete_ms
        self._purger = Purger(store, clock, self._time)
        self._counts = SegmentCounts(store, clock, lifecycle_settings.count_interval_ms, metrics)
        self._retention = Retention(
            store, self._pipeline, clock, lifecycle_settings, metrics, lambda: self._visible, self._expire_records
        )
        self._jobs = JobService(clock, lifecycle_settings.job_lease_ms, metrics)
        self._jobs.add(
            DeadSegments(
                store,
                self._pipeline,
                self._time,
                lifecycle_settings,
                metrics,
                lambda: self._jobs.holders(COMPACT_SEGMENTS) | self._jobs.holders(CLEAN_PARTITION),
            )
        )
        self._orphans = Orphans(
            self._pipeline, self._time, lifecycle_settings, lambda: self._state, clock.now_ms, metrics
        )
        self._jobs.add(self._orphans)
        compaction_settings = compaction_settings or CompactionSettings()
        self._jobs.add(CompactionJobs(store, clock, compaction_settings))
        self._jobs.add(CleaningJobs(lambda: self._visible.topics, self._high_watermark, clock, compaction_settings))
        metrics.topics.set_function(lambda: len(self._visible.topics))
        metrics.partitions.set_function(lambda: self._visible.partition_count)
        metrics.producers.set_function(lambda: self._state.producer_count)
        metrics.extents_cached.set_function(lambda: self._visible.extent_count)

    async def start(self) -> None:
        """Open the store, load the state and take calls.

        :raises StoreUnavailable: the store cannot be opened; the message names it.
        """
        cluster_id = base64.urlsafe_b64encode(self._entropy.uuid_bytes()).decode().rstrip("=")
        snapshot = await self._pipeline.start(self._supervisor, cluster_id)
        if self._journal is not None:
            is_empty = not (snapshot.topics or snapshot.agents or snapshot.counters or snapshot.groups)
            await self._journal.prepare(snapshot.cluster_id, is_empty)
            self._journal.start(self._supervisor, self._pipeline.between_writes)
            self._pipeline.on_written(self._journal.written)
            self._pipeline.on_reload(lambda _: self._journal_gap())
        await self._groups.start()
        self._agents.start()
        self._purger.start(self._supervisor)
        self._counts.start(self._supervisor)
        self._retention.start(self._supervisor)
        self._jobs.start(self._supervisor)
        self._supervisor.start("metadata-undelete", self._drop_hidden())
        self._supervisor.start("metadata-expiry", self._expire())
        _log.info("metadata_loaded", cluster_id=snapshot.cluster_id, topics=len(snapshot.topics))

    async def stop(self) -> None:
        """Finish what was decided and close the store. Idempotent."""
        await self._groups.stop()
        await self._pipeline.stop()
        await self._store.close()  # before the journal ends: a standby need not wait for the bucket
        if self._journal is not None:
            await self._journal.stop()

    @property
    def cluster_id(self) -> str:
        """Whose state this is; empty before the start."""
        return self._state.cluster_id

    def problem(self) -> str | None:
        """Why nothing can be committed now, None when all is well."""
        return self._pipeline.problem()

    def journal_state(self) -> str:
        """Whether the bucket alone would be enough to build the metadata anew, in words."""
        return "off" if self._journal is None else self._journal.state()

    def _journal_gap(self) -> None:
        if self._journal is not None:
            self._journal.gap()

    async def _run_once(self, call_id: str, kind: Any, decide: Callable[[Transaction], T]) -> T:
        """Run ``decide``, whose answer has the type ``kind``; a call that was answered before gets that answer."""

        def decide_once(transaction: Transaction) -> T:
            known = self._state.calls.answer(call_id)
            if known is not None:
                answer: T = msgspec.msgpack.decode(known, type=kind)
                return answer
            before = len(transaction.changes)
            answer = decide(transaction)
            if len(transaction.changes) > before:
                self._state.calls.remember(
                    call_id, msgspec.msgpack.encode(answer), self._clock.now_ms(), transaction.changes
                )
            return answer

        return await self._pipeline.run(decide_once if call_id else decide)

    # --- agents and producers ---------------------------------------------------------------------------

    async def register_agent(self, registration: AgentRegistration, call_id: str = "") -> AgentRegistered:
        return await self._run_once(call_id, AgentRegistered, partial(self._agents.register, registration))

    async def heartbeat_agent(self, heartbeat: AgentHeartbeat) -> None:
        self._pipeline.check_running()
        self._agents.heard(heartbeat)

    async def leave_agent(self, agent_epoch: int, call_id: str = "") -> None:
        await self._run_once(call_id, None, partial(self._agents.leave, agent_epoch))

    async def describe_agents(self) -> list[AgentDescription]:
        self._pipeline.check_running()
        return self._agents.describe()

    def excuse_silence(self) -> None:
        """No call could be taken for a while, which is no agent's fault: their silence counts from now.

        For a server that goes on after it refused all calls (its leadership was in doubt).
        """
        self._agents.excuse()

    def _agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        self._jobs.agents_changed(agents)
        self._orphans.agents_changed(frozenset(agent.agent_epoch for agent in agents))
        self._listeners.tell(lambda listener: listener.agents_changed(agents))

    async def grant_producer_id(self, producer_id: int, producer_epoch: int) -> ProducerIdGranted:
        return await self._pipeline.run(
            lambda transaction: self._state.grant_producer_id(producer_id, producer_epoch, transaction.changes)
        )

    async def _expire(self) -> None:
        while True:
            await self._clock.sleep(EXPIRY_SECONDS)
            try:
                while await self._pipeline.run(self._expire_some) == PRODUCERS_PER_COMMAND:
                    pass
                await self._pipeline.run(self._forget_old)
            except MetadataUnavailable as error:
                _log.warning("metadata_expiry_postponed", error=str(error))

    def _expire_some(self, transaction: Transaction) -> int:
        return self._state.expire_producers(self._clock.now_ms(), PRODUCERS_PER_COMMAND, transaction.changes)

    def _forget_old(self, transaction: Transaction) -> None:
        self._agents.forget(transaction)
        self._state.calls.forget(self._clock.now_ms(), transaction.changes)

    # --- commits ----------------------------------------------------------------------------------------

    async def commit_segments(
        self, agent_epoch: int, settled_sequence: int, commits: Sequence[SegmentCommit]
    ) -> list[SegmentCommitted]:
        def decide(transaction: Transaction) -> list[SegmentCommitted]:
            outcome = self._state.commit_segments(
                agent_epoch, settled_sequence, commits, self._clock.now_ms(), transaction.changes
            )
            transaction.after_durable(partial(self._committed, outcome))
            return outcome.answers

        return await self._pipeline.run(decide)

    def _committed(self, outcome: CommitOutcome) -> None:
        accepted = outcome.batches - outcome.duplicates - outcome.refused
        self._metrics.batches_committed.inc(accepted)
        if outcome.duplicates:
            self._metrics.batches_duplicate.inc(outcome.duplicates)
        if outcome.refused:
            self._metrics.batches_refused.inc(outcome.refused)
        if outcome.extents:
            self._visible.add_extents(outcome.extents)
            self._retention.extents_committed(outcome.extents)
            self._listeners.tell(lambda listener: listener.extents_committed(outcome.extents))

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        self._pipeline.check_running()
        try:
            found = await self._store.find_segment_extents(segments)
        except StoreUnavailable as error:
            raise MetadataUnavailable(str(error)) from error
        return [extent for extent in found if extent.topic_id in self._visible.topics]

    async def swap_extents(self, agent_epoch: int, swap: ExtentSwap) -> None:
        self._pipeline.check_running()
        async with self._swap_turn:  # what was found stays true but for deletions, which the decision looks at
            wanted = [(each.topic_id, each.partition, each.base_offset, each.last_offset) for each in swap.extents]
            try:
                known = await self._store.find_segments([(agent_epoch, swap.sequence)])
                ranges = match_swap(swap, await self._store.find_ranges(wanted))
            except StoreUnavailable as error:
                raise MetadataUnavailable(str(error)) from error

            if known.get((agent_epoch, swap.sequence), swap.segment_key) != swap.segment_key:
                raise Refused(Refusal.INVALID_REQUEST, f"sequence {swap.sequence} is of another segment")

            def decide(transaction: Transaction) -> None:
                self._state.swap_extents(agent_epoch, swap, ranges, self._time.now_ms(), transaction.changes)
                transaction.after_durable(partial(self._swapped, ranges))

            await self._pipeline.run(decide)

    def _swapped(self, ranges: Sequence[RangeSwap]) -> None:
        self._visible.swap_extents([each.extent for each in ranges])
        cleaned = [each.extent for each in ranges if each.extent.level == CLEANED_LEVEL]
        if cleaned:  # others may go on being read as they were
            self._listeners.tell(lambda listener: listener.extents_committed(cleaned))
        self._metrics.extents_swapped.inc(sum(each.count for each in ranges))

    # --- reads ------------------------------------------------------------------------------------------

    async def find_extents(self, queries: Sequence[ExtentsQuery]) -> list[ExtentsFound]:
        self._pipeline.check_running()
        return [await self._find(query) for query in queries]

    async def _find(self, query: ExtentsQuery) -> ExtentsFound:
        """From memory where a reader keeps up; else from the store, continued from memory where the two meet."""
        topic_id, number, offset, byte_max = query.topic_id, query.partition, query.offset, query.byte_max
        partition = self._visible.partition(topic_id, number)
        if partition is None:
            return ExtentsFound(-1, -1, (), self._unknown(topic_id))
        if not partition.log_start_offset <= offset <= partition.high_watermark:
            return ExtentsFound(partition.high_watermark, partition.log_start_offset, (), Refusal.OFFSET_OUT_OF_RANGE)
        found = [] if offset == partition.high_watermark else partition.find(offset, byte_max)
        if found is not None:
            self._metrics.extents_found_memory.inc(len(found))
            return ExtentsFound(partition.high_watermark, partition.log_start_offset, tuple(found))
        try:
            found = await self._store.find_extents(topic_id, number, offset, byte_max, partition.newest_offset)
        except StoreUnavailable as error:
            raise MetadataUnavailable(str(error)) from error
        self._metrics.extents_found_store.inc(len(found))
        partition = self._visible.partition(topic_id, number)
        if partition is None:
            return ExtentsFound(-1, -1, (), self._unknown(topic_id))
        if offset < partition.log_start_offset:  # it has moved meanwhile
            return ExtentsFound(partition.high_watermark, partition.log_start_offset, (), Refusal.OFFSET_OUT_OF_RANGE)
        if not found or not found[0].base_offset <= offset <= found[0].last_offset:
            raise MetadataUnavailable(f"the store has no extent for offset {offset} of {topic_id.hex()}/{number}")
        byte_count = sum(extent.byte_length for extent in found)
        if byte_count < byte_max and len(found) < EXTENTS_FOUND_MAX:
            following = found[-1].last_offset + 1
            newer = partition.find(following, byte_max - byte_count, EXTENTS_FOUND_MAX - len(found))
            if newer and newer[0].base_offset == following:
                found.extend(newer)
                self._metrics.extents_found_memory.inc(len(newer))
        return ExtentsFound(partition.high_watermark, partition.log_start_offset, tuple(found))

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        self._pipeline.check_running()
        visible = self._visible.partition(topic_id, partition)
        if visible is None:
            raise Refused(self._unknown(topic_id), "This server does not host this topic ID or partition.")
        if timestamp_ms > visible.max_timestamp_ms:
            return None
        try:
            # A visible extent reaches the timestamp, so the first that does lies below the high watermark too.
            return await self._store.find_extent_by_timestamp(topic_id, partition, timestamp_ms)
        except StoreUnavailable as error:
            raise MetadataUnavailable(str(error)) from error

    async def partition_offsets(self, partitions: Sequence[tuple[TopicId, int]]) -> list[PartitionOffsets | None]:
        self._pipeline.check_running()
        answers: list[PartitionOffsets | None] = []
        for topic_id, number in partitions:
            partition = self._visible.partition(topic_id, number)
            answers.append(
                None
                if partition is None
                else PartitionOffsets(partition.log_start_offset, partition.high_watermark, partition.max_timestamp_ms)
            )
        return answers

    async def partition_bytes(self, partitions: Sequence[tuple[TopicId, int]]) -> list[int | None]:
        self._pipeline.check_running()
        return [await self._partition_bytes(topic_id, number) for topic_id, number in partitions]

    async def _partition_bytes(self, topic_id: TopicId, number: int) -> int | None:
        partition = self._visible.partition(topic_id, number)
        if partition is None:
            return None
        byte_count, offset, end = 0, partition.log_start_offset, partition.high_watermark
        while offset < end:
            try:
                part, offset = await self._store.sum_extents(topic_id, number, offset, end, EXTENTS_SUMMED_MAX)
            except StoreUnavailable as error:
                raise MetadataUnavailable(str(error)) from error
            byte_count += part
        return byte_count

    async def describe_producers(
        self, partitions: Sequence[tuple[TopicId, int]]
    ) -> list[list[ProducerDescription] | None]:
        return await self._pipeline.run(
            lambda _: [self._state.describe_producers(topic_id, number) for topic_id, number in partitions]
        )

    def _unknown(self, topic_id: TopicId) -> Refusal:
        known = topic_id in self._visible.topics
        return Refusal.UNKNOWN_TOPIC_OR_PARTITION if known else Refusal.UNKNOWN_TOPIC_ID

    def _high_watermark(self, topic_id: TopicId, partition: int) -> int | None:
        visible = self._visible.partition(topic_id, partition)
        return None if visible is None else visible.high_watermark

    # --- deleting records -------------------------------------------------------------------------------

    async def delete_records(self, deletions: Sequence[RecordsDeletion]) -> list[RecordsDeleted]:
        def decide(transaction: Transaction) -> list[RecordsDeleted]:
            before = len(transaction.changes)
            answers = [self._state.topics.delete_records(deletion, transaction.changes) for deletion in deletions]
            self._announce_log_starts(transaction, before)
            return answers

        return await self._pipeline.run(decide)

    def _expire_records(self, topic_id: TopicId, partition: int, offset: int, transaction: Transaction) -> None:
        before = len(transaction.changes)
        self._state.topics.expire_records(topic_id, partition, offset, transaction.changes)
        self._announce_log_starts(transaction, before)

    def _announce_log_starts(self, transaction: Transaction, before: int) -> None:
        moved = [
            LogStart(change.topic_id, change.partition, change.log_start_offset)
            for change in transaction.changes[before:]
            if isinstance(change, LogStartMoved)
        ]
        if moved:
            transaction.after_durable(partial(self._log_starts_moved, moved))

    def _log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        for each in moved:
            self._visible.move_log_start(each)
        self._purger.wake()
        self._listeners.tell(lambda listener: listener.log_starts_moved(moved))

    # --- topics -----------------------------------------------------------------------------------------

    async def create_topic(
        self,
        name: str,
        partition_count: int,
        configs: dict[str, str],
        validate_only: bool = False,
        call_id: str = "",
    ) -> Topic:
        def decide(transaction: Transaction) -> Topic:
            _check_configs(configs)
            topic = self._state.topics.create(
                name,
                partition_count,
                configs,
                self._entropy.uuid_bytes(),
                self._clock.now_ms(),
                self._topic_settings.partitions_max,
                None if validate_only else transaction.changes,
            )
            if not validate_only:
                transaction.after_durable(partial(self._topic_saved, topic))
            return topic

        return await self._run_once(call_id, Topic, decide)

    async def create_partitions(
        self, topic_id: TopicId, partition_count: int, validate_only: bool = False, call_id: str = ""
    ) -> Topic:
        def decide(transaction: Transaction) -> Topic:
            topic = self._state.topics.create_partitions(
                topic_id,
                partition_count,
                self._topic_settings.partitions_max,
                None if validate_only else transaction.changes,
            )
            if not validate_only:
                transaction.after_durable(partial(self._topic_saved, topic))
            return topic

        return await self._run_once(call_id, Topic, decide)

    async def alter_topic_configs(
        self, topic_id: TopicId, changes: ConfigChanges, replace: bool = False, call_id: str = ""
    ) -> Topic:
        def decide(transaction: Transaction) -> Topic:
            current = self._state.topics.configs(topic_id)
            configs = _changed_configs({} if replace else current, changes)
            _check_configs(configs)
            topic = self._state.topics.alter_configs(topic_id, configs, transaction.changes)
            transaction.after_durable(partial(self._topic_saved, topic))
            return topic

        return await self._run_once(call_id, Topic, decide)

    async def delete_topic(self, topic_id: TopicId, call_id: str = "") -> None:
        def decide(transaction: Transaction) -> None:
            hidden_ms = self._time.now_ms() if self._undelete_ms else None
            self._state.topics.delete(topic_id, self._state.producer_ids_granted, hidden_ms, transaction.changes)
            self._groups.forget_topic(topic_id)
            transaction.after_durable(partial(self._topic_dropped, topic_id, hidden_ms is not None))

        await self._run_once(call_id, None, decide)

    async def deleted_topics(self) -> list[DeletedTopic]:
        return await self._pipeline.run(lambda _: self._state.topics.deleted())

    async def undelete_topic(self, topic_id: TopicId, call_id: str = "") -> Topic:
        def decide(transaction: Transaction) -> Topic:
            topic = self._state.topics.undelete(topic_id, self._topic_settings.partitions_max, transaction.changes)
            transaction.after_durable(partial(self._topic_saved, topic))
            return topic

        return await self._run_once(call_id, Topic, decide)

    async def _drop_hidden(self) -> None:
        """Topics that nobody brought back in time go for good."""
        # Also where nothing is hidden any more: something may be from before that was set.
        pause_seconds = min(self._undelete_ms / 10_000, EXPIRY_SECONDS) or EXPIRY_SECONDS
        while True:
            await self._clock.sleep(pause_seconds)
            with contextlib.suppress(MetadataUnavailable):  # then the next time
                if await self._pipeline.run(self._decide_drop_hidden):
                    self._purger.wake()

    def _decide_drop_hidden(self, transaction: Transaction) -> bool:
        gone = self._state.topics.drop_hidden(self._time.now_ms() - self._undelete_ms, transaction.changes)
        for topic_id in gone:
            transaction.after_durable(partial(self._visible.drop_topic, topic_id))
        return bool(gone)

    def _decided_topic(self, topic_id: TopicId) -> Topic | None:
        """As the commands see it: without topics whose deletion was decided but is not durable yet."""
        decided = self._state.topics.by_id.get(topic_id)
        return None if decided is None else decided.topic

    def _topic_saved(self, topic: Topic) -> None:
        self._visible.put_topic(topic)
        self._retention.topic_changed(topic)
        self._listeners.tell(lambda listener: listener.topics_changed(TopicsChanged(upserted=(topic,))))

    def _topic_dropped(self, topic_id: TopicId, hidden: bool) -> None:
        self._retention.topic_changed(self._visible.topics[topic_id])
        self._visible.drop_topic(topic_id, hidden)
        self._purger.wake()
        self._listeners.tell(lambda listener: listener.topics_changed(TopicsChanged(deleted=(topic_id,))))

    # --- subscriptions ----------------------------------------------------------------------------------

    async def subscribe(self, listener: MetadataListener) -> MetadataSubscription:
        self._pipeline.check_running()
        return self._listeners.add(listener, tuple(self._visible.topics.values()), self._agents.roster)

    def _load(self, snapshot: StoreSnapshot) -> None:
        """Everything anew from the store. Listeners heard nothing of a write of unknown outcome: they start over."""
        before = self._visible
        self._state = State(snapshot)
        self._visible = VisibleIndex(snapshot)
        self._retention.reset()
        change = self._visible.changes_since(before)
        self._listeners.resynchronize()
        if change.upserted or change.deleted:
            self._listeners.tell(lambda listener: listener.topics_changed(change))

    # --- jobs -------------------------------------------------------------------------------------------

    async def lease_jobs(self, agent_epoch: int, kinds: Sequence[str], count_max: int) -> list[JobLease]:
        self._pipeline.check_running()
        return self._jobs.lease(agent_epoch, kinds, count_max)

    async def renew_jobs(self, agent_epoch: int, lease_ids: Sequence[int]) -> list[int]:
        self._pipeline.check_running()
        return self._jobs.renew(agent_epoch, lease_ids)

    async def finish_job(self, agent_epoch: int, lease_id: int, result: bytes | None) -> bool:
        self._pipeline.check_running()
        return await self._jobs.finish(agent_epoch, lease_id, result)

    async def find_orphans(self, objects: Sequence[SweptObject]) -> list[str]:
        try:
            return await find_orphans(self._store, self._pipeline, lambda: self._state, objects)
        except StoreUnavailable as error:
            raise MetadataUnavailable(str(error)) from error

    # --- groups -----------------------------------------------------------------------------------------

    async def join_group(self, join: JoinGroup) -> JoinGroupAnswer:
        return await self._groups.join_group(join)

    async def sync_group(self, sync: SyncGroup) -> SyncGroupAnswer:
        return await self._groups.sync_group(sync)

    async def heartbeat(
        self, group_id: str, generation_id: int, member_id: str, group_instance_id: str | None
    ) -> Refusal | None:
        return await self._groups.heartbeat(group_id, generation_id, member_id, group_instance_id)

    async def leave_group(self, group_id: str, members: Sequence[LeavingMember]) -> list[Refusal | None]:
        return await self._groups.leave_group(group_id, members)

    async def commit_offsets(self, commit: OffsetCommit) -> OffsetCommitAnswer:
        return await self._groups.commit_offsets(commit)

    async def fetch_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]] | None
    ) -> list[OffsetRecord]:
        return await self._groups.fetch_offsets(group_id, partitions)

    async def describe_groups(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        return await self._groups.describe_groups(group_ids)

    async def list_groups(self) -> list[GroupDescription]:
        return await self._groups.list_groups()

    async def delete_group(self, group_id: str, call_id: str = "") -> Refusal | None:
        return await self._run_once(call_id, Refusal | None, partial(self._groups.decide_delete, group_id))

    async def delete_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]], call_id: str = ""
    ) -> OffsetDeleteAnswer:
        decide = partial(self._groups.decide_delete_offsets, group_id, partitions)
        return await self._run_once(call_id, OffsetDeleteAnswer, decide)

    async def group_lags(self) -> list[GroupLag]:
        return await self._groups.group_lags()


def _changed_configs(configs: dict[str, str], changes: ConfigChanges) -> dict[str, str]:
    """:raises Refused: INVALID_CONFIG."""
    try:
        return changed_configs(configs, changes)
    except ValueError as error:
        raise Refused(Refusal.INVALID_CONFIG, str(error)) from error


def _check_configs(configs: dict[str, str]) -> None:
    """:raises Refused: INVALID_CONFIG, with Kafka's words."""
    try:
        validate_topic_configs(configs)
    except ValueError as error:
        raise Refused(Refusal.INVALID_CONFIG, str(error)) from error
