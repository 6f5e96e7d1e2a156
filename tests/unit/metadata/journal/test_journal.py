"""The journal of a running service: what it puts, what it does when it cannot, and what a restore makes of it."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from metadata.compaction import ExtentSwap
from metadata.journal.buffer import JournalBuffer
from metadata.journal.chain import read_chain
from metadata.journal.format import JOURNAL_PREFIX, META_PREFIX, SNAPSHOT_PREFIX
from metadata.journal.restore import RestoreFailed, look
from metadata.model import Extent, RecordsDeletion
from metadata.store.factory import open_metadata_store
from metadata.store.port import StoreUnavailable
from metadata.store.tables import NotEmpty
from runtime.clock import SeededEntropy, SystemClock
from runtime.settings import JournalSettings
from storage.faults import FaultRates, FaultyStore
from storage.memory import MemoryStore
from tests.support.journals import QUICK, contents, journaled, restored, sqlite_url
from tests.support.metadata import registration
from tests.support.metadata_stores import DURABLE_STORES, metadata_url


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore(SystemClock())


async def keys(bucket: MemoryStore, prefix: str = META_PREFIX) -> list[str]:
    return [info.key async for info in bucket.list(prefix)]


async def replace(bucket: MemoryStore, key: str, data: bytes) -> None:
    await bucket.delete([key])
    await bucket.put(key, [data], 0)


async def test_what_became_durable_is_restored_exactly(bucket: MemoryStore, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path, "lost")
    async with journaled(url, bucket) as running:
        await running.begin()
        await running.commit(20)
        await running.service.grant_producer_id(-1, -1)
        await running.service.delete_topic((await running.service.create_topic("gone", 3, {})).topic_id)
    replayed, _ = await restored(bucket, sqlite_url(tmp_path, "new"))
    assert replayed.ended_by is None and replayed.entries >= 1
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)


@pytest.mark.parametrize("target", DURABLE_STORES)
async def test_what_other_rooms_change_comes_along(
    bucket: MemoryStore, tmp_path: Path, target: str, request: pytest.FixtureRequest
) -> None:
    """Compaction, DeleteRecords, topics that are deleted, undeleted and grown: all in entries, none in the snapshot."""
    url = sqlite_url(tmp_path, "lost")
    async with journaled(url, bucket) as running:
        await running.begin()
        await running.caught_up()
        await running.commit(12)
        service, topic_id, now_ms = running.service, running.topic_id, SystemClock().now_ms()
        placed = Extent(topic_id, 0, 4, 19, "segments/c0", 0, 3_000, 1_000, now_ms, 1)
        inputs = frozenset(f"segments/{number}" for number in range(1, 13))
        await service.swap_extents(
            running.epoch, ExtentSwap(500_000_000_000, "segments/c0", 9_000, 1, now_ms, inputs, (placed,))
        )
        await service.delete_records([RecordsDeletion(topic_id, 0, 9), RecordsDeletion(topic_id, 1, 12)])
        gone = (await service.create_topic("gone", 1, {})).topic_id
        await service.delete_topic(gone)
        await service.undelete_topic(gone)
        await service.create_partitions(gone, 5)
        await running.commit(3)
        await running.caught_up()
    with metadata_url(target, tmp_path, request) as new:
        replayed, _ = await restored(bucket, new)
        assert replayed.writes > 15
        assert await contents(new) == await contents(url)


async def test_nothing_is_put_when_nothing_changes(bucket: MemoryStore, tmp_path: Path) -> None:
    async with journaled(sqlite_url(tmp_path, "idle"), bucket) as running:
        await running.begin()
        await running.caught_up()
        before = await keys(bucket)
        await asyncio.sleep(0.1)
        assert await keys(bucket) == before


async def test_a_commit_does_not_wait_for_the_bucket(bucket: MemoryStore, tmp_path: Path) -> None:
    faulty = FaultyStore(bucket, SeededEntropy(1))
    async with journaled(sqlite_url(tmp_path, "slow"), faulty) as running:
        await running.begin()
        await running.caught_up()
        faulty.rates = FaultRates(hang=1.0)
        async with asyncio.timeout(2):
            await running.commit(50)
        await asyncio.sleep(0.05)
        assert running.journal.lag_seconds() > 0.02
        faulty.heal()
        await running.caught_up()
    await restored(bucket, sqlite_url(tmp_path, "new"))
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(sqlite_url(tmp_path, "slow"))


async def test_a_bucket_away_for_long_costs_a_snapshot_and_no_memory(
    bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metadata.journal.journal.RETRY_SECONDS", (0.01, 0.05))
    faulty = FaultyStore(bucket, SeededEntropy(1))
    settings = JournalSettings(interval_ms=10, entry_bytes=1 << 12)
    url = sqlite_url(tmp_path, "away")
    async with journaled(url, faulty, settings) as running:
        running.journal._buffer = JournalBuffer(settings.entry_bytes, 30_000)
        await running.begin()
        await running.caught_up()
        faulty.rates = FaultRates(error_before=1.0)
        while not running.journal._buffer.gaps:
            await running.commit(20)
            assert running.journal._buffer.byte_length <= 30_000
        assert running.journal.state() != "ok"
        await running.commit(10)
        faulty.heal()
        await running.caught_up()
        await running.commit(10)
        await running.caught_up()
        assert len(read_chain(await keys(bucket)).complete) == 2
    await restored(bucket, sqlite_url(tmp_path, "new"))
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)


async def test_a_write_of_unknown_outcome_is_not_read_over(
    bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite_url(tmp_path, "unknown")
    async with journaled(url, bucket) as running:
        await running.begin()
        await running.caught_up()
        write = running.store.write

        async def fail_after(changes: object) -> None:
            await write(changes)  # type: ignore[arg-type]
            raise StoreUnavailable("planted: after effect")

        monkeypatch.setattr(running.store, "write", fail_after)
        with pytest.raises(Exception, match="planted"):
            await running.commit()
        monkeypatch.setattr(running.store, "write", write)
        await running.commit()
        await running.caught_up()
        assert len(read_chain(await keys(bucket)).complete) == 2, "a snapshot has what the journal was not told"
    await restored(bucket, sqlite_url(tmp_path, "new"))
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)
    await bucket.delete([read_chain(await keys(bucket)).complete[-1].complete_key])
    replayed, snapshot = await restored(bucket, sqlite_url(tmp_path, "short"))
    assert replayed.ended_by is not None and replayed.entries_unused == 1
    assert {row.high_watermark for row in snapshot.partitions} == {0}, "and nothing that came after the gap"


async def test_older_snapshots_and_entries_go(bucket: MemoryStore, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path, "pruned")
    for term in range(4):
        async with journaled(url, bucket) as running:
            if term == 0:
                await running.begin()
            await running.service.create_topic(f"topic-{term}", 1, {})
            await running.caught_up()
    chain = read_chain(await keys(bucket))
    assert len(chain.complete) == 2 and len(chain.keys) == 2
    assert {name.generation for name in chain.entries} <= {3, 4}, "what only the first terms' snapshots need is gone"
    await restored(bucket, sqlite_url(tmp_path, "new"))
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)


async def test_entries_that_outweigh_a_snapshot_bring_the_next_one(bucket: MemoryStore, tmp_path: Path) -> None:
    settings = JournalSettings(interval_ms=10, snapshot_bytes_min=64 << 10)
    url = sqlite_url(tmp_path, "heavy")
    async with journaled(url, bucket, settings) as running:
        await running.begin()
        async with asyncio.timeout(20):
            while len(read_chain(await keys(bucket)).complete) < 2:
                await running.service.create_topic(f"t{running.sequence}", 50, {})
                await running.commit(20)
        await running.caught_up()
    await restored(bucket, sqlite_url(tmp_path, "new"))
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)


async def test_a_deposed_leader_that_thaws_corrupts_nothing(bucket: MemoryStore, tmp_path: Path) -> None:
    """Its entries are true and under its own generation; the next leader's snapshot is what counts."""
    url = sqlite_url(tmp_path, "deposed")
    faulty = FaultyStore(bucket, SeededEntropy(1))
    async with journaled(url, faulty) as old:
        await old.begin()
        await old.caught_up()
        faulty.rates = FaultRates(hang=1.0)
        await old.commit(3)
        await asyncio.sleep(0.05)
        await old.service._pipeline.stop()
        await old.store.close()
        async with journaled(url, bucket) as new:
            new.epoch, new.topic_id, new.sequence = old.epoch, old.topic_id, old.sequence
            await new.commit(5)
            await new.caught_up()
            faulty.heal()
            while old.journal.lag_seconds():
                await asyncio.sleep(0.01)
            await new.commit(5)
            await new.caught_up()
    assert [name for name in read_chain(await keys(bucket)).entries if name.generation == 1], "it did put them"
    replayed, _ = await restored(bucket, sqlite_url(tmp_path, "new"))
    assert replayed.snapshot.startswith("2-")
    assert await contents(sqlite_url(tmp_path, "new")) == await contents(url)


