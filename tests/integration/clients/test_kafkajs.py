"""kafkajs 2.2: produce and consume, keyed and not, all codecs, idempotent. Its groups are in test_groups.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.support.librdkafka import consume, produce
from tests.support.members import start_member, wait_until
from tests.support.raw_kafka import CODECS, RawKafka, batches
from tests.tools import kafkajs

pytestmark = pytest.mark.integration

Unique = Callable[[str], str]


@pytest.fixture(autouse=True)
def _kafkajs() -> None:
    kafkajs.require_kafkajs()


def _produce(bootstrap: str, topic: str, **request: object) -> list[list[int]]:
    command = kafkajs.command("produce.js", bootstrap, topic, json.dumps({"codec": "none", **request}))
    done = subprocess.run(
        command, env=kafkajs.environment(), capture_output=True, text=True, timeout=40, check=False, input=""
    )
    assert done.returncode == 0, done.stderr
    sent: list[list[int]] = json.loads(done.stdout)
    return sent


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(bootstrap: str, unique: Unique, codec: str) -> None:
    topic = unique("kafkajs")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic, partitions=3)
        messages: list[dict[str, object]] = [
            {"key": f"key-{number % 7}" if number % 2 else None, "value": f"message {number} " * 10}
            for number in range(100)
        ]
        sent = _produce(bootstrap, topic, codec=codec, messages=messages)
        assert all(error == 0 and offset == 0 for _, offset, error in sent)
        stored = [batch for number in range(3) for batch in batches(connection.fetch(topic, 0, number).records)]
    assert {batch.codec for batch in stored} == {CODECS[codec]}
    member = start_member("kafkajs", bootstrap, unique("group"), topic)
    wait_until(lambda: len(member.records) >= 100, 20, lambda: f"{len(member.records)} {member.output[-3:]}")
    member.leave()
    assert sorted(value for _, _, value in member.records) == sorted(str(message["value"]) for message in messages)


def test_it_reads_what_librdkafka_compressed(bootstrap: str, unique: Unique) -> None:
    topic = unique("kafkajs-reads")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
    for codec in CODECS:
        produce(
            bootstrap,
            topic,
            [{"value": f"{codec} {number} ".encode() * 20} for number in range(20)],
            compression_type=codec,
        )
    member = start_member("kafkajs", bootstrap, unique("group"), topic)
    wait_until(lambda: len(member.records) >= 100, 20, lambda: f"{len(member.records)} {member.output[-3:]}")
    member.leave()
    assert [value for _, _, value in member.records] == [
        f"{codec} {number} " * 20 for codec in CODECS for number in range(20)
    ]


def test_an_idempotent_producer(bootstrap: str, unique: Unique) -> None:
    topic = unique("kafkajs-idempotent")
    with RawKafka(bootstrap) as connection:
        connection.create_topic(topic)
    messages = [{"value": str(number)} for number in range(50)]
    assert _produce(bootstrap, topic, idempotent=True, messages=messages) == [[0, 0, 0]]
    assert [message.value() for message in consume(bootstrap, topic, 50)] == [b"%d" % number for number in range(50)]
