"""Durable stores as tables: a view is one moment, and fills an empty store of either kind with the same state."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from metadata.group_model import OffsetRecord
from metadata.journal.restore import RestoringStore
from metadata.store.factory import open_metadata_store
from metadata.store.port import (
    AgentSaved,
    AnswersSettled,
    CallAnswered,
    CounterSaved,
    LogStartMoved,
    OffsetsSaved,
    ProducerSaved,
    ProducersExpired,
    StoreUnavailable,
    TopicDropped,
    TopicSaved,
)
from metadata.store.tables import NotEmpty, Table
from tests.support.journals import contents
from tests.support.metadata import added, extent, topic, topic_id
from tests.support.metadata_stores import DURABLE_STORES, metadata_url


async def fill(store: RestoringStore) -> None:
    """Something in every table."""
    await store.open("cluster-1")
    await store.write([TopicSaved(topic(2, 3, "gone")), *added(0, extent(0, 9, of=topic_id(2), key="segments/0"))])
    await store.write(
        [
            TopicDropped(topic_id(2)),
            TopicSaved(topic(1, 2, "kept")),
            *(
                change
                for n in range(1, 40)
                for change in added(n, extent(10 * n - 10, 10 * n - 1, key=f"segments/{n}"))
            ),
            AnswersSettled(1, 38),
            LogStartMoved(topic_id(1), 0, 25),
            ProducerSaved(topic_id(1), 1, 7, b"\x00\xff state", 5_000),
            ProducersExpired(((topic_id(1), 0, 3),)),
            AgentSaved(
                "agent-1", 1, 1, "zone-a", "default", "127.0.0.1", 9092, "127.0.0.1:1", "0.1", ("proxy", "jobs"), 1
            ),
            CounterSaved("agent_epoch", 1),
            CounterSaved("deleted_topics/Ünïcode", 12),
            CallAnswered("client/1", b"\x00answer", 4_000),
            OffsetsSaved("grüppe\x00'", (OffsetRecord(topic_id(1), 0, 30, -1, "meta\x00data", 4_000),)),
        ]
    )


async def copy(source: RestoringStore, target: RestoringStore, at_once: int) -> None:
    view = await source.view()
    await target.begin_restore("copy")
    for table in await view.begin():
        after = None
        while rows := await view.rows(table, after, at_once):
            await target.load_rows(table, rows)
            after = table.key_of(rows[-1])
    await view.close()
    await target.reload()


def opened(url: str) -> RestoringStore:
    return cast("RestoringStore", open_metadata_store(url))


@pytest.mark.parametrize("source_kind", DURABLE_STORES)
@pytest.mark.parametrize("target_kind", DURABLE_STORES)
async def test_a_copy_of_all_rows_is_the_same_store(
    source_kind: str, target_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "source").mkdir()
    with (
        metadata_url(source_kind, tmp_path / "source", request) as source_url,
        metadata_url(target_kind, tmp_path, request) as target_url,
    ):
        source, target = opened(source_url), opened(target_url)
        await fill(source)
        await copy(source, target, at_once=7)
        more = added(50, extent(390, 399, key="segments/50"))
        for store in (source, target):
            await store.write([TopicSaved(topic(3, 2, "later")), *more])
            while await store.purge(1_000, 9_000):
                pass
            assert [dead.segment_key for dead in await store.find_dead_segments(10**15, 100)][:1] == ["segments/0"]
        await target.end_restore(500)
        await source.close()
        await target.close()
        assert await contents(target_url) == await contents(source_url)
        again = opened(target_url)
        assert await again.lead() > 501, "a lead by contents() came between"
        await again.close()


@pytest.mark.parametrize("kind", DURABLE_STORES)
async def test_a_view_is_one_moment(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with metadata_url(kind, tmp_path, request) as url:
        store = opened(url)
        await fill(store)
        view = await store.view()
        tables = {table.name: table for table in await view.begin()}
        await store.write([TopicSaved(topic(4, 1, "unseen"))])
        names = tables["topics"].columns
        place = [column.name for column in names].index("name")
        assert [row[place] for row in await view.rows(tables["topics"], None, 100)] == ["kept"]
        await view.close()
        await store.close()


@pytest.mark.parametrize("kind", DURABLE_STORES)
async def test_a_restore_wants_an_empty_store_and_is_finished_or_begun_anew(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "source").mkdir()
    with metadata_url(kind, tmp_path / "source", request) as full_url, metadata_url(kind, tmp_path, request) as url:
        full, store = opened(full_url), opened(url)
        await fill(full)
        await store.open("an empty cluster was started by mistake")
        await store.close()
        store = opened(url)
        assert await store.begin_restore("one") is False
        view = await full.view()
        tables = {table.name: table for table in await view.begin()}
        await store.load_rows(tables["topics"], await view.rows(tables["topics"], None, 100))
        await store.close()
        half = opened(url)
        with pytest.raises(StoreUnavailable, match=r"a restore into it \(one\) was not finished"):
            await half.open("nobody")
        await half.close()
        store = opened(url)
        assert await store.begin_restore("two") is True
        with pytest.raises(StoreUnavailable, match="newer Tidelog"):
            await store.load_rows(Table("unheard_of", (), ()), [[]])
        await store.end_restore(1)
        await store.close()
        empty = opened(url)
        assert (await empty.open("nobody")).topics == ()
        await empty.close()
        await view.close()
        await full.close()
        again = opened(full_url)
        with pytest.raises(NotEmpty):
            await again.begin_restore("three")
        await again.close()
