"""Fetch at its corners, on a bare connection: inside batches, tiny limits, long polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.raw_kafka import RawKafka, batches, record_batch, records

pytestmark = pytest.mark.integration


@pytest.fixture
def connection(bootstrap: str) -> Iterator[RawKafka]:
    with RawKafka(bootstrap) as connection:
        yield connection


@pytest.fixture
def topic(connection: RawKafka, unique: Callable[[str], str]) -> str:
    name = unique("fetch")
    connection.create_topic(name)
    return name


def _values(first: int, count: int) -> list[bytes]:
    return [b"value-%d" % number for number in range(first, first + count)]


def _fill(connection: RawKafka, topic: str, batch_count: int = 5, batch_size: int = 10) -> None:
    for number in range(batch_count):
        answer = connection.produce(topic, record_batch(*_values(number * batch_size, batch_size)))
        assert answer.error_code == 0
        assert answer.base_offset == number * batch_size


@pytest.mark.parametrize("offset", [0, 1, 9, 10, 23, 49])
def test_fetch_from_any_offset_reads_the_batch_that_holds_it(connection: RawKafka, topic: str, offset: int) -> None:
    _fill(connection, topic)
    answer = connection.fetch(topic, offset)
    assert answer.error_code == 0
    assert answer.high_watermark == 50
    found = records(answer.records)
    assert found[0][0] == offset - offset % 10, "the answer begins with the whole batch"
    assert found == [(number, b"value-%d" % number) for number in range(found[0][0], 50)]


def test_fetch_at_the_end_is_empty_and_beyond_it_out_of_range(connection: RawKafka, topic: str) -> None:
    _fill(connection, topic, batch_count=1)
    at_end = connection.fetch(topic, 10)
    assert (at_end.error_code, at_end.high_watermark, records(at_end.records)) == (0, 10, [])
    beyond = connection.fetch(topic, 11)
    assert (beyond.error_code, records(beyond.records)) == (1, [])


def test_fetch_of_an_empty_partition_is_empty(connection: RawKafka, topic: str) -> None:
    answer = connection.fetch(topic, 0)
    assert (answer.error_code, answer.high_watermark, records(answer.records)) == (0, 0, [])


def test_fetch_of_what_does_not_exist_says_so(connection: RawKafka, topic: str) -> None:
    assert connection.fetch(topic + "-missing", 0).error_code == 3
    assert connection.fetch(topic, 0, partition=7).error_code == 3


@pytest.mark.parametrize("offset", [0, 5, 30])
def test_max_bytes_1_still_reads_one_whole_batch(connection: RawKafka, topic: str, offset: int) -> None:
    _fill(connection, topic)
    for limits in ({"max_bytes": 1}, {"partition_max_bytes": 1}, {"max_bytes": 1, "partition_max_bytes": 1}):
        found = batches(connection.fetch(topic, offset, **limits).records)
        assert len(found) == 1, f"progress with {limits}"
        assert found[0].base_offset == offset - offset % 10


def test_a_limit_between_batches_cuts_there(connection: RawKafka, topic: str) -> None:
    _fill(connection, topic)
    size = len(record_batch(*_values(10, 10)))
    found = batches(connection.fetch(topic, 10, partition_max_bytes=2 * size + size // 2).records)
    assert [batch.base_offset for batch in found] == [10, 20]


def test_a_long_poll_is_woken_by_the_commit(bootstrap: str, connection: RawKafka, topic: str) -> None:
    woken: list[tuple[float, list[tuple[int, bytes | None]]]] = []

    def poll() -> None:
        with RawKafka(bootstrap) as poller:
            answer = poller.fetch(topic, 0, max_wait_ms=15_000)
            woken.append((time.monotonic(), records(answer.records)))

    for _ in range(3):
        woken.clear()
        thread = threading.Thread(target=poll)
        thread.start()
        time.sleep(0.3)
        assert not woken, "an empty long poll waits"
        assert connection.produce(topic, record_batch(b"wake up")).error_code == 0
        acknowledged = time.monotonic()
        thread.join(10)
        assert woken, "the long poll was not woken"
        assert woken[0][0] - acknowledged < 3
        assert woken[0][1] == [(0, b"wake up")]
        connection.delete_topic(topic)
        connection.create_topic(topic)


def test_a_long_poll_that_nothing_wakes_ends_at_its_time(connection: RawKafka, topic: str) -> None:
    started = time.monotonic()
    answer = connection.fetch(topic, 0, max_wait_ms=400)
    assert 0.35 <= time.monotonic() - started < 5
    assert (answer.error_code, records(answer.records)) == (0, [])


def test_min_bytes_waits_for_enough(bootstrap: str, connection: RawKafka, topic: str) -> None:
    batch = record_batch(b"x" * 500)
    with RawKafka(bootstrap) as poller:
        started = time.monotonic()
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(
                len(records(poller.fetch(topic, 0, max_wait_ms=10_000, min_bytes=4 * len(batch)).records))
            )
        )
        thread.start()
        for _ in range(4):
            time.sleep(0.1)
            assert not answers, "answered before min_bytes were there"
            assert connection.produce(topic, batch).error_code == 0
        thread.join(10)
    assert answers == [4]
    assert time.monotonic() - started < 8
