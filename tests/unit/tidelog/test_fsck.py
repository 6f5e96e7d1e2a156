"""fsck beside a running service: it finds each kind of damage, and nothing where there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metadata.model import SegmentCommit
from runtime.clock import SystemClock, SystemEntropy
from runtime.configuration import load_settings
from runtime.settings import JournalSettings
from storage.local import LocalStore
from tests.support.batches import build_batch
from tests.support.journals import Journaled, journaled, sqlite_url
from tests.support.objects import put_and_commit, put_segment
from tidelog.fsck.driver import Check

BATCH = build_batch([b"one", b"two"])


class World:
    """Ten committed segments of two partitions."""

    def __init__(self, folder: Path, bucket: LocalStore, running: Journaled, commits: list[SegmentCommit]) -> None:
        self.folder = folder
        self.bucket = bucket
        self.running = running
        self.commits = commits

    async def check(self, *, with_data: bool = True, in_flight_seconds: int = 0) -> dict[str, Any]:
        settings = load_settings(
            {"storage": f"file://{self.folder}/objects", "metadata": sqlite_url(self.folder, "metadata")}
        )
        return await Check(settings, SystemClock(), with_data, 2, in_flight_seconds, lambda _text: None).run()

    def path(self, number: int) -> Path:
        return self.folder / "objects" / self.commits[number].segment_key

    def execute(self, sql: str) -> None:
        with sqlite3.connect(self.folder / "metadata.sqlite") as connection:
            connection.execute(sql)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    bucket = LocalStore(tmp_path / "objects", SystemEntropy())
    async with journaled(sqlite_url(tmp_path, "metadata"), bucket, JournalSettings(interval_ms=10)) as running:
        await running.begin()
        commits = [
            await put_and_commit(
                bucket,
                running.service,
                running.epoch,
                number,
                (running.topic_id, 0, [BATCH, BATCH]),
                (running.topic_id, 1, [BATCH]),
            )
            for number in range(1, 11)
        ]
        yield World(tmp_path, bucket, running, commits)
    await bucket.close()


async def test_nothing_is_wrong_with_a_healthy_cluster(world: World) -> None:
    report = await world.check()
    assert report["ok"] and not report["counts"]
    assert (report["segments"], report["extents"], report["records"], report["objects"]) == (10, 20, 60, 10)


@pytest.mark.parametrize("with_data", [True, False])
async def test_a_missing_object(world: World, with_data: bool) -> None:
    world.path(3).unlink()
    report = await world.check(with_data=with_data)
    assert not report["ok"] and report["counts"] == {"missing": 1}
    assert world.commits[3].segment_key in report["findings"][0]["what"]
    assert "logs/0 12-15" in report["findings"][0]["what"]


@pytest.mark.parametrize("position", [20, 150, -30, -5])
async def test_a_flipped_byte_anywhere(world: World, position: int) -> None:
    data = bytearray(world.path(2).read_bytes())
    data[position] ^= 1
    world.path(2).write_bytes(data)
    assert (await world.check())["counts"] == {"damaged": 1}


async def test_a_truncated_object(world: World) -> None:
    world.path(2).write_bytes(world.path(2).read_bytes()[:-1])
    assert (await world.check(with_data=False))["counts"] == {"damaged": 1}


async def test_an_object_with_anothers_content(world: World) -> None:
    """Whole by itself, but not what was committed: partition 1 has two batches too."""
    key = world.commits[2].segment_key
    other = await put_segment(
        world.bucket, 999, 1, (world.running.topic_id, 1, [BATCH]), (world.running.topic_id, 0, [BATCH, BATCH])
    )
    world.path(2).write_bytes((world.folder / "objects" / other.segment_key).read_bytes())
    world.execute(f"UPDATE segments SET byte_length = {other.byte_length} WHERE segment_key = '{key}'")
    assert (await world.check(in_flight_seconds=60))["counts"] == {"misplaced": 2}


async def test_holes_and_overlaps(world: World) -> None:
    world.execute("DELETE FROM extents WHERE base_offset = 8 AND last_offset = 11")
    assert (await world.check())["counts"] == {"hole": 1}
    world.execute("UPDATE extents SET last_offset = 13 WHERE base_offset = 4 AND last_offset = 7")
    assert (await world.check())["counts"] == {"overlap": 1, "misplaced": 1}


async def test_objects_nobody_knows(world: World) -> None:
    await put_segment(world.bucket, 1, 77, (world.running.topic_id, 0, [BATCH]))
    (world.folder / "objects" / "segments" / "notes.txt").write_text("by hand")
    report = await world.check(in_flight_seconds=60)
    assert report["in_flight"] == 1 and report["counts"] == {"foreign": 1}
    report = await world.check()
    assert report["counts"] == {"orphan": 1, "foreign": 1}


async def test_an_object_that_was_put_and_committed_after_the_listing_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that was deleted after its extents had gone is none either: the metadata is asked once more."""
    original = Check._list

    async def late(check: Check, bucket: Any) -> Any:
        listed = await original(check, bucket)
        await put_and_commit(
            world.bucket, world.running.service, world.running.epoch, 11, (world.running.topic_id, 0, [BATCH])
        )
        return listed

    monkeypatch.setattr(Check, "_list", late)
    report = await world.check()
    assert report["ok"] and report["segments"] == 11
    check_object = Check._check_object

    async def deletes(check: Check, bucket: Any, segment: Any, info: Any) -> None:
        if segment.key == world.commits[0].segment_key:
            world.path(0).unlink()
            world.execute(f"UPDATE segments SET live_extents = 0, dead_ms = 1 WHERE segment_key = '{segment.key}'")
        await check_object(check, bucket, segment, info)

    monkeypatch.setattr(Check, "_list", original)
    monkeypatch.setattr(Check, "_check_object", deletes)
    assert (await world.check())["ok"]
