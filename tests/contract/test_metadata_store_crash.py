"""kill -9 of a process that writes metadata: whatever it had acknowledged is there, once, where it said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metadata.model import Extent
from metadata.store.factory import open_metadata_store
from tests.support.metadata import batch, registration, running_service, segment
from tests.support.metadata_stores import DURABLE_STORES, metadata_url
from tests.support.metadata_writer import PARTITIONS

ROUNDS = 4


def run_and_kill(url: str, seed: int, after_lines: int) -> list[dict[str, Any]]:
    """Start a writer, kill it after so many acknowledgements, and return all it got out."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.support.metadata_writer", url, str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    lines: list[bytes] = []
    try:
        assert writer.stdout is not None
        for line in writer.stdout:
            lines.append(line)
            if len(lines) == after_lines:
                writer.kill()
    finally:
        writer.kill()
        writer.wait()
    assert len(lines) >= after_lines, "the writer ended by itself"
    acknowledged = [line for line in lines if line.startswith(b'{"sequence"') and line.endswith(b"\n")]
    return [json.loads(line) for line in acknowledged]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DURABLE_STORES)
async def test_kill_at_random_moments(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    generator = random.Random(11)
    acknowledged: list[dict[str, Any]] = []
    with metadata_url(kind, tmp_path, request) as url:
        for round_number in range(ROUNDS):
            acknowledged += run_and_kill(url, round_number, generator.randrange(20, 400))
            await check(url, acknowledged)


async def check(url: str, acknowledged: list[dict[str, Any]]) -> None:
    store = open_metadata_store(url)
    async with running_service(store, entropy_seed=99) as service:
        (topic,) = service._visible.topics.values()
        extents: dict[tuple[int, int], Extent] = {}
        for partition in range(PARTITIONS):
            (offsets,) = await service.partition_offsets([(topic.topic_id, partition)])
            assert offsets is not None
            expected = 0
            while expected < offsets.high_watermark:
                for one in await store.find_extents(topic.topic_id, partition, expected, 10**9, offsets.high_watermark):
                    assert one.base_offset == expected, "offsets are dense"
                    extents.update({(partition, offset): one for offset in range(expected, one.last_offset + 1)})
                    expected = one.last_offset + 1
            assert expected == offsets.high_watermark
        seen: set[tuple[int, int]] = set()
        for commit in acknowledged:
            for partition, _, _, records, base in commit["batches"]:
                for offset in range(base, base + records):
                    assert (partition, offset) not in seen, "an offset was acknowledged twice"
                    seen.add((partition, offset))
                    key = f"segments/{commit['epoch']}/{commit['sequence']}"
                    assert extents[partition, offset].segment_key == key
        # The newest idempotent batch of each partition, sent again through another agent, is still known.
        epoch = (await service.register_agent(registration("another"))).agent_epoch
        newest = {
            (partition, producer): (first, records, base)
            for commit in acknowledged[-1:]
            for partition, producer, first, records, base in commit["batches"]
            if producer >= 0
        }
        for (partition, producer), (first, records, base) in newest.items():
            resent = batch(records, producer=producer, epoch=0, sequence=first)
            commit_again = segment(partition + 1, (topic.topic_id, partition, [resent]))
            (answer,) = await service.commit_segments(epoch, -1, [commit_again])
            assert (answer.extents[0][0].base_offset, answer.extents[0][0].duplicate) == (base, True)
