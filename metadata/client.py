"""What agents see of the metadata service: the one port between the two, in-process or remote.

A remote transport may lose, repeat and delay calls. Every mutating call is therefore safe to repeat, and a
call that ended in :class:`metadata.model.MetadataUnavailable` (or was cancelled) has an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from metadata.agent_model import AgentDescription, AgentHeartbeat, AgentInfo, AgentRegistered, AgentRegistration
from metadata.compaction import ExtentSwap
from metadata.group_model import GroupClient
from metadata.job_model import JobLease, SweptObject
from metadata.model import (
    DeletedTopic,
    Extent,
    ExtentsFound,
    ExtentsQuery,
    LogStart,
    PartitionOffsets,
    ProducerDescription,
    ProducerIdGranted,
    RecordsDeleted,
    RecordsDeletion,
    SegmentCommit,
    SegmentCommitted,
    Topic,
    TopicId,
    TopicsChanged,
)
from metadata.topic_configs import ConfigChanges


class MetadataListener(Protocol):
    """Hears what became durable, in commit order, on the event loop. Callbacks must return at once.

    After a gap (a remote transport reconnected) ``resynchronize`` comes first: forget what you derived
    from earlier events and ask again.
    """

    def topics_changed(self, change: TopicsChanged) -> None: ...

    def extents_committed(self, extents: Sequence[Extent]) -> None:
        """New extents of followed partitions; each moves its partition's high watermark to ``last_offset + 1``.

        One whose ``level`` is not 0 is not new: it took the place of others, some of whose records are gone.
        """

    def log_starts_moved(self, moved: Sequence[LogStart]) -> None:
        """Records of followed partitions were deleted: below these offsets there is nothing to read any more."""

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        """The whole roster: every agent whose epoch is not fenced, by node id."""

    def resynchronize(self) -> None: ...


class Subscription(Protocol):
    """``topics`` and ``agents`` are the state at the start of the subscription; later changes reach the listener."""

    topics: tuple[Topic, ...]
    agents: tuple[AgentInfo, ...]

    async def follow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        """From before this returns on, extents of ``partitions`` are announced. What was committed before must be
        asked for *afterwards*. It outlives reconnections (the listener is resynchronized), until :meth:`unfollow`.

        :raises metadata.model.MetadataUnavailable: nothing is promised; ask again.
        """

    def unfollow(self, partitions: Sequence[tuple[TopicId, int]]) -> None:
        """Announcements of ``partitions`` may end. Returns at once."""

    def close(self) -> None: ...


class MetadataClient(GroupClient, Protocol):
    """All calls may raise :class:`metadata.model.MetadataUnavailable`."""

    async def register_agent(self, registration: AgentRegistration) -> AgentRegistered:
        """A new epoch for this agent; its earlier epochs can never commit again."""

    async def heartbeat_agent(self, heartbeat: AgentHeartbeat) -> None:
        """This agent lives. Its condition and load hold until the next one, or until it has been silent too long.

        :raises metadata.model.Fenced: the epoch was replaced, or fell silent for its session timeout: register again.
        """

    async def leave_agent(self, agent_epoch: int) -> None:
        """A drained agent says goodbye: its epoch is fenced and it leaves the roster at once. Safe to repeat."""

    async def describe_agents(self) -> list[AgentDescription]:
        """Every agent of the roster, by node id."""

    async def subscribe(self, listener: MetadataListener) -> Subscription:
        """:raises metadata.model.MetadataUnavailable: the service cannot be reached now."""

    async def commit_segments(
        self, agent_epoch: int, settled_sequence: int, commits: Sequence[SegmentCommit]
    ) -> list[SegmentCommitted]:
        """Assign offsets to the batches of uploaded segments, in the order given, all in one transaction.

        ``settled_sequence``: this agent has seen the answers up to here; they need not be remembered.

        :raises metadata.model.Fenced: ``agent_epoch`` was replaced; nothing was changed.
        """

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        """What is referenced of these segments, (agent epoch, sequence), in any order: for compaction.

        Extents of topics that are not there (any more) are left out: they could not be swapped.
        """

    async def swap_extents(self, agent_epoch: int, swap: ExtentSwap) -> None:
        """Let extents of a compacted segment take the place of those they were made of, all or none. Safe to repeat.

        :raises metadata.model.Fenced: ``agent_epoch`` was replaced; nothing was changed.
        :raises metadata.model.Refused: the extents are not there any more as they were read; nothing was changed.
        """

    async def find_extents(self, queries: Sequence[ExtentsQuery]) -> list[ExtentsFound]:
        """Cost follows the result, not the backlog. Sees only what is durable."""

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        """The first extent (by offset) whose max timestamp is at or after ``timestamp_ms``; None when there is none.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID.
        """

    async def partition_offsets(self, partitions: Sequence[tuple[TopicId, int]]) -> list[PartitionOffsets | None]:
        """Durable offsets, None for a partition that does not exist."""

    async def delete_records(self, deletions: Sequence[RecordsDeletion]) -> list[RecordsDeleted]:
        """Kafka's DeleteRecords, one answer for each. All that are not refused are done when this returns; their
        bytes go later. Safe to repeat."""

    async def partition_bytes(self, partitions: Sequence[tuple[TopicId, int]]) -> list[int | None]:
        """Bytes of the extents that can be read, None for a partition that does not exist.

        Read from the index row by row, beside the commits: for people and their tools.
        """

    async def describe_producers(
        self, partitions: Sequence[tuple[TopicId, int]]
    ) -> list[list[ProducerDescription] | None]:
        """The idempotent producers that each partition remembers, None for a partition that does not exist.

        Of one partition at most :data:`metadata.model.PRODUCERS_DESCRIBED_MAX`, those that it met last.
        """

    async def create_topic(
        self, name: str, partition_count: int, configs: dict[str, str], validate_only: bool = False
    ) -> Topic:
        """:raises metadata.model.Refused: TOPIC_ALREADY_EXISTS, INVALID_TOPIC, INVALID_PARTITIONS, INVALID_CONFIG."""

    async def create_partitions(self, topic_id: TopicId, partition_count: int, validate_only: bool = False) -> Topic:
        """A topic grows to ``partition_count`` partitions; those that it has stay as they are.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID, INVALID_PARTITIONS.
        """

    async def delete_topic(self, topic_id: TopicId) -> None:
        """Its extents become unreadable at once; committed group offsets for it are dropped.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID.
        """

    async def deleted_topics(self) -> list[DeletedTopic]:
        """Topics that were deleted and can be brought back, longest deleted first."""

    async def undelete_topic(self, topic_id: TopicId) -> Topic:
        """Bring a deleted topic back, with its records and configs. Committed group offsets stay dropped.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID (it is gone for good, or was never deleted),
            TOPIC_ALREADY_EXISTS (its name is taken), INVALID_TOPIC, INVALID_PARTITIONS.
        """

    async def alter_topic_configs(self, topic_id: TopicId, changes: ConfigChanges, replace: bool = False) -> Topic:
        """Set the configs given; None goes back to the default, and with ``replace`` so does whatever is not given.
        Lists are edited as they are when the command is decided.

        :raises metadata.model.Refused: UNKNOWN_TOPIC_ID, INVALID_CONFIG (nothing was changed).
        """

    async def grant_producer_id(self, producer_id: int, producer_epoch: int) -> ProducerIdGranted:
        """A producer id never handed out before (with -1, -1), or the next epoch of a known one (KIP-360).

        An id that was never handed out, or whose epochs are used up, is answered with a new one.
        """

    async def lease_jobs(self, agent_epoch: int, kinds: Sequence[str], count_max: int) -> list[JobLease]:
        """Up to ``count_max`` background jobs of these kinds, none when there is nothing to do.

        :raises metadata.model.Fenced: the epoch was replaced, fell silent, or left.
        """

    async def renew_jobs(self, agent_epoch: int, lease_ids: Sequence[int]) -> list[int]:
        """Those of the leases that are still held, for another while. :raises metadata.model.Fenced:"""

    async def finish_job(self, agent_epoch: int, lease_id: int, result: bytes | None) -> bool:
        """The job is done, and everything that follows from ``result`` durable when this returns True. False: the
        lease was lost, or the result is none: somebody does it again. ``result`` None gives the job back.

        :raises metadata.model.Fenced:
        """

    async def find_orphans(self, objects: Sequence[SweptObject]) -> list[str]:
        """The keys of those that are of no committed segment, and that no commit can name any more."""