async def test_an_empty_store_beside_a_journal_is_not_led(bucket: MemoryStore, tmp_path: Path) -> None:
    async with journaled(sqlite_url(tmp_path, "first"), bucket) as running:
        await running.begin()
        await running.caught_up()
    before = await keys(bucket)
    with pytest.raises(StoreUnavailable, match="tidelog restore"):
        async with journaled(sqlite_url(tmp_path, "second"), bucket):
            pass
    assert await keys(bucket) == before


async def test_another_clusters_journal_is_left_alone(bucket: MemoryStore, tmp_path: Path) -> None:
    other = MemoryStore(SystemClock())
    url = sqlite_url(tmp_path, "second")
    async with journaled(sqlite_url(tmp_path, "first"), bucket) as running:
        await running.begin()
        await running.caught_up()
    async with journaled(url, other) as running:
        await running.begin()
        await running.caught_up()
    before = await keys(bucket)
    async with journaled(url, bucket) as running:
        running.topic_id = (await running.service.create_topic("more", 2, {})).topic_id
        running.epoch = (await running.service.register_agent(registration())).agent_epoch
        await running.commit(10)
        await asyncio.sleep(0.1)
        assert "metadata of cluster" in running.journal.state()
        assert running.journal._buffer.byte_length == 0
    assert await keys(bucket) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "swapped"])
