"""Who leads on PostgreSQL: handed over, taken from the dead and the frozen, and never held by two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from metadata.store import postgres_leadership
from metadata.store.port import (
    CounterSaved,
    Deposed,
    ExtentsAdded,
    SegmentAdded,
    StoreUnavailable,
    TopicDropped,
    TopicSaved,
)
from metadata.store.postgres import PostgresMetadataStore
from runtime.clock import SystemClock
from tests.support.fault_proxy import FaultProxy, Link
from tests.support.metadata import extent, topic, topic_id
from tests.tools.postgres import PostgresServer, require_postgres

LEASE_MS = 1_000
LEASE_SECONDS = LEASE_MS / 1000
LONG_LEASE_MS = 10_000

pytestmark = pytest.mark.integration


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


def store_on(url: str, lease_ms: int = LEASE_MS) -> PostgresMetadataStore:
    return PostgresMetadataStore(url, lease_ms, SystemClock())


@asynccontextmanager
async def renewing(store: PostgresMetadataStore) -> AsyncIterator[None]:
    """As the process does while it leads; failures are the test's business elsewhere."""

    async def renew() -> None:
        while True:
            with suppress(StoreUnavailable):
                await store.renew()
            await asyncio.sleep(LEASE_SECONDS / 4)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def leading(url: str, lease_ms: int = LEASE_MS) -> AsyncIterator[PostgresMetadataStore]:
    """A store that leads and is open. Nobody renews."""
    store = store_on(url, lease_ms)
    await store.lead()
    await store.open("cluster")
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def standing_by(
    url: str, lease_ms: int = LEASE_MS
) -> AsyncIterator[tuple[PostgresMetadataStore, asyncio.Task[int]]]:
    """A store that waits for its turn, and has waited for some looks already."""
    store = store_on(url, lease_ms)
    task = asyncio.create_task(store.lead())
    await asyncio.sleep(2 * postgres_leadership.LOOK_SECONDS)
    try:
        yield store, task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


@asynccontextmanager
async def holding(postgres: PostgresServer, url: str, table: str) -> AsyncIterator[asyncpg.Connection]:  # type: ignore[type-arg]
    """Somebody keeps everybody from writing to ``table``: a write to it is under way for as long."""
    connection = await asyncpg.connect(postgres.url(url.rpartition("/")[2], "postgres"))
    await connection.execute(f"BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE")
    try:
        yield connection
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await connection.close()


def counters(postgres: PostgresServer, url: str) -> dict[str, int]:
    rows = postgres.execute("SELECT name, value FROM counters", url.rpartition("/")[2]).splitlines()
    return {name: int(value) for name, value in (row.split("|") for row in rows)}


