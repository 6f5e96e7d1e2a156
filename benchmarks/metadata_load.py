"""The load of many agents on a metadata process: ``python -m benchmarks.metadata_load commit|find|prefill|...``.

Prints one JSON object. Plain batches (producer id -1), as most shippers send them, unless ``--idempotent``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import struct
import time
from itertools import count

import uvloop
from prometheus_client import CollectorRegistry

from metadata.agent_model import AgentRegistration
from metadata.model import BatchDraft, Extent, ExtentDraft, ExtentsQuery, SegmentCommit, Topic
from metadata.rpc.client import RemoteMetadata
from metadata.rpc.metrics import RpcClientMetrics
from metadata.store.factory import open_metadata_store
from metadata.store.port import Change, ExtentsAdded, SegmentAdded, TopicSaved
from runtime.clock import SystemClock, SystemEntropy
from runtime.tasks import Supervisor

BATCH_BYTES = 10_000
RECORDS = 50


def client(url: str, supervisor: Supervisor) -> RemoteMetadata:
    return RemoteMetadata(
        [url], SystemClock(), SystemEntropy(), supervisor, RpcClientMetrics(CollectorRegistry()), patience_seconds=60
    )


def segment(topics: list[Topic], agent: int, sequence: int, extents: int, idempotent: bool) -> SegmentCommit:
    """``extents`` different partitions, one batch each; a producer of its own for each agent and partition."""
    drafts = []
    for number in range(extents):
        place = (agent * 31 + number) % (len(topics) * topics[0].partition_count)
        topic, partition = topics[place // topics[0].partition_count], place % topics[0].partition_count
        producer = (agent, 0, sequence * RECORDS) if idempotent else (-1, -1, -1)
        batch = BatchDraft(BATCH_BYTES, RECORDS, 1_000_000 + sequence, *producer)
        drafts.append(ExtentDraft(topic.topic_id, partition, number * BATCH_BYTES, (batch,)))
    return SegmentCommit(sequence, f"segments/0/{agent:06d}-{sequence:09d}", extents * BATCH_BYTES, tuple(drafts))


async def commit(args: argparse.Namespace) -> dict[str, float]:
    supervisor = Supervisor()
    clients = [client(args.url, supervisor) for _ in range(args.agents)]
    topics = [await clients[0].create_topic(f"{args.prefix}-{number}", 100, {}) for number in range(args.topics)]
    epochs = []
    for number, each in enumerate(clients):
        registration = AgentRegistration(f"bench-{number}", "a", "g", "127.0.0.1", 1 + number, "0", "", ())
        epochs.append((await each.register_agent(registration)).agent_epoch)
    done = [0] * args.agents
    latencies: list[float] = []
    stop = time.monotonic() + args.warmup + args.seconds

    async def agent(number: int) -> None:
        for sequence in count():
            if time.monotonic() > stop:
                return
            wanted = segment(topics, number, sequence, args.extents, args.idempotent)
            began = time.perf_counter()
            (answer,) = await clients[number].commit_segments(epochs[number], sequence - 1, [wanted])
            latencies.append(time.perf_counter() - began)
            assert all(batch.refusal is None for extent in answer.extents for batch in extent), answer
            done[number] += 1

    tasks = [asyncio.ensure_future(agent(number)) for number in range(args.agents)]
    await asyncio.sleep(args.warmup)
    before, cpu, began = sum(done), time.process_time(), time.monotonic()
    del latencies[:]
    await asyncio.sleep(args.seconds)
    commits, busy, seconds = sum(done) - before, time.process_time() - cpu, time.monotonic() - began
    ordered = sorted(latencies)
    await asyncio.gather(*tasks)
    for each in clients:
        await each.close()
    await supervisor.stop()
    return {
        "commits_per_s": commits / seconds,
        "extents_per_s": commits * args.extents / seconds,
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1e3,
        "generator": busy / seconds,
    }


async def find(args: argparse.Namespace) -> dict[str, float]:
    """Random old offsets of the prefilled partition; one question at a time."""
    supervisor = Supervisor()
    remote = client(args.url, supervisor)

    class Quiet:
        def topics_changed(self, change: object) -> None: ...
        def extents_committed(self, extents: object) -> None: ...
        def log_starts_moved(self, moved: object) -> None: ...

        def agents_changed(self, agents: object) -> None: ...
        def resynchronize(self) -> None: ...

    subscription = await remote.subscribe(Quiet())
    topic = next(topic for topic in subscription.topics if topic.name == "prefilled")
    generator = random.Random(1)
    seconds: list[float] = []
    for number in range(args.calls + 200):
        offset = generator.randrange(args.extents * RECORDS)
        began = time.perf_counter()
        (found,) = await remote.find_extents([ExtentsQuery(topic.topic_id, 0, offset, BATCH_BYTES * 10)])
        if number >= 200:
            seconds.append(time.perf_counter() - began)
        assert found.extents[0].base_offset <= offset <= found.extents[0].last_offset
    seconds.sort()
    subscription.close()
    await remote.close()
    await supervisor.stop()
    return {"p50_ms": seconds[len(seconds) // 2] * 1e3, "p99_ms": seconds[len(seconds) * 99 // 100] * 1e3}


async def prefill(args: argparse.Namespace) -> dict[str, float]:
    """A partition with so many extents, written straight to the store."""
    store = open_metadata_store(args.store)
    await store.open("benchmark")
    topic = Topic(b"prefilled topic!", "prefilled", 1, {}, 0)
    await store.write([TopicSaved(topic)])
    began, at_once = time.monotonic(), 5_000
    for first in range(0, args.extents, at_once):
        key = f"segments/0/prefilled-{first:012d}"
        last = min(first + at_once, args.extents)
        extents = tuple(
            Extent(topic.topic_id, 0, n * RECORDS, n * RECORDS + RECORDS - 1, key, n * 100, BATCH_BYTES, n, n)
            for n in range(first, last)
        )
        changes: list[Change] = [SegmentAdded(1, first, key, 1, 0, b""), ExtentsAdded(extents)]
        await store.write(changes)
    await store.close()
    return {"extents_per_s": args.extents / (time.monotonic() - began)}


async def topics(args: argparse.Namespace) -> dict[str, float]:
    """So many topics of 1,000 partitions each."""
    supervisor = Supervisor()
    remote = client(args.url, supervisor)
    began = time.monotonic()
    for number in range(args.topics):
        await remote.create_topic(f"many-{number}", 1_000, {})
    seconds = time.monotonic() - began
    await remote.close()
    await supervisor.stop()
    return {"seconds": seconds}


async def describe(args: argparse.Namespace) -> dict[str, float]:
    """Metadata of all topics (version 12), as a client that starts asks; and what others wait meanwhile."""
    everything = struct.pack(">hhihB", 3, 12, 1, -1, 0) + b"\0\1\0\0"
    ping = struct.pack(">hhihB", 3, 12, 2, -1, 0) + b"\1\1\0\0"
    reader, writer = await asyncio.open_connection("127.0.0.1", args.port, limit=2**26)
    others = await asyncio.open_connection("127.0.0.1", args.port)
    seconds: list[float] = []
    waits: list[float] = []

    async def pings() -> None:
        while True:
            began = time.perf_counter()
            others[1].write(struct.pack(">i", len(ping)) + ping)
            await others[0].readexactly(struct.unpack(">i", await others[0].readexactly(4))[0])
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)

    pinging = asyncio.ensure_future(pings())
    await asyncio.sleep(0.5)
    del waits[:]
    for _ in range(10):
        began = time.perf_counter()
        writer.write(struct.pack(">i", len(everything)) + everything)
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        assert size > 1_000_000, size
        await reader.readexactly(size)
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)
    pinging.cancel()
    return {
        "first_ms": seconds[0] * 1e3,
        "p50_ms": sorted(seconds[1:])[4] * 1e3,
        "ping_max_ms": max(waits) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["commit", "find", "prefill", "topics", "describe"])
    parser.add_argument("--url", default="")
    parser.add_argument("--store", default="")
    parser.add_argument("--port", type=int, default=0, help="an agent's Kafka port")
    parser.add_argument("--prefix", default="t", help="of topic names")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--topics", type=int, default=10)
    parser.add_argument("--extents", type=int, default=200)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--idempotent", action="store_true")
    args = parser.parse_args()
    work = {"commit": commit, "find": find, "prefill": prefill, "topics": topics, "describe": describe}[args.what]
    print(json.dumps(uvloop.run(work(args))))


if __name__ == "__main__":
    main()
