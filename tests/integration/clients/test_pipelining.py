"""Many produce requests on one connection, sent before the first is answered."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support.cluster import TidelogProcess
from tests.support.raw_kafka import RawKafka, fetch_request, produce_request, record_batch, records

pytestmark = pytest.mark.integration

REQUESTS = 64


def test_64_produces_sent_at_once_share_one_linger_and_are_answered_in_order(
    tidelog: Callable[..., TidelogProcess],
) -> None:
    server = tidelog(settings={"INGEST__LINGER_MS": "250"})
    with RawKafka(server.bootstrap) as connection:
        connection.create_topic("pipelined")
        assert connection.produce("pipelined", record_batch(b"warm up")).error_code == 0
        started = time.monotonic()
        connection.send(*(produce_request("pipelined", record_batch(b"%d" % number)) for number in range(REQUESTS)))
        offsets = []
        for _ in range(REQUESTS):
            partition = connection.receive().responses[0].partition_responses[0]
            assert partition.error_code == 0
            offsets.append(partition.base_offset)
        took_s = time.monotonic() - started
        assert offsets == list(range(1, REQUESTS + 1)), "in order, each with its own offset"
        # One after the other they would take 64 x 250 ms = 16 s.
        assert 0.15 < took_s < 3
        found = records(connection.fetch("pipelined", 1).records)
        assert found == [(number + 1, b"%d" % number) for number in range(REQUESTS)]


def test_other_requests_take_their_turn_between_produces(bootstrap: str, unique: Callable[[str], str]) -> None:
    topic = unique("turns")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic, partitions=3)
        for number in range(20):
            connection.send(
                produce_request(topic, record_batch(b"%d" % number), partition=number % 3),
                fetch_request(topic, 0, partition=number % 3),
            )
        for number in range(20):
            assert connection.receive().responses[0].partition_responses[0].base_offset == number // 3
            assert connection.receive().responses[0].partitions[0].error_code == 0
        assert sum(connection.high_watermark(topic, partition) for partition in range(3)) == 20


def test_one_bad_batch_does_not_disturb_its_neighbours(bootstrap: str, unique: Callable[[str], str]) -> None:
    topic = unique("neighbours")
    good = record_batch(b"good")
    bad = good[:-1] + bytes([good[-1] ^ 0xFF])
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
        connection.send(*(produce_request(topic, batch) for batch in (good, bad, good, bad, good)))
        answers = [connection.receive().responses[0].partition_responses[0] for _ in range(5)]
        assert [(answer.error_code, answer.base_offset) for answer in answers] == [
            (0, 0),
            (2, -1),
            (0, 1),
            (2, -1),
            (0, 2),
        ]


def test_acks_0_is_never_answered_and_still_stored(bootstrap: str, unique: Callable[[str], str]) -> None:
    topic = unique("acks-0")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
        frame = connection.encode(produce_request(topic, record_batch(b"fire and forget"), acks=0))
        connection.expect_no_answer()
        connection.send_bytes(frame)
        answer = connection.produce(topic, record_batch(b"and then"))
        assert (answer.error_code, answer.base_offset) == (0, 1)


def test_an_error_under_acks_0_closes_the_connection(bootstrap: str, unique: Callable[[str], str]) -> None:
    topic = unique("acks-0-bad")
    batch = record_batch(b"broken")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
        frame = connection.encode(produce_request(topic, batch[:-1] + bytes([batch[-1] ^ 0xFF]), acks=0))
        connection.expect_no_answer()
        connection.send_bytes(frame)
        assert connection.closed_by_server()
