"""Idempotent producers of others, over an object store on which some segments fail and the ones behind them do not.

What was pipelined behind a failed batch is refused; the clients must take that for what it is and send everything again
in order: nothing lost, nothing twice, no fatal error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from tests.support.cluster import TidelogProcess
from tests.support.raw_kafka import RawKafka
from tests.tools import kafka_java

pytestmark = pytest.mark.e2e

SLOW_STORE = "memory://?put_p50_ms=400&put_p99_ms=4000&get_p50_ms=1&get_p99_ms=2"
SETTINGS = {"INGEST__LINGER_MS": "5", "INGEST__HEDGE_AFTER_MS": "0", "INGEST__UPLOAD_DEADLINE_MS": "1000"}
SETTINGS["INGEST__UPLOADS_MAX"] = "200"
RECORDS = 100
PER_SECOND = 12
ROUNDS_MAX = 6

Rounds = Callable[[TidelogProcess, int, Path], dict[str, int]]


def librdkafka(server: TidelogProcess, number: int, _: Path) -> dict[str, int]:
    """A new producer sends a round of records; value to offset of what was acknowledged."""
    acknowledged: dict[str, int] = {}
    failed: list[str] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            acknowledged[message.value().decode()] = message.offset()
        else:
            failed.append(error.name())

    producer = Producer(
        {
            "bootstrap.servers": server.bootstrap,
            "enable.idempotence": True,
            "linger.ms": 1,
            "batch.num.messages": 1,
            "retry.backoff.ms": 20,
            "message.timeout.ms": 60_000,
            "error_cb": lambda error: failed.append(error.name()) if error.fatal() else None,
        }
    )
    for index in range(RECORDS):
        producer.produce("t", value=f"{number}.{index}", on_delivery=delivered)
        producer.poll(1 / PER_SECOND)
    assert producer.flush(60) == 0
    assert failed == []
    return acknowledged


def java(server: TidelogProcess, number: int, folder: Path) -> dict[str, int]:
    kafka_java.require_java_tools()
    config = folder / "producer.properties"
    config.write_text("enable.idempotence=true\nretries=1000000\nlinger.ms=0\nbatch.size=0\nretry.backoff.ms=20\n")
    arguments = ["--bootstrap-server", server.bootstrap, "--topic", "t", "--command-config", str(config)]
    arguments += ["--max-messages", str(RECORDS), "--throughput", str(PER_SECOND), "--value-prefix", str(number)]
    said = kafka_java.run("org.apache.kafka.tools.VerifiableProducer", *arguments, timeout_s=120)
    events = [json.loads(line) for line in said.splitlines()]
    assert [event for event in events if event["name"] == "producer_send_error"] == []
    return {event["value"]: event["offset"] for event in events if event["name"] == "producer_send_success"}


def stored(server: TidelogProcess) -> list[str]:
    with RawKafka(server.bootstrap) as connection:
        end = connection.high_watermark("t", 0)
    consumer = Consumer({"bootstrap.servers": server.bootstrap, "group.id": "reader"})
    consumer.assign([TopicPartition("t", 0, 0)])
    values: list[str] = []
    while len(values) < end:
        message = consumer.poll(10)
        assert message is not None and message.error() is None
        values.append(message.value().decode())
    consumer.close()
    return values


@pytest.mark.parametrize("produce", [librdkafka, java])
@pytest.mark.slow
def test_producers_recover_from_what_overtook_a_failed_batch(tmp_path: Path, produce: Rounds) -> None:
    sent: list[str] = []
    acknowledged: dict[str, int] = {}
    with TidelogProcess(tmp_path / "tidelog", settings=SETTINGS, storage=SLOW_STORE) as server:
        with RawKafka(server.bootstrap) as connection:
            connection.create_topic("t")
        for number in range(ROUNDS_MAX):
            acknowledged |= produce(server, number, tmp_path)
            sent += [f"{number}.{index}" for index in range(RECORDS)]
            if server.metrics()["tidelog_metadata_batches_refused_total"] > 0:
                break
        else:
            pytest.fail(f"in {len(sent)} records nothing was refused: this tested nothing")
        assert stored(server) == sent, "each once, in order"
        assert [acknowledged[value] for value in sent] == list(range(len(sent)))