async def until(condition: object, seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def writing_to(postgres: PostgresServer, url: str) -> None:
    """Wait until a write of the leader hangs at somebody's lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = '{}'"
    await until(lambda: postgres.execute(waiting.format(url.rpartition("/")[2])) != "0")


# --- handing over -------------------------------------------------------------------------------------------------


async def test_a_leader_that_renews_is_left_alone_and_generations_grow(url: str) -> None:
    async with leading(url) as first, renewing(first), standing_by(url) as (second, led):
        await first.write([CounterSaved("node_id", 1)])
        await asyncio.sleep(2 * LEASE_SECONDS)
        assert not led.done()
        await first.close()
        assert await led == 2
        assert (await second.open("another")).counters == {"node_id": 1}
        assert (await second.reload()).cluster_id == "cluster"


async def test_of_many_that_stand_by_one_leads(url: str) -> None:
    stores = [store_on(url) for _ in range(5)]
    tasks = [asyncio.create_task(store.lead()) for store in stores]
    await until(lambda: any(task.done() for task in tasks))
    leader = next(store for store, task in zip(stores, tasks, strict=True) if task.done())
    async with renewing(leader):
        await asyncio.sleep(2 * LEASE_SECONDS)
        assert sum(task.done() for task in tasks) == 1
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for store in stores:
        await store.close()


async def test_whoever_gives_up_waiting_leaves_nothing_behind(postgres: PostgresServer, url: str) -> None:
    async with leading(url) as leader, renewing(leader):
        async with standing_by(url):
            pass
        sessions = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'"
        await until(lambda: postgres.execute(sessions) == "2")  # the writer and the keeper
        await leader.write([CounterSaved("node_id", 1)])


async def test_one_process_for_itself_renews_by_itself(url: str) -> None:
    embedded = store_on(url)
    await embedded.open("cluster")
    with pytest.raises(StoreUnavailable, match="is in use: another process leads and renews"):
        await store_on(url).open("cluster")
    await embedded.write([CounterSaved("node_id", 1)])
    await embedded.close()


# --- the dead and the frozen ----------------------------------------------------------------------------------------


async def test_a_leader_that_closes_is_replaced_at_once(url: str) -> None:
    """Long leases where it must not take one: with short ones a busy machine makes "at once" as long as a lease."""
    async with leading(url, LONG_LEASE_MS) as first, standing_by(url, LONG_LEASE_MS) as (_, led):
        await first.close()
        async with asyncio.timeout(LONG_LEASE_MS / 2000):
            assert await led == 2


async def test_a_leader_whose_session_is_gone_is_replaced_at_once(url: str) -> None:
    async with leading(url, LONG_LEASE_MS) as first, standing_by(url, LONG_LEASE_MS) as (second, led):
        assert first._connection is not None
        first._connection.terminate()
        async with asyncio.timeout(LONG_LEASE_MS / 2000):
            assert await led == 2
        assert not first.sure(), "it noticed by itself"
        await second.open("cluster")
        with pytest.raises(Deposed):
            await first.renew()


async def test_a_silent_leader_is_replaced_after_the_lease_and_changes_nothing_more(
    postgres: PostgresServer, url: str
) -> None:
    async with leading(url) as frozen:
        await frozen.write([TopicSaved(topic(1)), TopicSaved(topic(2)), CounterSaved("node_id", 1)])
        await frozen.renew()
        silent_since = time.monotonic()
        async with standing_by(url) as (second, led):
            assert await led == 2
            assert LEASE_SECONDS <= time.monotonic() - silent_since < LEASE_SECONDS + 1
            await second.open("another")
            before = await second.reload()
            for change in (CounterSaved("node_id", 9), TopicDropped(topic_id(1))):
                with pytest.raises(StoreUnavailable):
                    await frozen.write([change])
                with pytest.raises(Deposed):
                    await frozen.reload()
            with pytest.raises(Deposed):
                await frozen.renew()
            assert await second.reload() == before
            await second.write([CounterSaved("node_id", 2)])
    assert counters(postgres, url) == {"node_id": 2}


@pytest.mark.parametrize(
    "changes",
    [
        [CounterSaved("node_id", 9)],
        [CounterSaved("node_id", 9), TopicSaved(topic(3))],
        [TopicDropped(topic_id(1))],
    ],
    ids=["one statement", "several", "a deletion"],
)
async def test_the_generation_alone_keeps_a_deposed_leader_from_writing(
    postgres: PostgresServer, url: str, changes: list[object]
) -> None:
    """As behind a pooler that took the session, and with it the lock, away unnoticed."""
    async with leading(url) as store:
        await store.write([TopicSaved(topic(1)), CounterSaved("node_id", 1)])
        before = await store.reload()
        postgres.execute("UPDATE leader SET generation = generation + 1", url.rpartition("/")[2])
        with pytest.raises(Deposed, match="generation"):
            await store.write(changes)  # type: ignore[arg-type]
        with pytest.raises(Deposed):
            await store.write([CounterSaved("node_id", 10)])
        with pytest.raises(Deposed):
            await store.reload()
    async with leading(url) as again:
        assert await again.reload() == before


async def test_a_purge_stops_when_another_leads(postgres: PostgresServer, url: str) -> None:
    database = url.rpartition("/")[2]
    async with leading(url) as store:
        extents = tuple(extent(number, number) for number in range(30))
        segment = SegmentAdded(1, 1, "segments/1", 1_000, 5_000, b"answer")
        await store.write([TopicSaved(topic()), segment, ExtentsAdded(extents)])
        await store.write([TopicDropped(topic_id(1))])
        assert await store.purge(10, 1)
        postgres.execute("UPDATE leader SET generation = generation + 1", database)
        with pytest.raises(Deposed):
            await store.purge(10, 1)
        with pytest.raises(Deposed):
            await store.write([CounterSaved("node_id", 1)])
    async with leading(url) as again:
        assert postgres.execute("SELECT count(*) FROM extents", database) == "20"
        assert not await again.purge(100, 1)
        assert postgres.execute("SELECT count(*) FROM extents", database) == "0"


async def test_a_leader_is_replaced_while_a_write_of_it_is_under_way(postgres: PostgresServer, url: str) -> None:
    async with leading(url) as frozen, holding(postgres, url, "counters"):
        write = asyncio.create_task(frozen.write([CounterSaved("node_id", 9)]))
        await writing_to(postgres, url)
        async with standing_by(url) as (second, led):
            assert await led == 2
            with pytest.raises(StoreUnavailable):
                await write
            assert (await second.open("another")).counters == {}
            with pytest.raises(Deposed):
                await frozen.reload()
    assert counters(postgres, url) == {}, "nothing of it comes in behind"


async def test_a_long_write_does_not_keep_the_leader_from_renewing(postgres: PostgresServer, url: str) -> None:
    async with leading(url) as store, renewing(store), standing_by(url) as (_, led):
        async with holding(postgres, url, "counters"):
            write = asyncio.create_task(store.write([CounterSaved("node_id", 9)]))
            await writing_to(postgres, url)
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert not led.done()
        await write
        assert counters(postgres, url) == {"node_id": 9}


# --- lost connections -----------------------------------------------------------------------------------------------


async def test_a_lost_session_is_regained_and_writing_goes_on(postgres: PostgresServer, url: str) -> None:
    database = url.rpartition("/")[2]
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%{}%' AND datname = '{}'"
    async with leading(url, lease_ms=10_000) as store:
        await store.write([CounterSaved("node_id", 1)])
        postgres.execute(end.format("writer", database))
        await until(lambda: not store.sure())
        await store.write([CounterSaved("node_id", 2)])
        assert store.sure()
        postgres.execute(end.format("writer", database))
        await until(lambda: not store.sure())
        await store.renew()
        assert store.sure(), "renewing does it too, where there is nothing to write"
        postgres.execute(end.format("keeper", database))
        with suppress(StoreUnavailable):
            await store.renew()
        await store.renew()
        await store.write([CounterSaved("node_id", 3)])
    assert counters(postgres, url) == {"node_id": 3}


async def test_a_session_lost_in_a_write_is_regained_by_a_reload(postgres: PostgresServer, url: str) -> None:
    async with leading(url) as store, holding(postgres, url, "counters"):
        write = asyncio.create_task(store.write([CounterSaved("node_id", 9)]))
        await writing_to(postgres, url)
        assert store._connection is not None
        store._connection.terminate()
        with pytest.raises(StoreUnavailable):
            await write
        with pytest.raises(StoreUnavailable, match="must be reloaded"):
            await store.write([CounterSaved("node_id", 10)])
        began = time.monotonic()
        assert (await store.reload()).counters == {}, "the server's side of it was ended first"
        assert time.monotonic() - began < 2
    assert counters(postgres, url) == {}


async def test_a_lost_session_that_the_server_still_has_is_ended_before_the_state_is_read(
    postgres: PostgresServer, url: str, link: Link
) -> None:
    """Its commit may be on its way: what it wrote must be decided, one way or the other, when the snapshot is taken."""
    async with leading(through(link, postgres, url)) as store, holding(postgres, url, "counters"):
        write = asyncio.create_task(store.write([CounterSaved("node_id", 9)]))
        await writing_to(postgres, url)
        link.blackhole()  # the server does not hear that the connection is gone
        assert store._connection is not None
        store._connection.terminate()
        with pytest.raises(StoreUnavailable):
            await write
        store._server = store_on(url)._server
        began = time.monotonic()
        assert (await store.reload()).counters == {}
        assert time.monotonic() - began < 2
    assert counters(postgres, url) == {}


@pytest.mark.parametrize("raised", ["leader", "renewals"])
async def test_a_renewal_finds_out_that_another_leads(postgres: PostgresServer, url: str, raised: str) -> None:
    async with leading(url) as store:
        await store.renew()
        postgres.execute(f"UPDATE {raised} SET generation = generation + 1", url.rpartition("/")[2])
        if raised == "leader":  # it is compared when the lock is taken again
            assert store._connection is not None
            store._connection.terminate()
        with pytest.raises(Deposed):
            await store.renew()
        assert not store.sure()


async def test_a_restart_of_postgresql_under_the_leader() -> None:
    require_postgres()
    with PostgresServer() as server:
        url = server.create_database()
        async with leading(url) as store:
            await store.write([CounterSaved("node_id", 1)])
            for number in (2, 3):
                server.stop()
                with pytest.raises(StoreUnavailable, match="cannot be read: "):
                    await store.reload()
                server.start()
                assert (await store.reload()).counters == {"node_id": number - 1}
                await store.renew()
                await store.write([CounterSaved("node_id", number)])
            assert await store.find_extents(topic_id(1), 0, 0, 1, 1) == []


# --- a network between ------------------------------------------------------------------------------------------------


@pytest.fixture
def link(postgres: PostgresServer, url: str) -> Iterator[Link]:
    with FaultProxy() as network:
        yield network.link("postgres", f"127.0.0.1:{postgres.port}")


def through(link: Link, postgres: PostgresServer, url: str) -> str:
    return postgres.url(url.rpartition("/")[2], port=int(link.address.rpartition(":")[2]))


async def test_a_leader_that_is_cut_off_gives_up_its_write_within_the_lease(
    postgres: PostgresServer, url: str, link: Link
) -> None:
    async with leading(through(link, postgres, url)) as store:
        await store.write([CounterSaved("node_id", 1)])
        await store.renew()
        link.blackhole()
        began = time.monotonic()
        write = asyncio.create_task(store.write([CounterSaved("node_id", 2)]))
        async with renewing_with_limit(store):
            with pytest.raises(StoreUnavailable):
                await write
        assert time.monotonic() - began < LEASE_SECONDS + 1
        link.pass_()
        async with asyncio.timeout(5):
            while True:
                try:
                    snapshot = await store.reload()
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
        assert snapshot.counters["node_id"] in (1, 2)
        before = snapshot.counters["node_id"]
        await asyncio.sleep(0.5)
        assert (await store.reload()).counters["node_id"] == before, "what was reloaded is final"


async def test_a_leader_that_is_cut_off_is_replaced_and_learns_of_it(
    postgres: PostgresServer, url: str, link: Link
) -> None:
    async with leading(through(link, postgres, url)) as cut, standing_by(url) as (second, led):
        await cut.write([CounterSaved("node_id", 1)])
        await cut.renew()
        link.blackhole()
        assert await led == 2
        await second.open("another")
        await second.write([CounterSaved("node_id", 5)])
        link.pass_()
        async with asyncio.timeout(5):
            while True:
                try:
                    await cut.renew()
                except Deposed:
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
        with pytest.raises(Deposed):
            await cut.write([CounterSaved("node_id", 9)])
    assert counters(postgres, url) == {"node_id": 5}


async def test_connections_that_are_reset_cost_one_write_at_most(
    postgres: PostgresServer, url: str, link: Link
) -> None:
    async with leading(through(link, postgres, url), lease_ms=10_000) as store:
        for number in range(1, 6):
            link.break_connections()
            try:
                await store.write([CounterSaved("node_id", number)])
            except StoreUnavailable:
                await store.reload()
                await store.write([CounterSaved("node_id", number)])
            await store.renew()
    assert counters(postgres, url) == {"node_id": 5}


async def test_a_standby_that_hears_nothing_says_so_instead_of_waiting_for_ever(
    postgres: PostgresServer, url: str, link: Link
) -> None:
    async with leading(url) as leader, renewing(leader), standing_by(through(link, postgres, url)) as (_, led):
        link.blackhole()
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            async with asyncio.timeout(5):
                await led


@asynccontextmanager
async def renewing_with_limit(store: PostgresMetadataStore) -> AsyncIterator[None]:
    """As the process does: no attempt may take longer than the pause between them."""

    async def renew() -> None:
        while True:
            with suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS / 4):
                    await store.renew()
            await asyncio.sleep(LEASE_SECONDS / 4)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


# --- a new database ---------------------------------------------------------------------------------------------------


async def test_processes_that_start_together_on_an_empty_database_migrate_it_once(postgres: PostgresServer) -> None:
    url = postgres.create_empty_database()
    stores = [store_on(url) for _ in range(3)]
    tasks = [asyncio.create_task(store.lead()) for store in stores]
    for _ in stores:
        done, _ = await asyncio.wait(
            [task for task in tasks if not task.cancelled()], timeout=20, return_when="FIRST_COMPLETED"
        )
        (task,) = done
        index = tasks.index(task)
        await stores[index].open("cluster")
        await stores[index].close()
        tasks.pop(index)
        stores.pop(index)
        if not tasks:
            break
    postgres.drop_database(url)


async def test_a_leader_that_migrates_is_not_replaced(postgres: PostgresServer, url: str) -> None:
    async with leading(url) as store, holding(postgres, url, "calls") as other:
        await other.fetchval(f"SELECT pg_advisory_lock({postgres_leadership.MIGRATING})")
        async with standing_by(url) as (_, led):
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert not led.done()
            await other.fetchval(f"SELECT pg_advisory_unlock({postgres_leadership.MIGRATING})")
            assert await led == 2
        with pytest.raises(Deposed):
            await store.renew()
