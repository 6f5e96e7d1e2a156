"""The table of calls: the arguments and answers of :class:`metadata.client.MetadataClient` as they travel.

A call's arguments are an array of its parameters in order, its answer is the value it returns; the types are read from
the protocol's own annotations, so that the two cannot differ. ``subscribe`` is no call: see :mod:`metadata.rpc.watch`.
"""

from __future__ import annotations

import enum
import inspect
import typing
from typing import Any, Generic, TypeVar

import msgspec

from metadata.agent_model import AgentDescription, AgentRegistered
from metadata.client import MetadataClient
from metadata.group_model import (
    GroupDescription,
    GroupLag,
    JoinGroupAnswer,
    OffsetCommitAnswer,
    OffsetDeleteAnswer,
    OffsetRecord,
    SyncGroupAnswer,
)
from metadata.job_model import JobLease
from metadata.model import (
    DeletedTopic,
    Extent,
    ExtentsFound,
    PartitionOffsets,
    ProducerDescription,
    ProducerIdGranted,
    RecordsDeleted,
    Refusal,
    SegmentCommitted,
    Topic,
)
from metadata.rpc.wire import Head

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class Pace(enum.Enum):
    """How long the service may take, which decides when a caller suspects that it has frozen."""

    ORDINARY = "ordinary"
    """One transaction or one look into memory or the store."""
    LONG = "long"
    """Grows with the cluster: lags of all groups, for people and metrics."""
    PARKED = "parked"
    """Waits for others (join, sync): as long as a rebalance."""


class Method(Generic[T]):
    """One call with an answer of type ``T``.

    ``mutating``: it is executed at most once under each generation, and a repetition gets the first answer.
    ``remembered``: under all generations together; the service is told the call's id, and keeps the answer.
    """

    def __init__(
        self, name: str, *, mutating: bool = False, remembered: bool = False, pace: Pace = Pace.ORDINARY
    ) -> None:
        declared = getattr(MetadataClient, name)
        hints = typing.get_type_hints(declared)
        parameters = [parameter for parameter in inspect.signature(declared).parameters if parameter != "self"]
        arguments: Any = msgspec.defstruct(
            f"{name}_arguments", [(parameter, hints[parameter]) for parameter in parameters], array_like=True
        )
        self.name = name
        self.mutating = mutating or remembered
        self.remembered = remembered
        self.pace = pace
        self._request: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(tuple[Head, arguments])
        self._answer: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(hints["return"])

    def encode_request(self, head: Head, arguments: tuple[Any, ...]) -> bytes:
        return _encoder.encode((head, arguments))

    def decode_request(self, body: bytes) -> tuple[Head, tuple[Any, ...]]:
        """:raises ValueError: ``body`` is not a request of this method (RecursionError: it nests too deeply)."""
        head, arguments = self._request.decode(body)
        return head, msgspec.structs.astuple(arguments)

    def decode_answer(self, value: msgspec.Raw) -> T:
        """:raises ValueError: ``value`` is not an answer of this method."""
        return self._answer.decode(value)


REGISTER_AGENT = Method[AgentRegistered]("register_agent", remembered=True)
HEARTBEAT_AGENT = Method[None]("heartbeat_agent", mutating=True)
LEAVE_AGENT = Method[None]("leave_agent", remembered=True)
DESCRIBE_AGENTS = Method[list[AgentDescription]]("describe_agents")

COMMIT_SEGMENTS = Method[list[SegmentCommitted]]("commit_segments", mutating=True)
FIND_SEGMENT_EXTENTS = Method[list[Extent]]("find_segment_extents")
SWAP_EXTENTS = Method[None]("swap_extents", mutating=True)
FIND_EXTENTS = Method[list[ExtentsFound]]("find_extents")
FIND_EXTENT_BY_TIMESTAMP = Method[Extent | None]("find_extent_by_timestamp")
PARTITION_OFFSETS = Method[list[PartitionOffsets | None]]("partition_offsets")
PARTITION_BYTES = Method[list[int | None]]("partition_bytes", pace=Pace.LONG)
DESCRIBE_PRODUCERS = Method[list[list[ProducerDescription] | None]]("describe_producers")

DELETE_RECORDS = Method[list[RecordsDeleted]]("delete_records", mutating=True)
CREATE_TOPIC = Method[Topic]("create_topic", remembered=True)
CREATE_PARTITIONS = Method[Topic]("create_partitions", remembered=True)
DELETE_TOPIC = Method[None]("delete_topic", remembered=True)
DELETED_TOPICS = Method[list[DeletedTopic]]("deleted_topics")
UNDELETE_TOPIC = Method[Topic]("undelete_topic", remembered=True)
ALTER_TOPIC_CONFIGS = Method[Topic]("alter_topic_configs", remembered=True)
GRANT_PRODUCER_ID = Method[ProducerIdGranted]("grant_producer_id", mutating=True)

LEASE_JOBS = Method[list[JobLease]]("lease_jobs", mutating=True)
RENEW_JOBS = Method[list[int]]("renew_jobs", mutating=True)
FINISH_JOB = Method[bool]("finish_job", mutating=True)
FIND_ORPHANS = Method[list[str]]("find_orphans")

JOIN_GROUP = Method[JoinGroupAnswer]("join_group", mutating=True, pace=Pace.PARKED)
SYNC_GROUP = Method[SyncGroupAnswer]("sync_group", mutating=True, pace=Pace.PARKED)
HEARTBEAT = Method[Refusal | None]("heartbeat", mutating=True)
LEAVE_GROUP = Method[list[Refusal | None]]("leave_group", mutating=True)
COMMIT_OFFSETS = Method[OffsetCommitAnswer]("commit_offsets", mutating=True)
FETCH_OFFSETS = Method[list[OffsetRecord]]("fetch_offsets")
DESCRIBE_GROUPS = Method[list[GroupDescription]]("describe_groups")
LIST_GROUPS = Method[list[GroupDescription]]("list_groups", pace=Pace.LONG)
DELETE_GROUP = Method[Refusal | None]("delete_group", remembered=True)
DELETE_OFFSETS = Method[OffsetDeleteAnswer]("delete_offsets", remembered=True)
GROUP_LAGS = Method[list[GroupLag]]("group_lags", pace=Pace.LONG)

METHODS: dict[str, Method[Any]] = {value.name: value for value in list(vars().values()) if isinstance(value, Method)}
