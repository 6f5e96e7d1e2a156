"""What the bucket holds beside what is referenced in it, over time: retention, deletion after the grace, orphans.

``python -m benchmarks.lifecycle [--seconds 90]``: one ``tidelog up`` on a folder, a constant load into two topics kept
for a few seconds (one by time, one by size), then one of them is deleted, then the load ends. Orphans are planted as a
crashed agent leaves them. Time is scaled: retention of 10 s and a grace of 10 s stand for hours and 10 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.peers.processes import free_port
from ingest.segment import SegmentName

GRACE_MS = 10_000
RETENTION_MS = 10_000
RETENTION_BYTES = 4_000_000
SETTINGS = {
    "TIDELOG_LIFECYCLE__DELETION_GRACE_MS": GRACE_MS,
    "TIDELOG_LIFECYCLE__RETENTION_INTERVAL_MS": 1_000,
    "TIDELOG_LIFECYCLE__ORPHAN_AGE_MS": 10_000,
    "TIDELOG_LIFECYCLE__SWEEP_INTERVAL_MS": 20_000,
    "TIDELOG_LIFECYCLE__UNDELETE_MS": 5_000,
    "TIDELOG_LIFECYCLE__COUNT_INTERVAL_MS": 1_000,
    "TIDELOG_COMPACTION__ENABLED": "false",
}
RECORD = random.Random(1).randbytes(10_000)
ORPHANS = 20


def bucket_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def metric(port: int, name: str, labels: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name}{labels} "):
                return float(line.rpartition(" ")[2])
    return 0.0


def plant_orphans(objects: Path, agent_epoch: int) -> int:
    """Objects whose commits never came, as hedges and crashes leave them: sequences that others have passed."""
    for number in range(ORPHANS):
        path = objects / SegmentName(agent_epoch, number, 9, 0xDEAD).key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RECORD * 50)
    return ORPHANS * len(RECORD) * 50


async def load(kafka: int, until: float, topics: list[str]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{kafka}", linger_ms=20, max_batch_size=1 << 20)
    await producer.start()
    try:
        while time.monotonic() < until:
            for topic in topics:
                for _ in range(10):
                    await producer.send(topic, RECORD)
            await asyncio.sleep(0.2)
    finally:
        await producer.stop()


async def measure(seconds: float, folder: Path, kafka: int, http: int) -> list[tuple[int, float, float, str]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{kafka}")
    await admin.start()
    await admin.create_topics(
        [
            NewTopic("by-time", 2, 1, topic_configs={"retention.ms": str(RETENTION_MS)}),
            NewTopic(
                "by-size", 2, 1, topic_configs={"retention.ms": "-1", "retention.bytes": str(RETENTION_BYTES // 2)}
            ),
        ]
    )
    began = time.monotonic()
    objects = folder / "objects"
    loading = asyncio.create_task(load(kafka, began + seconds * 0.6, ["by-time", "by-size"]))
    rows: list[tuple[int, float, float, str]] = []
    planted = deleted = False
    while (passed := time.monotonic() - began) < seconds:
        what = ""
        if not planted and passed > seconds * 0.3:
            planted = True
            what = f"{await asyncio.to_thread(plant_orphans, objects, 1) / 1e6:.0f} MB of orphans appear"
        if not deleted and passed > seconds * 0.6:
            deleted = True
            await loading
            await admin.delete_topics(["by-size"])
            what = "load ends, a topic is deleted"
        live = await asyncio.to_thread(metric, http, "tidelog_metadata_segments_bytes", '{state="live"}')
        rows.append((round(passed), await asyncio.to_thread(bucket_bytes, objects) / 1e6, live / 1e6, what))
        await asyncio.sleep(seconds / 30)
    await admin.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0)
    args = parser.parse_args()
    kafka, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pid = os.posix_spawn(
            sys.executable,
            [
                *(sys.executable, "-m", "tidelog", "up", "--data", name),
                *("--kafka", f"127.0.0.1:{kafka}", "--http", f"127.0.0.1:{http}"),
            ],
            os.environ | {key: str(value) for key, value in SETTINGS.items()},
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
        )
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            rows = asyncio.run(measure(args.seconds, folder, kafka, http))
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
    largest = max(size for _, size, _, _ in rows) or 1
    print("| seconds | in the bucket, MB | referenced, MB | |\n|---:|---:|---:|---|")
    for seconds, size, live, what in rows:
        bar = "█" * round(20 * live / largest) + "░" * round(20 * max(size - live, 0) / largest)
        print(f"| {seconds} | {size:.1f} | {live:.1f} | {bar} {what} |")


if __name__ == "__main__":
    main()
