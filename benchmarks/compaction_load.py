"""Nine simulated agents fill a thousand partitions; then everything is compacted, and read before and after.

``python -m benchmarks.compaction_load --gib 4 --extent-bytes 25000``: one process with a real metadata service on
SQLite, real rewriter, planner, swap and fetch path, and objects in memory. A JSON line of figures at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sqlite3
import tempfile
import time
from pathlib import Path

import crc32c
from prometheus_client import CollectorRegistry

from agent.fetch.answer import FetchLimits, PartitionFetch
from agent.fetch.fetcher import Fetcher
from agent.fetch.metrics import FetchMetrics
from agent.jobs.compaction import CompactSegments
from agent.jobs.swapping import Swapper
from benchmarks.frames import record_batch
from ingest.batch_header import BatchHeader
from ingest.compaction.metrics import CompactionMetrics
from ingest.compaction.rewrite import Rewriter
from ingest.compaction.throttle import Throttle
from ingest.compaction.write import SegmentNames
from ingest.segment import PartitionRun, SegmentName, encode_segment
from metadata.agent_model import AgentCondition, AgentHeartbeat, AgentRegistration
from metadata.job_model import COMPACT_SEGMENTS
from metadata.metrics import MetadataMetrics
from metadata.model import SegmentCommit, TopicId
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from runtime.budget import Budget
from runtime.clock import SystemClock, SystemEntropy
from runtime.settings import AgentsSettings, CompactionSettings, GroupSettings, Settings, TopicSettings
from runtime.tasks import Supervisor
from storage.memory import MemoryStore

AGENTS, PARTITIONS = 9, 1_000
SEGMENT_BYTES = 8 << 20
FETCH_BYTES = 1 << 20
"""What a consumer asks for at a time, as clients do by default."""
READ_PARTITIONS = 20
"""Partitions that are read whole, one after the other, before and after."""


class CountingStore(MemoryStore):
    """Counts GETs."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.gets = self.get_bytes = 0

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, start, length)
        self.gets += 1
        self.get_bytes += len(data)
        return data


