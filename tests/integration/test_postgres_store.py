"""What only the PostgreSQL store has: errors that help and hide passwords, plans that must not change, a purge."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from metadata.store import postgres_reader
from metadata.store.factory import MetadataUrlError, open_metadata_store
from metadata.store.migrations import REVISIONS
from metadata.store.port import (
    Change,
    CounterSaved,
    Deposed,
    ExtentsAdded,
    LogStartMoved,
    OffsetsSaved,
    ProducerSaved,
    SegmentAdded,
    StoreUnavailable,
    TopicSaved,
)
from metadata.store.postgres import PostgresMetadataStore
from metadata.store.postgres_bulk import COPY_ROWS_MIN
from runtime.clock import SystemClock
from tests.support.metadata import extent, topic, topic_id
from tests.support.released import holds_what_was_released
from tests.tools.postgres import GUARDED_USER, PASSWORD, PostgresServer

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


def database(url: str) -> str:
    return url.rpartition("/")[2]


def store_on(url: str) -> PostgresMetadataStore:
    return PostgresMetadataStore(url, 4_000, SystemClock())


def added(sequence: int, *extents: Any) -> list[Change]:
    return [SegmentAdded(1, sequence, f"segments/{sequence}", 1_000, 5_000, b"answer"), ExtentsAdded(extents)]


async def test_a_deposed_leader_copies_nothing(url: str) -> None:
    store = store_on(url)
    await store.open("cluster")
    await store.write([TopicSaved(topic())])
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE leader SET generation = generation + 1")
    extents = [extent(at, at, key="segments/1") for at in range(COPY_ROWS_MIN)]
    with pytest.raises(Deposed):
        await store.write(added(1, *extents))
    assert await connection.fetchval("SELECT count(*) FROM extents") == 0
    await connection.close()
    await store.close()


# --- errors -----------------------------------------------------------------------------------------------------------


async def refused(url: str) -> str:
    store = open_metadata_store(url)
    with pytest.raises(StoreUnavailable) as error:
        await store.open("cluster")
    await store.close()
    causes = [error.value, error.value.__cause__, error.value.__context__]
    assert all(PASSWORD not in f"{each!r} {each}" for each in causes)
    return str(error.value)


async def test_errors_say_which_database_and_what_to_do(postgres: PostgresServer, url: str) -> None:
    here, name = f"postgresql://127.0.0.1:{postgres.port}", database(url)
    wrong = await refused(postgres.url(name, f"{GUARDED_USER}:wrong-{PASSWORD}"))
    assert wrong.startswith(f"{here}/{name} cannot be led: password authentication failed")
    assert wrong.endswith("check the user, and the password in PGPASSWORD, a passfile or the URL")
    assert "create the database first" in await refused(postgres.url("nowhere"))
    assert "the user must own the database" in await refused(postgres.url(name, f"{GUARDED_USER}:{PASSWORD}"))
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
        began = time.monotonic()
        assert "no answer in time" in await refused(postgres.url(name, f"u:{PASSWORD}", port))
        assert time.monotonic() - began < 5
    assert "is it running, and reachable from here?" in await refused(postgres.url(name, f"u:{PASSWORD}", port))
    assert "cannot be led" in await refused(f"postgresql://u:{PASSWORD}@no.such.host.invalid/{name}")


async def test_a_password_in_the_url_is_used(postgres: PostgresServer) -> None:
    url = postgres.create_empty_database()
    postgres.execute(f"ALTER DATABASE {database(url)} OWNER TO {GUARDED_USER}")
    store = open_metadata_store(postgres.url(database(url), f"{GUARDED_USER}:{PASSWORD}"))
    assert (await store.open("cluster")).cluster_id == "cluster"
    await store.close()
    postgres.drop_database(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://u:s3cret-pa55@host",
        "postgresql://u:s3cret-pa55@host/",
        "postgresql://u:s3cret-pa55@/database",
        "postgresql://u:s3cret-pa55@host:port/database",
        "postgresql://u:s3cret-pa55@host:1,host:x/database",
        "postgresql://u:s3cret-pa55@x@host/database",
        "postgresql://u:s3cret-pa55/x@host/database",
        "postgresql://u:s3cret-pa55#x@host/database",
        "postgresql://u:[s3cret-pa55@host/database",
        "postgresql:s3cret-pa55",
        "postgres://u:s3cret-pa55@host/database",
        "mysql://u:s3cret-pa55@host/database",
    ],
)
def test_urls_that_name_no_database_are_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(MetadataUrlError, match="postgresql://user@host:port/database") as error:
        open_metadata_store(url)
    assert "s3cret" not in f"{error.value!r}".replace("postgresql:s3cret-pa55", "")


@pytest.mark.parametrize(
    "named", ["u@h/d", "u@h:5432/d", "u@h1,h2:5433/d?sslmode=require", "u@[::1]:5432/d%20x", "h/d"]
)
def test_urls_that_name_a_database(named: str) -> None:
    assert isinstance(open_metadata_store(f"postgresql://{named}"), PostgresMetadataStore)


async def test_the_start_of_tidelog_shows_no_password(postgres: PostgresServer, tmp_path: Path) -> None:
    wrong = postgres.url("nowhere", f"{GUARDED_USER}:{PASSWORD}")
    done = await asyncio.to_thread(
        subprocess.run,
        [Path(sys.executable).with_name("tidelog"), "up", "--data", str(tmp_path), "--metadata", wrong],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert f"metadata = 'postgresql://{GUARDED_USER}:***@127.0.0.1:{postgres.port}/nowhere'" in said
    assert PASSWORD not in said


async def test_a_replica_is_not_written_to(postgres: PostgresServer, url: str) -> None:
    postgres.execute(f"ALTER DATABASE {database(url)} SET default_transaction_read_only = on")
    assert "read-only transaction" in await refused(url)


async def test_a_schema_of_a_newer_version_is_left_alone(postgres: PostgresServer, url: str) -> None:
    postgres.execute("UPDATE alembic_version SET version_num = '0999'", database(url))
    assert "used by a newer Tidelog" in await refused(url)
    assert postgres.execute("SELECT version_num FROM alembic_version", database(url)) == "0999"


async def test_an_empty_database_gets_the_newest_schema(postgres: PostgresServer) -> None:
    url = postgres.create_empty_database()
    store = store_on(url)
    await store.open("cluster")
    await store.close()
    assert postgres.execute("SELECT version_num FROM alembic_version", database(url)) == REVISIONS[-1]
    postgres.drop_database(url)


async def test_closing_is_idempotent_and_a_closed_store_says_so(url: str) -> None:
    store = store_on(url)
    await store.open("cluster")
    await store.close()
    await store.close()
    for call in (
        lambda: store.write([CounterSaved("node_id", 1)]),
        store.reload,
        store.renew,
        store.lead,
        lambda: store.find_extents(topic_id(1), 0, 0, 1, 1),
    ):
        with pytest.raises(StoreUnavailable, match="is closed"):
            await call()


async def test_an_error_of_the_server_fails_one_write_and_a_reload_makes_good(
    postgres: PostgresServer, url: str
) -> None:
    store = store_on(url)
    await store.open("cluster")
    await store.write([TopicSaved(topic()), *added(1, extent(0, 9))])
    before = await store.reload()
    postgres.execute("ALTER TABLE extents ADD CONSTRAINT planted CHECK (base_offset < 20)", database(url))
    for wrong in (
        added(2, *[extent(number, number, key="segments/2") for number in range(10, 30)]),
        [CounterSaved("node_id", 1), TopicSaved(topic(2)), *added(2, extent(10, 29, key="segments/2"), extent(0, 0))],
        [TopicSaved(topic(2)), *added(2, *[extent(each, each, key="segments/2") for each in range(10, 30)])],
    ):
        with pytest.raises((StoreUnavailable, ValueError)):
            await store.write(wrong)
        with pytest.raises(StoreUnavailable, match="must be reloaded"):
            await store.write([CounterSaved("node_id", 2)])
        assert await store.reload() == before
    await store.write(added(2, extent(10, 19, key="segments/2")))
    assert (await store.reload()).partitions[0].high_watermark == 20
    await store.close()


async def test_a_write_that_was_cancelled_is_settled_by_a_reload(postgres: PostgresServer, url: str) -> None:
    store = store_on(url)
    await store.open("cluster")
    for number in range(1, 30):
        write = asyncio.create_task(store.write([CounterSaved("node_id", number)]))
        await asyncio.sleep(number / 10_000)
        write.cancel()
        try:
            await write
            settled = number
        except asyncio.CancelledError:
            settled = (await store.reload()).counters.get("node_id", 0)
        stored = postgres.execute("SELECT max(value) FROM counters", database(url)) or "0"
        assert int(stored) == settled, "what a reload has seen is final"
    await store.close()


# --- durability -------------------------------------------------------------------------------------------------------


async def test_commits_are_synchronous_and_renewals_are_not(postgres: PostgresServer, url: str) -> None:
    postgres.execute(f"ALTER DATABASE {database(url)} SET synchronous_commit = off")
    store = store_on(url)
    await store.open("cluster")
    await store.renew()
    assert store._connection is not None and store._keeper is not None
    assert await store._connection.fetchval("SHOW synchronous_commit") == "on"
    assert await store._keeper.fetchval("SHOW synchronous_commit") == "off"
    await store.close()


@pytest.mark.slow
async def test_what_was_acknowledged_survives_a_crash_of_postgresql() -> None:
    with PostgresServer(durable=True) as server:
        url = server.create_database()
        store = store_on(url)
        await store.open("cluster")
        for round_number in range(1, 4):
            acknowledged = 0

            async def write() -> None:
                nonlocal acknowledged
                for number in range(1, 100_000):
                    await store.write([CounterSaved(f"counter-{round_number}", number)])  # noqa: B023
                    acknowledged = number

            writing = asyncio.create_task(write())
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            with pytest.raises(StoreUnavailable):
                await writing
            await asyncio.to_thread(server.start)
            kept = (await store.reload()).counters[f"counter-{round_number}"]
            assert kept in (acknowledged, acknowledged + 1) and acknowledged > 10
        await store.close()


# --- cost -------------------------------------------------------------------------------------------------------------


async def pages(connection: Any, query: str, *arguments: object) -> int:
    """Pages of the database that ``query`` looks at, planned as it is on a reader's connection."""
    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *arguments)
    top = json.loads(plan)[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


async def fill(store: PostgresMetadataStore, connection: Any, first: int, count: int) -> None:
    """So many extents more, of ten records; timestamps grow but for every tenth, which is far too early."""
    await connection.execute(
        "INSERT INTO extents SELECT (SELECT partition_key FROM partitions WHERE partition = 0), n * 10, n * 10 + 9, 1,"
        " 0, 100, CASE WHEN n % 10 = 9 THEN 0 ELSE n END, CASE WHEN n % 10 = 9 THEN n - 1 ELSE n END, 1"
        " FROM generate_series($1::bigint, $2::bigint) AS n",
        first,
        first + count - 1,
    )


async def test_the_cost_of_a_read_follows_the_result_even_with_a_plan_made_when_the_table_was_small(
    postgres: PostgresServer, url: str
) -> None:
    store = store_on(url)
    await store.open("cluster")
    await store.write([TopicSaved(topic()), *added(1)])
    connection = await store._server.connect("reader", 60)
    costs: dict[int, list[int]] = {}
    first = 0
    for count in (1_000, 100_000):
        await fill(store, connection, first, count - first)
        first = count
        costs[count] = []
        for offset in (5, count * 5, count * 10 - 5):
            found = await postgres_reader.find_extents(await pool(store), topic_id(1), 0, offset, 300, 2**62)
            assert found[0].base_offset == offset // 10 * 10
            costs[count].append(await pages(connection, postgres_reader._FIND, topic_id(1), 0, offset, 2**62, 16))
        for timestamp in (0, count // 2, count - 2):
            one = await store.find_extent_by_timestamp(topic_id(1), 0, timestamp)
            assert one is not None and one.max_timestamp_ms == timestamp
            costs[count].append(await pages(connection, postgres_reader._FIND_BY_TIMESTAMP, topic_id(1), 0, timestamp))
    await connection.close()
    await store.close()
    assert min(costs[1_000]) > 0, "pages were counted"
    for small, large in zip(costs[1_000], costs[100_000], strict=True):
        assert large < small * 4, f"a hundred times the backlog: {costs}"


async def pool(store: PostgresMetadataStore) -> Any:
    async with store._reading() as readers:
        return readers


async def test_a_usual_write_is_one_round_trip_until_copy_pays(url: str) -> None:
    store = store_on(url)
    await store.open("cluster")
    await store.write([TopicSaved(topic())])
    changes: list[Change] = [
        *added(1, *[extent(number, number) for number in range(1_000)]),
        *[ProducerSaved(topic_id(1), 0, number, b"x", 1) for number in range(1_000)],
        CounterSaved("producer_id", 1_000),
        OffsetsSaved("g", ()),
    ]
    await store.write(changes)
    statements: list[str] = []
    assert store._connection is not None
    store._connection.add_query_logger(lambda record: statements.append(record.query))
    await store.write(
        added(2, *[extent(1_000 + each, 1_000 + each, key="segments/2") for each in range(COPY_ROWS_MIN - 1)])
    )
    await asyncio.sleep(0)  # it is logged in the loop's next turn
    assert len(statements) == 1
    await store.close()


async def test_a_released_schema_is_brought_up_to_date_with_all_that_is_in_it(postgres: PostgresServer) -> None:
    script = REPOSITORY / "tests" / "unit" / "metadata" / "released" / "postgresql_0002.sql"
    url = postgres.create_empty_database()
    connection = await asyncpg.connect(url)
    await connection.execute(script.read_text())
    await connection.close()
    store = store_on(url)
    await holds_what_was_released(store, await store.open("another cluster"))
    await store.close()

    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    fresh = postgres.create_database()
    for query in (columns, indexes):
        assert postgres.execute(query, database(url)) == postgres.execute(query, database(fresh))
    postgres.release_database(fresh)
    postgres.drop_database(url)


async def test_a_purge_reads_what_it_removes_and_no_more(postgres: PostgresServer, url: str) -> None:
    """However much is behind: a partition of 20,000 extents of which the first two go."""
    store = store_on(url)
    await store.open("cluster")
    await store.write([TopicSaved(topic()), *added(1, *[extent(number, number) for number in range(20_000)])])
    await store.write([LogStartMoved(topic_id(1), 0, 2)])
    fetched = "SELECT coalesce(sum(idx_tup_fetch), 0) FROM pg_stat_user_tables WHERE relname = 'extents'"
    await store.close()
    postgres.execute("SELECT pg_stat_reset()", database(url))
    store = store_on(url)
    await store.open("cluster")
    assert not await store.purge(1_000, 1)
    await store.close()
    async with asyncio.timeout(10):
        while not (read := int(postgres.execute(fetched, database(url)))):
            await asyncio.sleep(0.05)
    assert read < 20


@pytest.mark.slow
async def test_a_snapshot_of_a_large_cluster_takes_seconds(postgres: PostgresServer, url: str) -> None:
    """90,000 partitions with ten extents each, and 100,000 producers."""
    store = store_on(url)
    await store.open("cluster")
    topics = [topic(number, 1_000) for number in range(1, 91)]
    for each in topics:
        await store.write([TopicSaved(each)])
    await store.write(added(1))
    await asyncio.to_thread(
        postgres.execute,
        "INSERT INTO extents SELECT partition_key, n, n, 1, 0, 100, n, n, 1"
        " FROM partitions, generate_series(0, 9) AS n;"
        " INSERT INTO producers SELECT partition_key, partition_key, '\\x00', 1 FROM partitions;"
        " INSERT INTO producers SELECT partition_key, 0, '\\x00', 1 FROM partitions LIMIT 10000",
        database(url),
    )
    began = time.monotonic()
    snapshot = await store.reload()
    took_s = time.monotonic() - began
    assert (len(snapshot.partitions), len(snapshot.producers)) == (90_000, 100_000)
    assert all(row.high_watermark == 10 for row in snapshot.partitions)
    print(f"snapshot: {took_s:.2f} s")
    assert took_s < 10
    await store.close()
