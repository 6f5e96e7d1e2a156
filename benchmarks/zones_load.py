"""Clients of a cluster of several zones, through librdkafka: ``python -m benchmarks.zones_load produce|read|visible``.

Prints one JSON object. A client names its zone in its ``client.id``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

VALUE_BYTES = 1_000


def producer(args: argparse.Namespace, zone: str, **config: object) -> Producer:
    return Producer({"bootstrap.servers": args.bootstrap, "client.id": f"bench zone={zone}", "acks": "all", **config})


def consumer(args: argparse.Namespace, zone: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": args.bootstrap,
            "client.id": f"bench zone={zone}",
            "group.id": f"bench-{zone}-{os.getpid()}",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "fetch.wait.max.ms": 500,
            "queued.max.messages.kbytes": 65_536,
        }
    )


def create(args: argparse.Namespace) -> dict[str, float]:
    """The topic."""
    admin = AdminClient({"bootstrap.servers": args.bootstrap})
    for made in admin.create_topics([NewTopic(args.topic, args.partitions)]).values():
        made.result(30)
    return {}


def produce(args: argparse.Namespace) -> dict[str, float]:
    """So many bytes, as fast as the agent of the zone takes them."""
    sender = producer(
        args, args.zone, **{"linger.ms": 20, "batch.size": 1_000_000, "queue.buffering.max.kbytes": 65_536}
    )
    value = os.urandom(VALUE_BYTES)
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    began = time.monotonic()
    for number in range(args.bytes // VALUE_BYTES):
        while True:
            try:
                sender.produce(args.topic, value, partition=number // 500 % args.partitions, on_delivery=delivered)
                break
            except BufferError:
                sender.poll(0.01)
        if number % 1_000 == 0:
            sender.poll(0)
    left = sender.flush(60)
    if failures or left:
        raise KafkaException(failures[0] if failures else f"{left} records were not acknowledged")
    return {"seconds": time.monotonic() - began}


def read(args: argparse.Namespace) -> dict[str, float]:
    """Read ``--bytes`` with several consumers of one zone, each everything, from the end or from the beginning."""
    consumers = [consumer(args, args.zone) for _ in range(args.consumers)]
    seen = [0] * len(consumers)
    for each in consumers:
        where = [TopicPartition(args.topic, partition, 0) for partition in range(args.partitions)]
        each.assign(where)
    print("ready", flush=True)
    until = time.monotonic() + args.seconds
    while min(seen) < args.bytes and time.monotonic() < until:
        for index, each in enumerate(consumers):
            for message in each.consume(10_000, timeout=0.01):
                if message.error() is not None:
                    raise KafkaException(message.error())
                seen[index] += len(message.value())
    for each in consumers:
        each.close()
    if min(seen) < args.bytes:
        raise RuntimeError(f"only {min(seen):,} of {args.bytes:,} bytes in {args.seconds} s")
    return {"bytes": float(sum(seen))}


def visible(args: argparse.Namespace) -> dict[str, float]:
    """One record at a time: how long after its acknowledgement in one zone a consumer in another has it."""
    sender = producer(args, args.zone, **{"linger.ms": 0})
    reader = consumer(args, args.other)
    reader.assign([TopicPartition(args.topic, partition, 0) for partition in range(args.partitions)])
    acknowledged: dict[bytes, float] = {}
    received: dict[bytes, float] = {}

    def noted(key: bytes) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            acknowledged[key] = time.perf_counter()

        return delivered

    number = 0
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        key = b"%d" % number
        sender.produce(args.topic, b"x" * VALUE_BYTES, key, partition=number % args.partitions, on_delivery=noted(key))
        number += 1
        end = time.monotonic() + 10
        while (key not in acknowledged or key not in received) and time.monotonic() < end:
            sender.poll(0)
            message = reader.poll(0.001)
            if message is not None and message.error() is None:
                received[message.key()] = time.perf_counter()
    reader.close()
    lost = [key for key in acknowledged if key not in received]
    if lost:
        raise RuntimeError(f"{len(lost)} records were not seen")
    behind = sorted(max(received[key] - acknowledged[key], 0.0) for key in list(acknowledged)[20:])
    return {"p50_ms": behind[len(behind) // 2] * 1e3, "p99_ms": behind[len(behind) * 99 // 100] * 1e3, "n": len(behind)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["create", "produce", "read", "visible"])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", default="zones")
    parser.add_argument("--partitions", type=int, default=6)
    parser.add_argument("--zone", default="a")
    parser.add_argument("--other", default="b")
    parser.add_argument("--consumers", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    work = {"create": create, "produce": produce, "read": read, "visible": visible}[args.what]
    print(json.dumps(work(args)))


if __name__ == "__main__":
    main()