class World:
    def __init__(self, folder: Path) -> None:
        self.database = folder / "metadata.sqlite"
        self.store = CountingStore()
        self.supervisor = Supervisor()
        self.service = self._new_service(rests=False)
        self.names = SegmentNames(SystemEntropy())
        self.epochs: list[int] = []
        self.topic: TopicId = b""

    def _new_service(self, rests: bool) -> MetadataService:
        """``rests``: nothing has come for so long that what is there waits for no more."""
        clock = SystemClock()
        return MetadataService(
            open_metadata_store(f"sqlite:///{self.database}"),
            clock,
            SystemEntropy(),
            self.supervisor,
            MetadataMetrics(CollectorRegistry()),
            GroupSettings(),
            TopicSettings(),
            AgentsSettings(session_timeout_ms=600_000),
            compaction_settings=CompactionSettings(min_age_ms=0, wait_ms=0 if rests else 3_600_000),
        )

    async def rest(self) -> None:
        """Go on as a service that comes back when the log has been at rest for long."""
        await self.service.stop()
        await self.supervisor.stop()
        self.supervisor = Supervisor()
        self.service = self._new_service(rests=True)
        await self.service.start()

    async def start(self) -> None:
        await self.service.start()
        for number in range(AGENTS):
            registration = AgentRegistration(f"agent-{number}", "abc"[number % 3], "g", "127.0.0.1", 9092, "1")
            self.epochs.append((await self.service.register_agent(registration)).agent_epoch)
        self.topic = (await self.service.create_topic("bench", PARTITIONS, {})).topic_id

    async def fill(self, byte_count: int, extent_bytes: int) -> int:
        """Each agent leads every third partition of its zone's clients; segments are sealed at 8 MiB."""
        batch = record_batch(max(1, extent_bytes // 1_000), 1_000, int(time.time() * 1000))
        draft = BatchHeader.parse(batch).draft()
        sequence = [0] * AGENTS
        filled, number = 0, 0
        while filled < byte_count:
            agent = number % AGENTS
            number += 1
            led = range(agent // 3, PARTITIONS, 3)
            runs = []
            for partition in led:
                run = PartitionRun(self.topic, partition)
                run.payloads.append(batch)
                run.batches.append(draft)
                runs.append(run)
            name = SegmentName(self.epochs[agent], sequence[agent], 0, 1)
            encoded = encode_segment(self.epochs[agent], sequence[agent], 0, runs)
            await self.store.put(name.key, encoded.chunks(), encoded.crc32c)
            commit = SegmentCommit(sequence[agent], name.key, encoded.byte_length, encoded.extents)
            await self.service.commit_segments(self.epochs[agent], sequence[agent] - 1, [commit])
            sequence[agent] += 1
            filled += encoded.byte_length
        return filled

    def rows(self) -> tuple[int, int]:
        """(extents, live segments)"""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            (extents,) = connection.execute("SELECT count(*) FROM extents").fetchone()
            (segments,) = connection.execute("SELECT count(*) FROM segments WHERE dead_ms = 0").fetchone()
        return extents, segments

    async def compact(self) -> dict[str, float]:
        """Until nothing is left to be done; objects are deleted as they die, as memory is not for free."""
        registry = CollectorRegistry()
        metrics, clock = CompactionMetrics(registry), SystemClock()
        budget = Budget(512 << 20)
        rewriter = Rewriter(self.store, self.names, Throttle(10**12, clock), budget, clock, metrics, 64 << 20)
        epoch = self.epochs[0]
        swapper = Swapper(self.store, self.service, clock, metrics)
        handler = CompactSegments(self.service, rewriter, swapper, lambda: epoch, clock, asyncio.Lock())
        began, cpu, idle, gets = time.monotonic(), time.process_time(), 0, self.store.gets
        while idle < 4:
            leases = await self.service.lease_jobs(epoch, [COMPACT_SEGMENTS], 1)
            for lease in leases:
                await handler.run(lease.payload)
                await self.service.finish_job(epoch, lease.lease_id, b"")
                await self._delete_dead()
            idle = 0 if leases else idle + 1
            if not leases:
                await asyncio.sleep(1)
                for each in self.epochs:
                    await self.service.heartbeat_agent(AgentHeartbeat(each, AgentCondition.READY))
        return {
            "compact_s": time.monotonic() - began,
            "compact_cpu_s": time.process_time() - cpu,
            "compact_gets": self.store.gets - gets,
            "written": registry.get_sample_value("tidelog_compaction_written_bytes_total") or 0,
        }

    async def _delete_dead(self) -> None:
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            keys = connection.execute("SELECT segment_key FROM segments WHERE dead_ms > 0").fetchall()
        await self.store.delete([key for (key,) in keys])

    async def read(self, partitions: list[int]) -> dict[str, float]:
        """Whole partitions by a new agent with empty caches; and a checksum of every record with its offset."""
        settings = Settings()
        fetcher = Fetcher(
            self.store,
            self.service,
            settings,
            Budget(settings.memory.budget_bytes),
            SystemClock(),
            self.supervisor,
            FetchMetrics(CollectorRegistry()),
        )
        fetcher.follower.start(await self.service.subscribe(_Deaf()))
        gets, byte_count, checksum = self.store.gets, 0, 0
        for partition in partitions:
            (offsets,) = await self.service.partition_offsets([(self.topic, partition)])
            assert offsets is not None
            offset = 0
            while offset < offsets.high_watermark:
                fetched = await fetcher.fetch(
                    [PartitionFetch(self.topic, partition, offset, FETCH_BYTES)], FetchLimits(50 << 20, 1, 500)
                )
                (answer,) = fetched.partitions
                if answer.problem is not None:
                    raise RuntimeError(f"partition {partition} at {offset}: {answer.problem!r}")
                data = b"".join(answer.chunks)
                fetched.release()
                position = 0
                while position < len(data):
                    header = BatchHeader.parse(data, position)
                    assert header.base_offset == offset, "dense"
                    checksum = crc32c.crc32c(data[position : position + header.byte_length], checksum)
                    offset += header.last_offset_delta + 1
                    position += header.byte_length
                byte_count += len(data)
        await fetcher.close()
        return {"gets": self.store.gets - gets, "bytes": byte_count, "checksum": checksum}


class _Deaf:
    def topics_changed(self, change: object) -> None: ...

    def extents_committed(self, extents: object) -> None: ...

    def log_starts_moved(self, moved: object) -> None: ...

    def agents_changed(self, agents: object) -> None: ...

    def resynchronize(self) -> None: ...


async def run(args: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="tidelog-bench-") as folder:
        world = World(Path(folder))
        await world.start()
        began = time.monotonic()
        filled = await world.fill(int(args.gib * 2**30), args.extent_bytes)
        fill_s = time.monotonic() - began
        partitions = random.Random(1).sample(range(PARTITIONS), READ_PARTITIONS)
        before, rows_before = await world.read(partitions), world.rows()
        compacted = await world.compact()
        rows_busy = world.rows()
        await world.rest()
        rested = await world.compact()
        after, rows_after = await world.read(partitions), world.rows()
        if after["checksum"] != before["checksum"]:
            raise RuntimeError("other records, or other offsets, after compaction than before")
        await world.service.stop()
        await world.supervisor.stop()
    gib, read = filled / 2**30, 4 * 2**20 / before["bytes"]
    return {
        "gib": gib,
        "fill_s": fill_s,
        "rows_per_gb_before": sum(rows_before) / (filled / 1e9),
        "rows_per_gb_under_load": sum(rows_busy) / (filled / 1e9),
        "rows_per_gb_after": sum(rows_after) / (filled / 1e9),
        "extents_before": rows_before[0],
        "extents_after": rows_after[0],
        "segments_before": rows_before[1],
        "segments_after": rows_after[1],
        "gets_per_4_mib_before": before["gets"] * read,
        "gets_per_4_mib_after": after["gets"] * read,
        "read_mib": before["bytes"] / 2**20,
        "write_amplification": (compacted["written"] + rested["written"]) / filled,
        **compacted,
        "rest_s": rested["compact_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--extent-bytes", type=int, default=25_000)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
