"""Topics as the data path feels them: recompression, LogAppendTime, auto-creation, deletion and re-creation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.raw_kafka import CODECS, RawKafka, batches, milliseconds, record_batch, records, schema

pytestmark = pytest.mark.integration


@pytest.fixture
def connection(bootstrap: str) -> Iterator[RawKafka]:
    with RawKafka(bootstrap) as connection:
        yield connection


VALUES = [b"compress me " * 20 + b"%d" % number for number in range(50)]


@pytest.mark.parametrize("codec", CODECS)
def test_batches_of_every_codec_pass_through_untouched(
    connection: RawKafka, unique: Callable[[str], str], codec: str
) -> None:
    topic = unique(f"codec-{codec}")
    connection.create_topic(topic)
    batch = record_batch(*VALUES, codec=codec)
    assert connection.produce(topic, batch).error_code == 0
    fetched = connection.fetch(topic, 0).records
    assert bytes(fetched)[16:] == batch[16:], "all but base offset and leader epoch"
    assert batches(fetched)[0].codec == CODECS[codec]


@pytest.mark.parametrize("target", ["uncompressed", "gzip", "snappy", "lz4", "zstd"])
def test_compression_type_of_the_topic_recompresses(
    connection: RawKafka, unique: Callable[[str], str], target: str
) -> None:
    topic = unique(f"recompress-{target}")
    connection.create_topic(topic, configs={"compression.type": target})
    for codec in CODECS:
        assert connection.produce(topic, record_batch(*VALUES, codec=codec, timestamp_ms=_now_ms())).error_code == 0
    found = batches(connection.fetch(topic, 0).records)
    assert {batch.codec for batch in found} == {CODECS.get(target, 0)}
    values = [value for batch in found for _, _, _, value in batch.records]
    offsets = [offset for batch in found for offset, _, _, _ in batch.records]
    assert values == VALUES * len(CODECS)
    assert offsets == list(range(len(values)))


@pytest.mark.parametrize("codec", CODECS)
def test_log_append_time_replaces_the_producers_clock(
    connection: RawKafka, unique: Callable[[str], str], codec: str
) -> None:
    topic = unique(f"append-time-{codec}")
    connection.create_topic(topic, configs={"message.timestamp.type": "LogAppendTime"})
    before = _now_ms()
    answer = connection.produce(topic, record_batch(*VALUES, codec=codec, timestamp_ms=1_000))
    after = _now_ms()
    assert answer.error_code == 0
    assert before <= round(answer.log_append_time.timestamp() * 1000) <= after
    (batch,) = batches(connection.fetch(topic, 0).records)
    assert batch.log_append_time
    assert before <= batch.max_timestamp <= after
    assert {timestamp for _, timestamp, _, _ in batch.records} == {batch.max_timestamp}
    assert [value for _, _, _, value in batch.records] == VALUES


def test_create_time_is_kept_and_answered_as_such(connection: RawKafka, unique: Callable[[str], str]) -> None:
    topic = unique("create-time")
    connection.create_topic(topic)
    stamp = _now_ms() - 60_000
    answer = connection.produce(topic, record_batch(b"x", timestamp_ms=stamp))
    assert answer.log_append_time is None
    (batch,) = batches(connection.fetch(topic, 0).records)
    assert (batch.log_append_time, batch.max_timestamp) == (False, stamp)


def test_a_timestamp_in_the_far_future_is_refused(connection: RawKafka, unique: Callable[[str], str]) -> None:
    topic = unique("future")
    connection.create_topic(topic)
    assert connection.produce(topic, record_batch(b"x", timestamp_ms=_now_ms() + 7_200_000)).error_code == 32
    assert connection.high_watermark(topic) == 0


def test_max_message_bytes_is_enforced(connection: RawKafka, unique: Callable[[str], str]) -> None:
    topic = unique("large")
    connection.create_topic(topic, configs={"max.message.bytes": "2000"})
    assert connection.produce(topic, record_batch(b"x" * 3000)).error_code == 10
    assert connection.produce(topic, record_batch(b"x" * 1500)).error_code == 0


def test_a_compacted_topic_wants_keys(connection: RawKafka, unique: Callable[[str], str]) -> None:
    topic = unique("compacted")
    connection.create_topic(topic, configs={"cleanup.policy": "compact"})
    answer = connection.produce(topic, record_batch(b"no key", b"nor here"))
    assert answer.error_code == 87
    assert [error.batch_index for error in answer.record_errors] == [0, 1]
    assert connection.produce(topic, record_batch(b"value", key=b"key")).error_code == 0


def test_metadata_creates_a_topic_only_when_asked_to(connection: RawKafka, unique: Callable[[str], str]) -> None:
    topic = unique("auto")
    (missing,) = connection.metadata(topic).topics
    assert missing.error_code == 3
    answer = connection.metadata(topic, create=True).topics[0]
    deadline = time.monotonic() + 10
    while answer.error_code in (3, 5) and time.monotonic() < deadline:
        time.sleep(0.05)
        answer = connection.metadata(topic).topics[0]
    assert (answer.error_code, len(answer.partitions)) == (0, 4)


@pytest.mark.parametrize("name", ["", ".", "..", "with space", "a" * 250, "slash/es"])
def test_impossible_names_are_not_created(connection: RawKafka, name: str) -> None:
    (answer,) = connection.metadata(name, create=True).topics
    assert answer.error_code == 17


def test_a_topic_created_again_shares_nothing_with_the_old_one(
    connection: RawKafka, unique: Callable[[str], str]
) -> None:
    topic = unique("reborn")
    seen_ids = set()
    for life in range(4):
        connection.create_topic(topic)
        seen_ids.add(connection.topic_id(topic))
        for number in range(5):
            answer = connection.produce(topic, record_batch(b"life %d, record %d" % (life, number)))
            assert (answer.error_code, answer.base_offset) == (0, number)
        expected = [(number, b"life %d, record %d" % (life, number)) for number in range(5)]
        assert records(connection.fetch(topic, 0).records) == expected
        connection.delete_topic(topic)
        assert connection.fetch(topic, 0).error_code == 3
        assert connection.produce(topic, record_batch(b"nobody home")).error_code == 3
    assert len(seen_ids) == 4


def test_an_old_consumer_with_the_old_topic_id_reads_nothing_of_the_new_topic(
    connection: RawKafka, unique: Callable[[str], str]
) -> None:
    topic = unique("old-id")
    connection.create_topic(topic)
    old_id = connection.topic_id(topic)
    connection.produce(topic, record_batch(b"old"))
    assert _fetch_by_id(connection, old_id, 0).error_code == 0
    connection.delete_topic(topic)
    connection.create_topic(topic)
    connection.produce(topic, record_batch(b"new", b"newer"))
    for offset in (0, 1):
        answer = _fetch_by_id(connection, old_id, offset)
        assert answer.error_code == 100, "UNKNOWN_TOPIC_ID"
        assert records(answer.records) == []
    fresh = _fetch_by_id(connection, connection.topic_id(topic), 0)
    assert records(fresh.records) == [(0, b"new"), (1, b"newer")]


def test_a_long_poll_on_a_deleted_topic_ends(
    bootstrap: str, connection: RawKafka, unique: Callable[[str], str]
) -> None:
    topic = unique("deleted-under-poll")
    connection.create_topic(topic)
    with RawKafka(bootstrap) as poller:
        poller.send(_fetch_by_id_request(connection.topic_id(topic), 0, max_wait_ms=3_000))
        connection.delete_topic(topic)
        connection.create_topic(topic)
        connection.produce(topic, record_batch(b"not for you"))
        answer = poller.receive().responses[0].partitions[0]
    assert records(answer.records) == []


def _now_ms() -> int:
    return int(time.time() * 1000)


def _fetch_by_id_request(topic_id: object, offset: int, max_wait_ms: int = 0) -> Any:
    module = schema("fetch", 13)
    wanted = module.FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=1 << 20)
    return module.FetchRequest(
        max_wait=milliseconds(max_wait_ms),
        min_bytes=1,
        topics=(module.FetchTopic(topic_id=topic_id, partitions=(wanted,)),),
        forgotten_topics_data=(),
    )


def _fetch_by_id(connection: RawKafka, topic_id: object, offset: int) -> Any:
    return connection.ask(_fetch_by_id_request(topic_id, offset)).responses[0].partitions[0]
