"""The metadata service as agents see it across a network: a call is repeated, as the same call, until its deadline.

The active process is found among the addresses (:mod:`metadata.rpc.leader`). An attempt that gets no answer in time,
meets a process that does not lead, or loses its connection is made again elsewhere; the server knows repetitions, so
they are safe. Answers of a leader that was replaced are dropped.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import aiohttp
import msgspec

from metadata.agent_model import AgentDescription, AgentHeartbeat, AgentRegistered, AgentRegistration
from metadata.client import MetadataListener
from metadata.compaction import ExtentSwap
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
from metadata.job_model import JobLease, SweptObject
from metadata.model import (
    DeletedTopic,
    Extent,
    ExtentsFound,
    ExtentsQuery,
    Fenced,
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
)
from metadata.rpc import methods
from metadata.rpc.leader import LeaderFinder, Server
from metadata.rpc.methods import Method, Pace
from metadata.rpc.metrics import RpcClientMetrics
from metadata.rpc.subscription import RemoteSubscription
from metadata.rpc.wire import REQUEST_BYTES_MAX, SHARED_LANE, Answer, Head, Outcome, decode_error
from metadata.topic_configs import ConfigChanges
from runtime.clock import Clock, Entropy
from runtime.tasks import Supervisor

T = TypeVar("T")

PATIENCE_SECONDS = 15.0
"""A call is repeated for so long: a frozen leader is replaced within 10."""
LONG_FACTOR = 4
"""Calls whose answer grows with the cluster are given more time."""
ATTEMPT_SECONDS = 2.0
"""The first attempt of a call. A leader that lives says PENDING before that."""
ATTEMPT_SECONDS_MAX = 8.0
PARKED_ATTEMPT_SECONDS = 20.0
"""A parked call is asked for anew so often, and at once when another process leads."""
ANSWERED_EARLY_SECONDS = 0.5
"""The server is asked to answer so long before the attempt ends."""
PAUSE_SECONDS = (0.02, 0.5)
"""First and longest pause before a call is repeated that a living leader could not answer."""

_answer_decoder = msgspec.msgpack.Decoder(Answer)


class _Again(Exception):
    """The attempt settled nothing; ``paused``: the leader lives, so do not hurry."""

    def __init__(self, reason: str, message: str, *, paused: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.paused = paused


class RemoteMetadata:
    """Implements :class:`metadata.client.MetadataClient` over the metadata processes at ``urls`` (``http://host:port``).

    :meth:`start` before the first call and :meth:`close` after the last, on one event loop. Calls raise
    MetadataUnavailable when no leader answered them for ``patience_seconds`` (parked calls: when none was there for so
    long). Cancelling a call gives it up: its outcome is unknown, and no late copy of it is executed after a later call.
    """

    def __init__(
        self,
        urls: Sequence[str],
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: RpcClientMetrics,
        secret: str | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """``secret`` is ``settings.secret`` of the whole cluster. Nothing is connected yet."""
        if not urls:
            raise ValueError("no address of a metadata process")
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._metrics = metrics
        self._patience_seconds = patience_seconds
        self._id = entropy.uuid_bytes()
        self._servers = [Server(url, secret) for url in urls]
        self._finder = LeaderFinder(self._servers, clock, entropy, supervisor, metrics)
        self._next_number = 0
        self._unsettled: dict[int, None] = {}
        """Numbers of the shared lane that wait, in ascending order."""
        self._free_lanes: list[int] = []
        self._lanes: dict[int, int] = {}
        """The next number of each lane that was ever used for a parked call."""
        self._subscriptions: list[RemoteSubscription] = []
        self._failure: str | None = None

    async def start(self) -> None:
        """Nothing is asked yet: the first call finds the leader."""

    async def close(self) -> None:
        """End subscriptions, fail calls that wait, and close the connections. Idempotent."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
        await self._finder.close()

    @property
    def generation(self) -> int:
        """The highest generation of a leader heard of, -1 before the first."""
        return self._finder.generation

    def problem(self) -> str | None:
        """Why calls are not answered now, None when the latest one was."""
        return self._failure

    # --- one call ---------------------------------------------------------------------------------------

    async def _call(self, method: Method[T], *arguments: Any) -> T:
        started = self._clock.monotonic()
        outcome = "cancelled"
        try:
            answer = await self._numbered(method, arguments)
            outcome = "value"
            return answer
        except Refused:
            outcome = "refused"
            raise
        except Fenced:
            outcome = "fenced"
            raise
        except MetadataUnavailable:
            outcome = "unavailable"
            raise
        finally:
            self._metrics.calls.labels(method.name, outcome).inc()
            self._metrics.call_seconds.labels(method.name).observe(self._clock.monotonic() - started)

    async def _numbered(self, method: Method[T], arguments: tuple[Any, ...]) -> T:
        """Give the call its lane and number, and settle it whatever becomes of it."""
        if method.pace is not Pace.PARKED:
            number = self._next_number
            self._next_number += 1
            self._unsettled[number] = None
            try:
                return await self._repeat(method, arguments, SHARED_LANE, number)
            finally:
                del self._unsettled[number]
        lane = heapq.heappop(self._free_lanes) if self._free_lanes else len(self._lanes) + 1
        number = self._lanes.get(lane, 0)
        self._lanes[lane] = number + 1
        try:
            return await self._repeat(method, arguments, lane, number)
        finally:
            heapq.heappush(self._free_lanes, lane)

    async def _repeat(self, method: Method[T], arguments: tuple[Any, ...], lane: int, number: int) -> T:
        """:raises MetadataUnavailable: at the deadline, with the latest reason. Time parked does not count."""
        parked = method.pace is Pace.PARKED
        patience = self._patience_seconds * (LONG_FACTOR if method.pace is Pace.LONG else 1)
        deadline = self._clock.monotonic() + patience
        attempt_seconds = PARKED_ATTEMPT_SECONDS if parked else ATTEMPT_SECONDS
        pause, pause_max = PAUSE_SECONDS
        problem = ""
        hurried = False  # the first repetition is made at once: most of the time it reaches the next leader
        while True:
            server = await self._finder.leader(deadline)
            began = self._clock.monotonic()
            if began >= deadline:
                raise MetadataUnavailable(f"{method.name} was not answered for {patience:g} s: {problem}")
            seconds = attempt_seconds if parked else min(attempt_seconds, deadline - began)
            wait_ms = int(max(seconds - ANSWERED_EARLY_SECONDS, seconds / 2) * 1000)
            settled_below = next(iter(self._unsettled)) if lane == SHARED_LANE else number
            head = Head(self._id, lane, number, settled_below, self._finder.generation, wait_ms)
            try:
                answer = await self._attempt(server, method, head, arguments, seconds)
            except _Again as again:
                problem = str(again)
                if again.reason != "pending":  # that is a sign of life
                    self._failure = problem
                self._metrics.repeats.labels(again.reason).inc()
                if again.reason == "silent":
                    attempt_seconds = min(attempt_seconds * 2, ATTEMPT_SECONDS_MAX)
                if parked:
                    deadline += self._clock.monotonic() - began
                if again.paused or (hurried and again.reason != "pending"):
                    await self._clock.sleep(self._entropy.uniform(pause / 2, pause))
                    pause = min(pause * 2, pause_max)
                hurried = True
            else:
                self._failure = None
                return answer

    async def _attempt(
        self, server: Server, method: Method[T], head: Head, arguments: tuple[Any, ...], seconds: float
    ) -> T:
        """The answer to one request. :raises _Again: it settled nothing; the call may have been executed or not."""
        body = method.encode_request(head, arguments)
        if len(body) > REQUEST_BYTES_MAX:
            raise MetadataUnavailable(f"{method.name} with {len(body)} bytes is larger than {REQUEST_BYTES_MAX}")
        session = server.waits if method.pace is Pace.PARKED else server.calls
        try:
            async with (
                asyncio.timeout(seconds),
                session.post(f"{server.url}/rpc/{method.name}", data=body) as response,
            ):
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError too
            silent = isinstance(error, TimeoutError)
            problem = f"no answer for {seconds:g} s" if silent else repr(error)
            self._finder.lost(server, problem)
            raise _Again("silent" if silent else "disconnected", f"{server.url}: {problem}") from error
        if status != 200:
            self._not_answered(server, method, status, content)
        try:
            answer = _answer_decoder.decode(content)
            if not self._finder.heard(answer.generation):
                self._finder.lost(server, "it answered as a leader that was replaced")
                raise _Again("stale", f"{server.url} answered under generation {answer.generation}")
            if answer.outcome is Outcome.VALUE:
                return method.decode_answer(answer.value)
            if answer.outcome is Outcome.PENDING:
                raise _Again("pending", f"{server.url} has not finished it")
            if answer.outcome is Outcome.OTHER_GENERATION:
                raise _Again(
                    "other_generation", f"{server.url} leads anew", paused=head.generation == answer.generation
                )
            error_told = decode_error(answer)
        except ValueError as error:
            raise MetadataUnavailable(f"{server.url} answered {method.name} with something else: {error}") from error
        if answer.outcome is Outcome.UNAVAILABLE:
            raise _Again("unavailable", str(error_told), paused=True)
        raise error_told

    def _not_answered(self, server: Server, method: Method[T], status: int, content: bytes) -> NoReturn:
        """:raises _Again: another process, or later. :raises MetadataUnavailable: this request never works."""
        text = content[:200].decode(errors="replace")
        if status == 401:
            self._finder.unauthorized(server)
        if status in (401, 503):
            self._finder.lost(server, text)
            raise _Again("not_leader", f"{server.url}: {text}")
        if status == 429:
            raise _Again("overloaded", f"{server.url}: {text}", paused=True)
        raise MetadataUnavailable(f"{server.url} answered {method.name} with HTTP {status}: {text}")

    # --- subscriptions ----------------------------------------------------------------------------------

    async def subscribe(self, listener: MetadataListener) -> RemoteSubscription:
        subscription = RemoteSubscription(
            listener,
            self._finder,
            self._clock,
            self._entropy,
            self._supervisor,
            self._metrics,
            self._patience_seconds,
            self._id,
        )
        await subscription.open(self._subscriptions.remove)
        self._subscriptions.append(subscription)
        return subscription

    # --- agents and producers ---------------------------------------------------------------------------

    async def register_agent(self, registration: AgentRegistration) -> AgentRegistered:
        """From now on only metadata processes of the same cluster are believed."""
        registered = await self._call(methods.REGISTER_AGENT, registration)
        self._finder.cluster_id = registered.cluster_id
        return registered

    async def heartbeat_agent(self, heartbeat: AgentHeartbeat) -> None:
        await self._call(methods.HEARTBEAT_AGENT, heartbeat)

    async def leave_agent(self, agent_epoch: int) -> None:
        await self._call(methods.LEAVE_AGENT, agent_epoch)

    async def describe_agents(self) -> list[AgentDescription]:
        return await self._call(methods.DESCRIBE_AGENTS)

    async def grant_producer_id(self, producer_id: int, producer_epoch: int) -> ProducerIdGranted:
        return await self._call(methods.GRANT_PRODUCER_ID, producer_id, producer_epoch)

    # --- commits and reads ------------------------------------------------------------------------------

    async def commit_segments(
        self, agent_epoch: int, settled_sequence: int, commits: Sequence[SegmentCommit]
    ) -> list[SegmentCommitted]:
        return await self._call(methods.COMMIT_SEGMENTS, agent_epoch, settled_sequence, commits)

    async def find_segment_extents(self, segments: Sequence[tuple[int, int]]) -> list[Extent]:
        return await self._call(methods.FIND_SEGMENT_EXTENTS, segments)

    async def swap_extents(self, agent_epoch: int, swap: ExtentSwap) -> None:
        await self._call(methods.SWAP_EXTENTS, agent_epoch, swap)

    async def find_extents(self, queries: Sequence[ExtentsQuery]) -> list[ExtentsFound]:
        return await self._call(methods.FIND_EXTENTS, queries)

    async def find_extent_by_timestamp(self, topic_id: TopicId, partition: int, timestamp_ms: int) -> Extent | None:
        return await self._call(methods.FIND_EXTENT_BY_TIMESTAMP, topic_id, partition, timestamp_ms)

    async def partition_offsets(self, partitions: Sequence[tuple[TopicId, int]]) -> list[PartitionOffsets | None]:
        return await self._call(methods.PARTITION_OFFSETS, partitions)

    async def partition_bytes(self, partitions: Sequence[tuple[TopicId, int]]) -> list[int | None]:
        return await self._call(methods.PARTITION_BYTES, partitions)

    async def describe_producers(
        self, partitions: Sequence[tuple[TopicId, int]]
    ) -> list[list[ProducerDescription] | None]:
        return await self._call(methods.DESCRIBE_PRODUCERS, partitions)

    # --- topics -----------------------------------------------------------------------------------------

    async def create_topic(
        self, name: str, partition_count: int, configs: dict[str, str], validate_only: bool = False
    ) -> Topic:
        return await self._call(methods.CREATE_TOPIC, name, partition_count, configs, validate_only)

    async def create_partitions(self, topic_id: TopicId, partition_count: int, validate_only: bool = False) -> Topic:
        return await self._call(methods.CREATE_PARTITIONS, topic_id, partition_count, validate_only)

    async def delete_topic(self, topic_id: TopicId) -> None:
        await self._call(methods.DELETE_TOPIC, topic_id)

    async def deleted_topics(self) -> list[DeletedTopic]:
        return await self._call(methods.DELETED_TOPICS)

    async def undelete_topic(self, topic_id: TopicId) -> Topic:
        return await self._call(methods.UNDELETE_TOPIC, topic_id)

    async def alter_topic_configs(self, topic_id: TopicId, changes: ConfigChanges, replace: bool = False) -> Topic:
        return await self._call(methods.ALTER_TOPIC_CONFIGS, topic_id, changes, replace)

    async def delete_records(self, deletions: Sequence[RecordsDeletion]) -> list[RecordsDeleted]:
        return await self._call(methods.DELETE_RECORDS, deletions)

    # --- jobs -------------------------------------------------------------------------------------------

    async def lease_jobs(self, agent_epoch: int, kinds: Sequence[str], count_max: int) -> list[JobLease]:
        return await self._call(methods.LEASE_JOBS, agent_epoch, kinds, count_max)

    async def renew_jobs(self, agent_epoch: int, lease_ids: Sequence[int]) -> list[int]:
        return await self._call(methods.RENEW_JOBS, agent_epoch, lease_ids)

    async def finish_job(self, agent_epoch: int, lease_id: int, result: bytes | None) -> bool:
        return await self._call(methods.FINISH_JOB, agent_epoch, lease_id, result)

    async def find_orphans(self, objects: Sequence[SweptObject]) -> list[str]:
        return await self._call(methods.FIND_ORPHANS, objects)

    # --- groups -----------------------------------------------------------------------------------------

    async def join_group(self, join: JoinGroup) -> JoinGroupAnswer:
        return await self._call(methods.JOIN_GROUP, join)

    async def sync_group(self, sync: SyncGroup) -> SyncGroupAnswer:
        return await self._call(methods.SYNC_GROUP, sync)

    async def heartbeat(
        self, group_id: str, generation_id: int, member_id: str, group_instance_id: str | None
    ) -> Refusal | None:
        return await self._call(methods.HEARTBEAT, group_id, generation_id, member_id, group_instance_id)

    async def leave_group(self, group_id: str, members: Sequence[LeavingMember]) -> list[Refusal | None]:
        return await self._call(methods.LEAVE_GROUP, group_id, members)

    async def commit_offsets(self, commit: OffsetCommit) -> OffsetCommitAnswer:
        return await self._call(methods.COMMIT_OFFSETS, commit)

    async def fetch_offsets(
        self, group_id: str, partitions: Sequence[tuple[TopicId, int]] | None
    ) -> list[OffsetRecord]:
        return await self._call(methods.FETCH_OFFSETS, group_id, partitions)

    async def describe_groups(self, group_ids: Sequence[str]) -> list[GroupDescription]:
        return await self._call(methods.DESCRIBE_GROUPS, group_ids)

    async def list_groups(self) -> list[GroupDescription]:
        return await self._call(methods.LIST_GROUPS)

    async def delete_group(self, group_id: str) -> Refusal | None:
        return await self._call(methods.DELETE_GROUP, group_id)

    async def delete_offsets(self, group_id: str, partitions: Sequence[tuple[TopicId, int]]) -> OffsetDeleteAnswer:
        return await self._call(methods.DELETE_OFFSETS, group_id, partitions)

    async def group_lags(self) -> list[GroupLag]:
        return await self._call(methods.GROUP_LAGS)