async def test_a_damaged_entry_ends_what_is_certain(bucket: MemoryStore, tmp_path: Path, damage: str) -> None:
    async with journaled(sqlite_url(tmp_path, "lost"), bucket, JournalSettings(interval_ms=10)) as running:
        await running.begin()
        await running.caught_up()
        for _ in range(4):
            await running.commit()
            await running.caught_up()
    entries = read_chain(await keys(bucket)).entries
    wrong = entries[-2]
    data = await bucket.get(wrong.key)
    if damage == "missing":
        await bucket.delete([wrong.key])
    elif damage == "truncated":
        await replace(bucket, wrong.key, data[:-5])
    elif damage == "swapped":
        await replace(bucket, wrong.key, await bucket.get(entries[-1].key))
    else:
        await replace(bucket, wrong.key, data[:20] + bytes([data[20] ^ 1]) + data[21:])
    replayed, snapshot = await restored(bucket, sqlite_url(tmp_path, "new"))
    assert (replayed.ended_by is not None and wrong.key in replayed.ended_by) or damage == "missing"
    assert replayed.ended_by is not None and replayed.entries_unused == (1 if damage == "missing" else 2)
    assert {row.high_watermark for row in snapshot.partitions} == {4}, "two of four commits are before it"


async def test_a_damaged_snapshot_gives_way_to_the_one_before(bucket: MemoryStore, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path, "lost")
    async with journaled(url, bucket) as running:
        await running.begin()
        await running.commit(3)
        await running.caught_up()
        kept = (running.epoch, running.topic_id, running.sequence)
    before = await contents(url)
    async with journaled(url, bucket) as running:
        running.epoch, running.topic_id, running.sequence = kept
        await running.commit(2)
        await running.caught_up()
    newest = read_chain(await keys(bucket)).complete[-1]
    await replace(bucket, newest.part_key(1), b"rubbish")
    replayed, _ = await restored(bucket, sqlite_url(tmp_path, "new"))
    assert replayed.snapshot == "1-1" and len(replayed.snapshots_damaged) == 1
    assert replayed.ended_by is not None and f"{newest.generation:010}-" in replayed.ended_by
    assert await contents(sqlite_url(tmp_path, "new")) == before


