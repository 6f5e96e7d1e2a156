"""Schemas that were released, brought up to date with the data in them."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from metadata.group_model import GroupRecord, MemberRecord, OffsetRecord
from metadata.model import Extent, Topic
from metadata.store import migrations
from metadata.store.migrations import READ_REVISION, REVISIONS, apply
from metadata.store.port import (
    AgentSaved,
    ExtentsAdded,
    PartitionRow,
    ProducerSaved,
    SegmentAdded,
    StoreSnapshot,
    StoreUnavailable,
)
from metadata.store.sqlite import SqliteMetadataStore
from tests.support.released import holds_what_was_released

RELEASED = sorted((Path(__file__).parent / "released").glob("*.sql"))
FIRST, SECOND = (Path(__file__).parent / "released" / f"sqlite_{revision}.sql" for revision in ("0001", "0002"))
LOGS = bytes.fromhex("1E2FEB89414C443C9027C4D1C386BBC4")
COMMIT_MS = 1_700_000_000_000


def released(script: Path, path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(script.read_text())
    connection.close()
    return path


def schema(path: Path) -> dict[str, str]:
    """Every table and index, without what has no meaning in its text."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    return {name: re.sub(r"\s+", " ", re.sub("--.*", "", sql)) for name, sql in rows}


def query(path: Path, sql: str) -> object:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


def test_the_list_of_revisions_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == REVISIONS


def test_every_revision_that_was_released_has_its_data_here() -> None:
    assert [script.stem for script in RELEASED] == ["postgresql_0002", "sqlite_0001", "sqlite_0002"]


async def test_the_first_release_is_brought_up_to_date_with_all_that_is_in_it(tmp_path: Path) -> None:
    path = released(FIRST, tmp_path / "metadata.sqlite")
    store = SqliteMetadataStore(path)
    snapshot = await store.open("another cluster")
    member = MemberRecord("m-1", "static-1", "client", "/10.0.0.1", 60_000, 10_000, (("range", b"\x00\xff"),), b"\x01")
    assert snapshot == StoreSnapshot(
        "zWE-MNjxSt-Rt1hKImWx9Q",
        (Topic(LOGS, "logs", 2, {"retention.ms": "1000"}, COMMIT_MS),),
        (PartitionRow(LOGS, 0, 0, 9, 7_000, 1_000), PartitionRow(LOGS, 1, 0, 6, 1_000, 1_000)),
        (ProducerSaved(LOGS, 0, 0, bytes.fromhex("9200929300020093030605"), COMMIT_MS),),
        (),
        (
            AgentSaved("agent-1", 1, -1, "zone-a", "default"),
            AgentSaved("agent-2", 2, -1, "zone-a", "default"),
        ),
        {"agent_epoch": 2, "node_id": 2, "producer_id": 1_000, "deleted_topics": 1_000},
        (GroupRecord("group", 3, "consumer", "range", "m-1", (member,), 9_000),),
        {"group": (OffsetRecord(LOGS, 0, 5, -1, "m", COMMIT_MS),)},
    )
    found = await store.find_extents(LOGS, 0, 0, 1_000, 9)
    assert found == [
        Extent(LOGS, 0, 0, 4, "segments/1", 0, 200, 1_000, COMMIT_MS),
        Extent(LOGS, 0, 5, 8, "segments/2", 0, 100, 7_000, COMMIT_MS),
    ]
    new = Extent(LOGS, 0, 9, 9, "segments/9", 0, 10, 8_000, COMMIT_MS)
    await store.write([SegmentAdded(3, 1, "segments/9", 10, COMMIT_MS, b"answer"), ExtentsAdded((new,))])
    await store.close()
    again = SqliteMetadataStore(path)
    assert (await again.open("another cluster")).partitions[0] == PartitionRow(LOGS, 0, 0, 10, 8_000, 1_000)
    await again.close()
    await is_like_a_fresh_one(path, tmp_path)


async def is_like_a_fresh_one(path: Path, tmp_path: Path) -> None:
    fresh = SqliteMetadataStore(tmp_path / "fresh.sqlite")
    await fresh.open("cluster")
    await fresh.close()
    assert schema(path) == schema(tmp_path / "fresh.sqlite"), "whatever the way, the schema is the same"
    assert query(path, READ_REVISION) == REVISIONS[-1]


async def test_the_second_release_learns_what_its_segments_hold(tmp_path: Path) -> None:
    path = released(SECOND, tmp_path / "metadata.sqlite")
    store = SqliteMetadataStore(path)
    await holds_what_was_released(store, await store.open("another cluster"))
    await store.close()
    await is_like_a_fresh_one(path, tmp_path)


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = released(FIRST, tmp_path / "metadata.sqlite")
    before = schema(path)
    run = migrations.apply.command.upgrade

    def interrupted(config: Config, to: str) -> None:
        run(config, to)
        raise sqlite3.OperationalError("planted: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(apply.command, "upgrade", interrupted)
        with pytest.raises(StoreUnavailable, match="disk full"):
            await SqliteMetadataStore(path).open("cluster")
    assert schema(path) == before
    assert query(path, "PRAGMA user_version") == 1
    store = SqliteMetadataStore(path)
    assert len((await store.open("cluster")).topics) == 1
    await store.close()


@pytest.mark.parametrize("newer", ["PRAGMA user_version = 999", "UPDATE alembic_version SET version_num = '0999'"])
async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, newer: str) -> None:
    path = tmp_path / "metadata.sqlite"
    if "alembic" in newer:
        store = SqliteMetadataStore(path)
        await store.open("cluster")
        await store.close()
    connection = sqlite3.connect(path)
    connection.execute(newer)
    connection.commit()
    connection.close()
    with pytest.raises(StoreUnavailable, match=r"metadata\.sqlite cannot be opened: .* newer Tidelog"):
        await SqliteMetadataStore(path).open("cluster")


def test_a_release_from_before_alembic_refuses_what_was_migrated(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "metadata.sqlite", isolation_level=None)
    apply.upgrade_sqlite(connection)
    assert connection.execute("PRAGMA user_version").fetchone()[0] > 1
    connection.close()


async def test_a_start_without_anything_to_migrate_does_not_import_alembic(tmp_path: Path) -> None:
    store = SqliteMetadataStore(tmp_path / "metadata.sqlite")
    await store.open("cluster")
    await store.close()
    program = (
        "import asyncio, sys; from pathlib import Path; from metadata.store.sqlite import SqliteMetadataStore\n"
        f"store = SqliteMetadataStore(Path({str(tmp_path / 'metadata.sqlite')!r}))\n"
        "asyncio.run(store.open('c')); print({'alembic', 'sqlalchemy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
