"""What only the SQLite store has: a file that can be locked, full, old or new, and a cost that can be counted."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import metadata.store.sqlite
from metadata.store import sqlite_reader
from metadata.store.factory import MetadataUrlError, open_metadata_store
from metadata.store.memory import MemoryMetadataStore
from metadata.store.migrations.apply import upgrade_sqlite
from metadata.store.port import (
    CounterSaved,
    ExtentsAdded,
    LogStartMoved,
    ProducerSaved,
    SegmentAdded,
    StoreUnavailable,
    TopicSaved,
)
from metadata.store.sqlite import PAGE_BYTES, WAL_BYTES, SqliteMetadataStore
from tests.support.metadata import extent, topic, topic_id

REPOSITORY = Path(__file__).parents[3]


def added(sequence: int, *extents: object) -> list[object]:
    return [
        SegmentAdded(1, sequence, f"segments/{sequence}", 1_000, 5_000, b"answer"),
        ExtentsAdded(extents),  # type: ignore[arg-type]
    ]


@contextmanager
def inspecting(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


# --- one owner ------------------------------------------------------------------------------------------------


async def test_a_second_process_is_refused_and_told_why(tmp_path: Path) -> None:
    path = tmp_path / "metadata.sqlite"
    store = SqliteMetadataStore(path)
    await store.open("cluster")
    program = (
        "import asyncio, sys; from pathlib import Path; from metadata.store.sqlite import SqliteMetadataStore;"
        "asyncio.run(SqliteMetadataStore(Path(sys.argv[1])).open('other'))"
    )
    second = subprocess.run(
        [sys.executable, "-c", program, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert second.returncode != 0
    assert f"{path} is in use by process {os.getpid()} (lock file {path}.lock)" in second.stderr
    await store.write([CounterSaved("node_id", 1)])
    await store.close()
    third = SqliteMetadataStore(path)
    assert (await third.open("other")).counters == {"node_id": 1}
    await third.close()


async def test_a_second_store_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    first, second = (SqliteMetadataStore(tmp_path / "metadata.sqlite") for _ in range(2))
    await first.open("cluster")
    with pytest.raises(StoreUnavailable, match="in use by process"):
        await second.open("cluster")
    await first.close()
    assert (await second.open("other")).cluster_id == "cluster", "the lock was given up"
    await second.close()


async def test_closing_is_idempotent_and_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteMetadataStore(tmp_path / "metadata.sqlite")
    await store.open("cluster")
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.write([CounterSaved("node_id", 1)])
    with pytest.raises(StoreUnavailable):
        await store.find_extents(topic_id(1), 0, 0, 1, 1)


# --- failures -------------------------------------------------------------------------------------------------


async def test_a_full_disk_fails_the_write_and_a_reload_works_when_there_is_space(tmp_path: Path) -> None:
    store = SqliteMetadataStore(tmp_path / "metadata.sqlite")
    await store.open("cluster")
    await store.write([TopicSaved(topic()), *added(1, extent(0, 9))])  # type: ignore[list-item]
    before = await store.reload()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(file.stat().st_size for file in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 4_096, limits[1]))
    try:
        too_much = [ProducerSaved(topic_id(1), 0, number, b"x" * 1_000, 1) for number in range(100)]
        with pytest.raises(StoreUnavailable, match=r"metadata\.sqlite cannot be written"):
            await store.write(too_much)
        with pytest.raises(StoreUnavailable, match="must be reloaded"):
            await store.write([CounterSaved("node_id", 1)])
        assert await store.reload() == before
        assert len(await store.find_extents(topic_id(1), 0, 0, 1, 10)) == 1
        with pytest.raises(StoreUnavailable):
            await store.write(too_much)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert await store.reload() == before
    await store.write([*too_much, *added(2, extent(10, 19, key="segments/2"))])  # type: ignore[list-item]
    assert (await store.reload()).partitions[0].high_watermark == 20
    await store.close()


async def test_a_database_held_by_another_program_is_unavailable_until_it_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata.store.sqlite, "BUSY_SECONDS", 0.05)
    path = tmp_path / "metadata.sqlite"
    store = SqliteMetadataStore(path)
    await store.open("cluster")
    with inspecting(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.write([CounterSaved("node_id", 1)])
        await store.reload()
        other.execute("ROLLBACK")
    await store.write([CounterSaved("node_id", 2)])
    assert (await store.reload()).counters == {"node_id": 2}
    await store.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "metadata.sqlite"
    path.write_bytes(b"not a database" * 100)
    store = SqliteMetadataStore(path)
    with pytest.raises(StoreUnavailable, match=r"metadata\.sqlite cannot be opened"):
        await store.open("cluster")
    path.unlink()
    assert (await store.open("cluster")).cluster_id == "cluster"
    await store.close()


# --- cost -----------------------------------------------------------------------------------------------------


def filled(path: Path, extent_count: int) -> sqlite3.Connection:
    """A partition of so many extents of ten records; timestamps grow but for every tenth, which is far too early."""
    connection = sqlite3.connect(path, isolation_level=None)
    upgrade_sqlite(connection)
    connection.execute("INSERT INTO partitions (partition_key, topic_id, partition) VALUES (1, ?, 0)", (topic_id(1),))
    connection.execute("INSERT INTO segments VALUES (1, 1, 1, 'segments/1', 100, 1, 1, 1, 0, 0, '')")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO extents VALUES (1, ?, ?, 1, 0, 100, ?, ?, 1)",
        ((n * 10, n * 10 + 9, 0 if n % 10 == 9 else n, n - 1 if n % 10 == 9 else n) for n in range(extent_count)),
    )
    connection.execute("COMMIT")
    return connection


def test_the_cost_of_a_read_follows_the_result_and_not_the_backlog(tmp_path: Path) -> None:
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    costs: dict[int, list[int]] = {}
    for extent_count in (1_000, 100_000):
        connection = filled(tmp_path / f"{extent_count}.sqlite", extent_count)
        connection.set_progress_handler(step, 1)
        costs[extent_count] = []
        for offset in (5, extent_count * 5, extent_count * 10 - 5):
            steps = 0
            found = sqlite_reader.find_extents(connection, topic_id(1), 0, offset, 300, 2**62)
            assert found[0].base_offset == offset // 10 * 10
            costs[extent_count].append(steps)
        for timestamp in (0, extent_count // 2, extent_count - 2):
            steps = 0
            one = sqlite_reader.find_extent_by_timestamp(connection, topic_id(1), 0, timestamp)
            assert one is not None and one.max_timestamp_ms == timestamp
            costs[extent_count].append(steps)
        connection.close()
    assert max(costs[1_000]) > 0, "the steps were counted"
    for small, large in zip(costs[1_000], costs[100_000], strict=True):
        assert large < small * 3, "a hundred times the backlog, and only the halving costs a little more"


async def test_a_commit_and_a_read_hand_over_the_interpreter_lock_only_a_few_times(tmp_path: Path) -> None:
    """Each statement, and each row read, is a wait for a busy event loop: once it took 450 ms for 1,000 extents."""
    path = tmp_path / "metadata.sqlite"
    store = SqliteMetadataStore(path)
    await store.open("cluster")
    await store.write([TopicSaved(topic())])
    statements: list[str] = []
    assert store._connection is not None
    store._connection.set_trace_callback(statements.append)
    await store.write(
        [
            *added(1, *[extent(number, number) for number in range(1_000)]),  # type: ignore[list-item]
            *[ProducerSaved(topic_id(1), 0, number, b"x", 1) for number in range(1_000)],
        ]
    )
    assert len(statements) < 30
    with inspecting(path) as reader:
        statements.clear()
        reader.set_trace_callback(statements.append)
        rows = len(sqlite_reader.find_extents(reader, topic_id(1), 0, 0, 10**9, 1_000))
        assert (rows, len(statements)) == (1_000, 4)
        statements.clear()
        assert sqlite_reader.find_extent_by_timestamp(reader, topic_id(1), 0, 1_000) is not None
        assert len(statements) == 1
    await store.close()


async def test_a_purge_reads_what_it_removes_and_no_more(tmp_path: Path) -> None:
    """However much is behind: partitions of 20,000 and of 3 extents, of which the first two go."""
    store = SqliteMetadataStore(tmp_path / "metadata.sqlite")
    await store.open("cluster")
    steps = []
    for number, count in ((1, 3), (2, 20_000)):
        await store.write(
            [
                TopicSaved(topic(number)),
                *added(
                    number,
                    *[extent(each, each, of=topic_id(number), key=f"segments/{number}") for each in range(count)],
                ),
                LogStartMoved(topic_id(number), 0, 2),
            ]
        )

        def purge() -> int:
            connection, counted = store._connection, 0

            def count_steps() -> None:
                nonlocal counted
                counted += 1

            assert connection is not None
            connection.set_progress_handler(count_steps, 1)
            assert not store._purge(1_000, 1)
            connection.set_progress_handler(None, 1)
            return counted

        steps.append(await asyncio.get_running_loop().run_in_executor(store._write_thread, purge))
    assert steps[1] < steps[0] * 1.3
    await store.close()


# --- URLs ------------------------------------------------------------------------------------------


async def test_commits_are_synced(tmp_path: Path) -> None:
    path = tmp_path / "metadata.sqlite"
    store = SqliteMetadataStore(path)
    await store.open("cluster")
    assert store._connection is not None
    pragmas = await asyncio.get_running_loop().run_in_executor(
        store._write_thread,
        lambda: [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")],
    )
    assert pragmas == ["wal", 2]
    await store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///dir/", "postgres://x/y", "memory:", ""])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(MetadataUrlError, match="sqlite:///file"):
        open_metadata_store(url)


def test_urls_that_name_a_store() -> None:
    assert isinstance(open_metadata_store("memory://"), MemoryMetadataStore)
    for url, path in (("sqlite:////var/lib/x%20y.db", "/var/lib/x y.db"), ("sqlite:///x/y.db", "x/y.db")):
        store = open_metadata_store(url)
        assert isinstance(store, SqliteMetadataStore)
        assert store._path == Path(path)


@pytest.mark.parametrize("page_bytes", [2048, 4096])
async def test_the_log_is_copied_at_the_same_size_whatever_the_pages_have(tmp_path: Path, page_bytes: int) -> None:
    path = tmp_path / "metadata.sqlite"
    if page_bytes != PAGE_BYTES:  # a file of an earlier release
        with closing(sqlite3.connect(path)) as earlier:
            earlier.execute(f"PRAGMA page_size = {page_bytes}")
            earlier.execute("PRAGMA journal_mode = WAL")
            earlier.execute("CREATE TABLE something (x)")
    store = SqliteMetadataStore(path)
    await store.open("cluster")
    assert store._connection is not None
    (pages,) = store._connection.execute("PRAGMA wal_autocheckpoint").fetchone()
    (found,) = store._connection.execute("PRAGMA page_size").fetchone()
    assert (found, pages * found) == (page_bytes, WAL_BYTES)
    await store.close()