async def test_nothing_to_restore_from(bucket: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(RestoreFailed, match="nothing under meta/"):
        await look(bucket)
    async with journaled(sqlite_url(tmp_path, "lost"), bucket) as running:
        await running.begin()
        await running.caught_up()
    for key in await keys(bucket, SNAPSHOT_PREFIX):
        await replace(bucket, key, b"rubbish")
    with pytest.raises(RestoreFailed, match="no snapshot in memory:// is whole"):
        await restored(bucket, sqlite_url(tmp_path, "new"))


async def test_a_store_with_something_in_it_is_not_touched(bucket: MemoryStore, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path, "lost")
    async with journaled(url, bucket) as running:
        await running.begin()
        await running.caught_up()
    before = await contents(url)
    with pytest.raises(NotEmpty):
        await restored(bucket, url)
    assert await contents(url) == before


async def test_an_interrupted_restore_is_not_led_and_can_be_repeated(
    bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, new = sqlite_url(tmp_path, "lost"), sqlite_url(tmp_path, "new")
    async with journaled(lost, bucket) as running:
        await running.begin()
        await running.commit(3)
        await running.caught_up()
    entry = read_chain(await keys(bucket)).entries[-1]
    get, asked = bucket.get, 0

    async def dies(key: str, start: int = 0, length: int | None = None) -> bytes:
        if key == entry.key:
            raise KeyboardInterrupt
        return await get(key, start, length)

    monkeypatch.setattr(bucket, "get", dies)
    with pytest.raises(KeyboardInterrupt):
        await restored(bucket, new)
    monkeypatch.undo()
    assert asked == 0
    half = open_metadata_store(new)
    with pytest.raises(StoreUnavailable, match="run tidelog restore again"):
        await half.open("nobody")
    await half.close()
    await restored(bucket, new)
    assert await contents(new) == await contents(lost)


async def test_no_id_is_used_again(bucket: MemoryStore, tmp_path: Path) -> None:
    lost, new = sqlite_url(tmp_path, "lost"), sqlite_url(tmp_path, "new")
    async with journaled(lost, bucket) as running:
        await running.begin()
        await running.commit()
        producer_id = (await running.service.grant_producer_id(-1, -1)).producer_id
        epoch = running.epoch
        await running.caught_up()
    with sqlite3.connect(tmp_path / "lost.sqlite") as connection:
        generation = int(connection.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()[0])
    _, snapshot = await restored(bucket, new, fence=True)
    assert all(agent.agent_epoch == -1 for agent in snapshot.agents) and not snapshot.answers
    assert all(row.producer_id_floor > producer_id + 999_000 for row in snapshot.partitions)
    async with journaled(new, bucket, QUICK) as running:
        assert running.journal._generation > generation + 999
        assert (await running.service.register_agent(registration())).agent_epoch > epoch + 999_999
        assert (await running.service.grant_producer_id(-1, -1)).producer_id > producer_id + 999_000
        await running.caught_up()
    assert [key for key in await keys(bucket, JOURNAL_PREFIX) if "/0000001" in key], "it goes on in the same bucket"
