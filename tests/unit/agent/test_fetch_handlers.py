"""Fetch, ListOffsets and OffsetForLeaderEpoch as clients see them, over a small world."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader
from kio.static.primitive import i32Timedelta

from agent.context import Call
from agent.fetch import timestamps
from agent.handlers import fetch, list_offsets, offset_for_leader_epoch
from agent.topics import TopicDirectory
from agent.wire.codec import encode_response
from ingest.compression import iterate_records
from metadata.model import Topic
from tests.unit.agent.fetch.world import TOPIC, World, make_batch, records_of

TOPIC_UUID = uuid.UUID(bytes=TOPIC)


class Clients:
    """Sends requests to the handlers as the dispatcher would, and reads the answers with kio."""

    def __init__(self) -> None:
        self.world = World()
        self.world.create(0)
        self.world.create(1)
        topics = TopicDirectory()
        topics.reset([Topic(TOPIC, "logs", 2, {}, 0)])
        self.agent: Any = SimpleNamespace(
            fetcher=self.world.fetcher, metadata=self.world.metadata, topics=topics, budget=self.world.budget
        )
        self.held: list[Any] = []

    async def fetch(
        self,
        version: int,
        partitions: list[dict[str, Any]],
        *,
        topic: str = "logs",
        topic_id: uuid.UUID | None = TOPIC_UUID,
        max_wait_ms: int = 0,
        **fields: Any,
    ) -> Any:
        schema = load_request_schema(1, version)
        module = __import__(schema.__module__, fromlist=["x"])
        asked = [
            known(module.FetchPartition, **{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 2**20} | fields)
            for fields in partitions
        ]
        request = known(
            schema,
            replica_id=-1,
            max_wait=i32Timedelta.parse(timedelta(milliseconds=max_wait_ms)),
            **{"min_bytes": 1, "max_bytes": 2**25, "isolation_level": 0} | fields,
            topics=(known(module.FetchTopic, topic=topic, topic_id=topic_id, partitions=tuple(asked)),),
            forgotten_topics_data=(),
        )
        encoded = await fetch.handle(Call(1, version, 7, "c", "/1"), request, self.agent)
        data = b"".join(encoded.chunks)
        assert len(data) == encoded.byte_length
        response, size = entity_reader(load_response_schema(1, version))(data, 0)
        assert size == len(data)
        if encoded.release is not None:
            encoded.release()
        return response

    async def partition(self, version: int, **fields: Any) -> Any:
        response = await self.fetch(version, [fields])
        return response.responses[0].partitions[0]

    async def list_offsets(self, version: int, asked: list[dict[str, Any]], topic: str = "logs") -> list[Any]:
        schema = load_request_schema(2, version)
        module = __import__(schema.__module__, fromlist=["x"])
        partitions = tuple(known(module.ListOffsetsPartition, **{"partition_index": 0} | fields) for fields in asked)
        request = known(
            schema,
            replica_id=-1,
            isolation_level=0,
            topics=(module.ListOffsetsTopic(name=topic, partitions=partitions),),
        )
        body = await list_offsets.handle(Call(2, version, 7, "c", "/1"), request, self.agent)
        encode_response(2, version, 7, body)
        return [SimpleNamespace(**entry) for entry in body["topics"][0]["partitions"]]

    async def offset_at(self, timestamp: int, version: int = 7) -> tuple[int, int, int]:
        (entry,) = await self.list_offsets(version, [{"timestamp": timestamp}])
        assert entry.error_code == ErrorCode.none
        return entry.offset, entry.timestamp, entry.leader_epoch


def known(entity: Any, **fields: Any) -> Any:
    return entity(**{name: value for name, value in fields.items() if name in entity.__dataclass_fields__})


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    clients = Clients()
    yield clients
    await clients.world.settle()
    assert clients.world.budget.held_bytes == 0


# --- Fetch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(4, 17))
async def test_every_version_serves_records(clients: Clients, version: int) -> None:
    await clients.world.write([(0, [make_batch([b"a", b"b"]), make_batch([b"x" * 9000])])])
    response = await clients.fetch(version, [{"fetch_offset": 1}, {"partition": 1}])
    (topic,) = response.responses
    assert getattr(topic, "topic", "logs") == "logs"
    assert getattr(topic, "topic_id", TOPIC_UUID) == TOPIC_UUID
    first, second = topic.partitions
    assert records_of([first.records]) == [(0, b"a"), (1, b"b"), (2, b"x" * 9000)]
    assert (first.error_code, first.high_watermark, first.last_stable_offset) == (ErrorCode.none, 3, 3)
    assert (second.partition_index, second.error_code, second.high_watermark, second.records) == (1, 0, 0, b"")
    if version >= 5:
        assert first.log_start_offset == 0
    if version >= 7:
        assert (response.error_code, response.session_id) == (ErrorCode.none, 0)
    if version >= 11:
        assert first.preferred_read_replica == -1


async def test_aborted_transactions_are_null_or_empty_by_isolation_level(clients: Clients) -> None:
    for level, expected in ((0, None), (1, ())):
        response = await clients.fetch(11, [{}], isolation_level=level)
        assert response.responses[0].partitions[0].aborted_transactions == expected


@pytest.mark.parametrize(("session", "epoch", "error"), [(0, -1, 0), (0, 0, 0), (5, 1, 70), (0, 1, 70), (5, -1, 70)])
async def test_sessions_are_never_kept(clients: Clients, session: int, epoch: int, error: int) -> None:
    response = await clients.fetch(12, [{}], session_id=session, session_epoch=epoch)
    assert (response.error_code.value, response.session_id) == (error, 0)
    assert len(response.responses) == (1 if error == 0 else 0)


@pytest.mark.parametrize(("version", "expected"), [(11, 3), (12, 3), (13, 100), (16, 100)])
async def test_unknown_topics(clients: Clients, version: int, expected: int) -> None:
    for topic_id in (uuid.UUID(int=99 << 64), None):
        response = await clients.fetch(version, [{}], topic="nope", topic_id=topic_id, max_wait_ms=60_000)
        (partition,) = response.responses[0].partitions
        assert (partition.error_code.value, partition.high_watermark, partition.records) == (expected, -1, b"")


@pytest.mark.parametrize("version", [11, 16])
async def test_unknown_partition_of_a_known_topic(clients: Clients, version: int) -> None:
    response = await clients.fetch(version, [{"partition": 9}, {}], max_wait_ms=60_000)
    assert [entry.error_code.value for entry in response.responses[0].partitions] == [3, 0]


@pytest.mark.parametrize(("epoch", "error"), [(-1, 0), (0, 0), (1, 75), (-2, 74)])
async def test_current_leader_epoch_is_checked(clients: Clients, epoch: int, error: int) -> None:
    assert (await clients.partition(9, current_leader_epoch=epoch)).error_code.value == error


async def test_out_of_range_has_no_offsets(clients: Clients) -> None:
    entry = await clients.partition(11, fetch_offset=1)
    assert (entry.error_code.value, entry.high_watermark, entry.last_stable_offset) == (1, -1, -1)
    assert (entry.log_start_offset, entry.records) == (-1, b"")


@pytest.mark.parametrize(("version", "error"), [(4, 76), (9, 76), (10, 0), (16, 0)])
async def test_zstd_needs_version_10(clients: Clients, version: int, error: int) -> None:
    await clients.world.write([(0, [make_batch([b"a"], attributes=4)])])
    entry = await clients.partition(version)
    assert entry.error_code.value == error
    assert bool(entry.records) == (error == 0)


async def test_failures_become_errors_consumers_expect(clients: Clients) -> None:
    (extent,) = await clients.world.write([(0, [make_batch([b"a"])])], tail=False)
    clients.world.metadata.unavailable = True
    assert (await clients.partition(11)).error_code == ErrorCode.kafka_storage_error
    clients.world.metadata.unavailable = False
    await clients.world.store.delete([extent.segment_key])
    assert (await clients.partition(11)).error_code == ErrorCode.kafka_storage_error
    await clients.world.store.put(extent.segment_key, [bytes(1000)], 0)
    assert (await clients.partition(11)).error_code == ErrorCode.corrupt_message


async def test_the_answer_holds_its_bytes_until_released(clients: Clients) -> None:
    await clients.world.write([(0, [make_batch([b"a" * 5000])])])
    schema = load_request_schema(1, 11)
    module = __import__(schema.__module__, fromlist=["x"])
    partition = module.FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=2**20)
    request = schema(
        replica_id=-1,
        max_wait=i32Timedelta.parse(timedelta(0)),
        min_bytes=1,
        topics=(module.FetchTopic(topic="logs", partitions=(partition,)),),
        forgotten_topics_data=(),
        rack_id="",
    )
    encoded = await fetch.handle(Call(1, 11, 7, "c", "/1"), request, clients.agent)
    assert 0 < clients.world.budget.by_purpose["response"] < 200
    clients.world.evict()
    assert clients.world.budget.by_purpose["cache"] > 5000
    encoded.release()
    assert clients.world.budget.held_bytes == 0


async def test_a_long_poll_is_woken_by_the_commit(clients: Clients) -> None:
    waiting = asyncio.create_task(clients.fetch(16, [{}, {"partition": 1}], max_wait_ms=60_000))
    while clients.world.metrics.waiting == 0:
        await asyncio.sleep(0)
    await clients.world.write([(1, [make_batch([b"a"])])])
    response = await asyncio.wait_for(waiting, 5)
    assert records_of([response.responses[0].partitions[1].records]) == [(0, b"a")]


# --- ListOffsets ----------------------------------------------------------------------------------------


async def test_ends_of_the_log(clients: Clients) -> None:
    await clients.world.write([(0, [make_batch([b"a", b"b"])])])
    clients.world.metadata.logs[TOPIC, 0].log_start_offset = 1
    for version in range(1, 8):
        assert await clients.offset_at(-1, version) == (2, -1, 0)
        assert await clients.offset_at(-2, version) == (1, -1, 0)


@pytest.mark.parametrize(("timestamp", "version"), [(-3, 6), (-4, 7), (-5, 7), (-100, 1)])
async def test_times_a_version_does_not_know_are_unsupported(clients: Clients, timestamp: int, version: int) -> None:
    (entry,) = await clients.list_offsets(version, [{"timestamp": timestamp}])
    assert (entry.error_code, entry.offset, entry.timestamp) == (ErrorCode.unsupported_version, -1, -1)


async def test_timestamps_find_the_first_record_at_or_after_them(clients: Clients) -> None:
    world = clients.world
    await world.write(
        [(0, [make_batch([b"a", b"b"], [100, 110]), make_batch([b"c", b"d", b"e"], [120, 115, 150])])],
        max_timestamp_ms=150,
        tail=False,
    )
    await world.write([(0, [make_batch([b"f"], [140])])], max_timestamp_ms=140)
    await world.write([(0, [make_batch([b"g", b"h"], [200, 300], attributes=8)])], max_timestamp_ms=300)
    expected = {0: 0, 100: 0, 101: 1, 110: 1, 111: 2, 120: 2, 121: 4, 150: 4, 151: 6, 300: 6}
    times = {0: 100, 1: 110, 2: 120, 4: 150, 6: 300}
    for timestamp, offset in expected.items():
        assert await clients.offset_at(timestamp) == (offset, times[offset], 0)
    assert await clients.offset_at(301) == (-1, -1, -1)
    assert await clients.offset_at(-3) == (6, 300, 0)


async def test_an_overstated_timestamp_is_searched_behind(clients: Clients) -> None:
    world = clients.world
    await world.write([(0, [make_batch([b"a"], [100])])], max_timestamp_ms=500)
    await world.write([(0, [make_batch([b"b"], [120])])], max_timestamp_ms=120)
    await world.write([(0, [make_batch([b"c"], [100])])], max_timestamp_ms=500)
    await world.write([(0, [make_batch([b"d", b"e"], [110, 400])])], max_timestamp_ms=400)
    assert await clients.offset_at(130) == (4, 400, 0)
    assert await clients.offset_at(450) == (-1, -1, -1)


async def test_a_batch_that_cannot_be_read_is_answered_by_its_header(clients: Clients) -> None:
    await clients.world.write(
        [(0, [make_batch([b"a"]), make_batch([b"b"], [7_000], attributes=1)])], max_timestamp_ms=7_000
    )
    assert await clients.offset_at(5_000) == (1, 7_000, 0)


async def test_a_batch_too_large_to_walk_is_answered_by_its_header(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([b"v" * 100] * 10, [1_000 + number for number in range(10)])
    await clients.world.write([(0, [make_batch([b"a"]), batch])], max_timestamp_ms=1_009)
    monkeypatch.setattr(timestamps, "RECORDS_AT_ONCE", 3)
    assert await clients.offset_at(1_005) == (6, 1_005, 0)
    monkeypatch.setattr(timestamps, "SEARCHED_RECORDS_MAX", 9)
    assert await clients.offset_at(1_005) == (1, 1_009, 0)
    monkeypatch.setattr(timestamps, "SEARCHED_RECORDS_MAX", 10)
    monkeypatch.setattr(timestamps, "SEARCHED_BYTES_MAX", 1_000)
    assert await clients.offset_at(1_005) == (1, 1_009, 0)


async def test_only_one_batch_is_walked_at_a_time_and_not_for_a_client_that_left(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [1_000] * 2_000 + [5_000]
    await clients.world.write(
        [(partition, [make_batch([b"v"] * len(times), times)]) for partition in (0, 1)], max_timestamp_ms=5_000
    )
    walking, most, steps = 0, 0, 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal walking, most, steps
        walking += 1
        most = max(most, walking)
        try:
            for record in iterate_records(*arguments, **named):
                steps += 1
                yield record
        finally:
            walking -= 1

    monkeypatch.setattr(timestamps, "iterate_records", counted)
    monkeypatch.setattr(timestamps, "RECORDS_AT_ONCE", 10)
    asked = [{"timestamp": 4_000, "partition_index": partition} for partition in (0, 1)]
    entries = await clients.list_offsets(7, asked)
    assert [entry.offset for entry in entries] == [2_000, 2_000]
    assert (most, steps) == (1, 2 * len(times))
    steps = 0
    leaving = asyncio.create_task(clients.list_offsets(7, asked))
    while steps < 10:
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert steps < len(times) / 2
    assert clients.world.budget.by_purpose["request"] == 0
    assert await clients.offset_at(4_000) == (2_000, 5_000, 0)


async def test_empty_unknown_repeated_and_fenced(clients: Clients) -> None:
    assert await clients.offset_at(5) == (-1, -1, -1)
    assert await clients.offset_at(-3) == (-1, -1, -1)
    assert await clients.offset_at(-1) == (0, -1, 0)
    (entry,) = await clients.list_offsets(7, [{"timestamp": -1, "partition_index": 9}])
    assert entry.error_code == ErrorCode.unknown_topic_or_partition
    (entry,) = await clients.list_offsets(7, [{"timestamp": -1}], topic="nope")
    assert (entry.error_code, entry.leader_epoch) == (ErrorCode.unknown_topic_or_partition, -1)
    repeated = await clients.list_offsets(
        7, [{"timestamp": -1}, {"timestamp": -2}, {"timestamp": -1, "partition_index": 1}]
    )
    assert [entry.error_code.value for entry in repeated] == [42, 42, 0]
    for epoch, error in ((1, 75), (-3, 74), (0, 0), (-1, 0)):
        (entry,) = await clients.list_offsets(4, [{"timestamp": -1, "current_leader_epoch": epoch}])
        assert entry.error_code.value == error
    clients.world.metadata.unavailable = True
    (entry,) = await clients.list_offsets(7, [{"timestamp": -1}])
    assert entry.error_code == ErrorCode.kafka_storage_error


# --- OffsetForLeaderEpoch -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_the_only_epoch_ends_at_the_log_end(clients: Clients, version: int) -> None:
    await clients.world.write([(0, [make_batch([b"a", b"b"])])])
    schema = load_request_schema(23, version)
    module = __import__(schema.__module__, fromlist=["x"])
    cases = [
        ({"leader_epoch": 0}, (0, 0, 2)),
        ({"leader_epoch": 1}, (0, -1, -1)),
        ({"leader_epoch": -1}, (0, -1, -1)),
        ({"leader_epoch": 0, "current_leader_epoch": 0}, (0, 0, 2)),
        ({"leader_epoch": 0, "current_leader_epoch": 3}, (75, -1, -1)),
        ({"leader_epoch": 0, "current_leader_epoch": -2}, (74, -1, -1)),
        ({"leader_epoch": 0, "partition": 9}, (3, -1, -1)),
    ]
    partitions = tuple(known(module.OffsetForLeaderPartition, **{"partition": 0} | fields) for fields, _ in cases)
    request = schema(
        topics=tuple(module.OffsetForLeaderTopic(topic=name, partitions=partitions) for name in ("logs", "x"))
    )
    body = await offset_for_leader_epoch.handle(Call(23, version, 7, "c", "/1"), request, clients.agent)
    encode_response(23, version, 7, body)
    known_topic, unknown_topic = body["topics"]
    answers = [(int(e["error_code"]), e["leader_epoch"], e["end_offset"]) for e in known_topic["partitions"]]
    assert answers == [expected for _, expected in cases]
    assert {int(entry["error_code"]) for entry in unknown_topic["partitions"]} == {3}
