"""Consumers: readers that tail every partition from its start, and members of a group that commit what they read."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from typing import Any

from tests.simulation.kafka import TOPIC, Cluster, milliseconds, schema
from tests.simulation.referee import Referee
from tests.simulation.sockets import Disconnected

REQUEST_SECONDS = 8.0
COORDINATOR_SECONDS = 20.0
"""As with Kafka's clients, more than an agent takes to answer that it cannot."""
FETCH_WAIT_MS = 1_000
OFFSET_OUT_OF_RANGE = 1
NOT_LEADER = 6
REBALANCE_IN_PROGRESS = 27
MEMBER_ID_REQUIRED = 79
SLOW_SHARE = 0.04
"""Of what a member reads, it works on so much for longer than its session lasts, and commits all the same."""
REJOIN = frozenset({22, 25, 27})
"""ILLEGAL_GENERATION, UNKNOWN_MEMBER_ID, REBALANCE_IN_PROGRESS."""


def decode_records(data: bytes) -> tuple[list[tuple[int, bytes]], int, int]:
    """(offset, value) of every record of the whole batches in a fetch answer, which are plain and uncompressed; the
    first batch's base offset, and the offset after the last."""
    found: list[tuple[int, bytes]] = []
    position, first, following = 0, -1, -1
    while position + 61 <= len(data):
        base_offset, length = struct.unpack_from(">qi", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        last_delta = struct.unpack_from(">i", data, position + 23)[0]
        count = struct.unpack_from(">i", data, position + 57)[0]
        at = position + 61
        for _ in range(count):
            size, at = _varint(data, at)
            record_end = at + size
            at += 1
            _, at = _varint(data, at)
            delta, at = _varint(data, at)
            key_size, at = _varint(data, at)
            at += max(0, key_size)
            value_size, at = _varint(data, at)
            found.append((base_offset + delta, bytes(data[at : at + value_size])))
            at = record_end
        if first < 0:
            first = base_offset
        following = base_offset + last_delta + 1
        position = end
    return found, first, following


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


class PartitionReader:
    """Reads one partition from ``offset`` on, and tells the referee what it saw."""

    def __init__(self, name: str, cluster: Cluster, referee: Referee, partition: int, offset: int) -> None:
        self.name = name
        self.partition = partition
        self.offset = offset
        self._cluster = cluster
        self._referee = referee
        self.high_watermark = -1
        self.final = False
        """Part of the one read of everything at the end."""

    async def step(self, rng: random.Random, max_wait_ms: int = FETCH_WAIT_MS) -> int:
        """One fetch; how many records it brought. Errors cost a pause."""
        try:
            host = await self._cluster.leader(self.partition)
            answer = await self._cluster.ask(host, self._request(max_wait_ms), REQUEST_SECONDS)
        except Disconnected:
            self._cluster.doubt(self.partition)
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            return 0
        if not answer.responses:  # the whole request failed, as Kafka's do when a broker meets a fault of its own
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            return 0
        row = answer.responses[0].partitions[0]
        code = int(row.error_code)
        if code != 0:
            if code == OFFSET_OUT_OF_RANGE:
                self._referee.out_of_range(self.name, self.partition, self.offset)
            if code == NOT_LEADER:
                self._cluster.doubt(self.partition)
            await asyncio.sleep(rng.uniform(0.05, 0.3))
            return 0
        self.high_watermark = int(row.high_watermark)
        self._referee.high_watermark_seen(self.name, self.partition, self.high_watermark)
        records, first, following = decode_records(bytes(row.records or b""))
        if not records:
            return 0
        if first > self.offset:
            self._referee.skipped(self.name, self.partition, self.offset, first)
        seen = 0
        for offset, value in records:
            if offset >= self.offset:
                self._referee.read(self.name, self.partition, offset, value, self.high_watermark)
                if self.final:
                    self._referee.history.read_finally(self.partition, offset, value)
                seen += 1
        self.offset = max(self.offset, following)
        return seen

    def _request(self, max_wait_ms: int) -> Any:
        module = schema("fetch", 11)
        return module.FetchRequest(
            max_wait=milliseconds(max_wait_ms),
            min_bytes=1,
            max_bytes=1 << 20,
            topics=(
                module.FetchTopic(
                    topic=TOPIC,
                    partitions=(
                        module.FetchPartition(
                            partition=self.partition, fetch_offset=self.offset, partition_max_bytes=1 << 18
                        ),
                    ),
                ),
            ),
            forgotten_topics_data=(),
        )


class SimConsumer:
    """Tails all partitions from offset 0; now and then it goes back, as a replay does."""

    def __init__(self, name: str, cluster: Cluster, rng: random.Random, referee: Referee, partitions: int) -> None:
        self.stopping = False
        self._rng = rng
        self.readers = [PartitionReader(name, cluster, referee, partition, 0) for partition in range(partitions)]

    async def run(self) -> None:
        await asyncio.gather(*(self._tail(reader) for reader in self.readers))

    async def _tail(self, reader: PartitionReader) -> None:
        while not self.stopping:
            await reader.step(self._rng)
            if self._rng.random() < 0.01:
                reader.offset = self._rng.randint(0, reader.offset)


class _Rejoin(Exception):
    """The group has moved on."""


class GroupMember:
    """One member of a consumer group with the classic protocol: reads what it is assigned, commits as it goes."""

    def __init__(
        self, name: str, group: str, cluster: Cluster, rng: random.Random, referee: Referee, partitions: int
    ) -> None:
        self.name = name
        self.group = group
        self.stopping = False
        self.commits = 0
        self.failures: Counter[str] = Counter()
        self._cluster = cluster
        self._rng = rng
        self._referee = referee
        self._partitions = partitions
        self._coordinator: str | None = None
        self._member_id = ""
        self._generation = -1

    async def run(self) -> None:
        """Join again and again until :attr:`stopping`."""
        while not self.stopping:
            try:
                assigned = await self._join()
                await self._consume(assigned)
            except _Rejoin as error:
                self.failures[str(error)] += 1
            except Disconnected as error:
                self.failures[str(error)] += 1
                self._coordinator = None
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))

    async def _ask(self, request: Any, seconds: float = COORDINATOR_SECONDS) -> Any:
        if self._coordinator is None:
            module = schema("find_coordinator", 3)
            answer = await self._cluster.ask(
                await self._cluster.any_host(), module.FindCoordinatorRequest(key=self.group, key_type=0), 5.0
            )
            if answer.error_code != 0:
                raise Disconnected(f"no coordinator: {answer.error_code}")
            self._coordinator = str(answer.host)
        return await self._cluster.ask(self._coordinator, request, seconds)

    def _check(self, what: str, code: int) -> None:
        """:raises _Rejoin: join again. :raises Disconnected: another coordinator, later."""
        if code == 0:
            return
        if code in REJOIN:
            if code == 25:
                self._member_id = ""
            raise _Rejoin(f"{what}: {code}")
        raise Disconnected(f"{what}: {code}")

    async def _join(self) -> list[int]:
        module = schema("join_group", 5)
        while True:
            answer = await self._ask(
                module.JoinGroupRequest(
                    group_id=self.group,
                    session_timeout=milliseconds(6_000),
                    rebalance_timeout=milliseconds(8_000),
                    member_id=self._member_id,
                    protocol_type="consumer",
                    protocols=(module.JoinGroupRequestProtocol(name="range", metadata=self.name.encode()),),
                ),
                30.0,
            )
            if int(answer.error_code) == MEMBER_ID_REQUIRED:
                self._member_id = str(answer.member_id)
                continue
            self._check("join", int(answer.error_code))
            break
        self._member_id = str(answer.member_id)
        self._generation = int(answer.generation_id)
        assignments: tuple[Any, ...] = ()
        module = schema("sync_group", 3)
        if answer.leader == self._member_id:
            members = sorted(str(member.member_id) for member in answer.members)
            assignments = tuple(
                module.SyncGroupRequestAssignment(
                    member_id=member,
                    assignment=bytes(
                        partition for partition in range(self._partitions) if partition % len(members) == index
                    ),
                )
                for index, member in enumerate(members)
            )
        synced = await self._ask(
            module.SyncGroupRequest(
                group_id=self.group,
                generation_id=self._generation,
                member_id=self._member_id,
                assignments=assignments,
            ),
            20.0,
        )
        self._check("sync", int(synced.error_code))
        return list(bytes(synced.assignment))

    async def _consume(self, assigned: list[int]) -> None:
        readers = [
            PartitionReader(self.name, self._cluster, self._referee, partition, await self._committed(partition))
            for partition in assigned
        ]
        loop = asyncio.get_running_loop()
        beaten_at = loop.time()
        while not self.stopping:
            for reader in readers:
                if await reader.step(self._rng, 300) and self._rng.random() < 0.7:
                    if self._rng.random() < SLOW_SHARE:
                        await asyncio.sleep(self._rng.uniform(2.0, 11.0))
                    await self._commit(reader.partition, reader.offset)
                if loop.time() - beaten_at > 1.0:
                    await self._beat()
                    beaten_at = loop.time()
            if not readers:
                await asyncio.sleep(1.0)
                await self._beat()

    async def _beat(self) -> None:
        answer = await self._ask(
            schema("heartbeat", 3).HeartbeatRequest(
                group_id=self.group, generation_id=self._generation, member_id=self._member_id
            )
        )
        self._check("heartbeat", int(answer.error_code))

    async def _committed(self, partition: int) -> int:
        """Where the group is, as the coordinator says."""
        floor = self._referee.history.committed_floor(self.group, partition)
        offset = await fetch_offset(self._ask, self.group, partition)
        self._referee.committed_answer(self.group, partition, floor, offset)
        return offset

    async def _commit(self, partition: int, offset: int) -> None:
        module = schema("offset_commit", 7)
        answer = await self._ask(
            module.OffsetCommitRequest(
                group_id=self.group,
                generation_id_or_member_epoch=self._generation,
                member_id=self._member_id,
                topics=(
                    module.OffsetCommitRequestTopic(
                        name=TOPIC,
                        partitions=(
                            module.OffsetCommitRequestPartition(
                                partition_index=partition, committed_offset=offset, committed_metadata=""
                            ),
                        ),
                    ),
                ),
            )
        )
        self._check("commit", int(answer.topics[0].partitions[0].error_code))
        self.commits += 1
        self._referee.committed(self.group, partition, offset)


async def fetch_offset(ask: Any, group: str, partition: int) -> int:
    """The group's committed offset, 0 when there is none. :raises Disconnected:"""
    module = schema("offset_fetch", 5)
    answer = await ask(
        module.OffsetFetchRequest(
            group_id=group, topics=(module.OffsetFetchRequestTopic(name=TOPIC, partition_indexes=(partition,)),)
        )
    )
    row = answer.topics[0].partitions[0] if answer.topics else None
    code = int(answer.error_code) or (0 if row is None else int(row.error_code))
    if code != 0 or row is None:
        raise Disconnected(f"offsets of {group}: {code}")
    return max(0, int(row.committed_offset))
