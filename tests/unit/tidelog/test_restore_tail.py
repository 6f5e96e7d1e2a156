"""What is newer than the journal: which objects may have been committed, and committing them anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from ingest.segment import SegmentName
from metadata.journal.restore import RestoringStore
from metadata.store.factory import open_metadata_store
from metadata.store.port import AgentSaved, AnswersSettled, CounterSaved, StoreSnapshot, TopicSaved
from runtime.clock import SystemClock
from storage.memory import MemoryStore
from tests.support.batches import build_batch
from tests.support.journals import sqlite_url
from tests.support.metadata import added, extent, topic, topic_id
from tests.support.objects import put_segment
from tidelog.restore.tail import Tail, find_tail, put_back

LIVE, FENCED, NEW = 5, 4, 6
TOPIC = topic_id(1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RestoringStore]:
    """As after the journal's end: ten offsets; epoch 5 lives and has committed sequence 3; epoch 4 is fenced."""
    store = cast("RestoringStore", open_metadata_store(sqlite_url(tmp_path, "restored")))
    await store.open("cluster")
    await store.write(
        [
            TopicSaved(topic(1, 2, "logs")),
            AgentSaved("old", 1, -1, "a", "default", fenced_ms=1),
            AgentSaved("live", 2, LIVE, "a", "default"),
            CounterSaved("agent_epoch", LIVE),
            CounterSaved("producer_id", 1_000),
            *added(3, extent(0, 9, key="segments/3"), epoch=LIVE),
            AnswersSettled(LIVE, 2),
        ]
    )
    yield store
    await store.close()


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore(SystemClock())


def numbered(first: int, count: int, *, producer: int = -1, sequence: int = -1) -> bytes:
    values = [str(number).encode() for number in range(first, first + count)]
    epoch = -1 if producer < 0 else 0
    return build_batch(values, producer_id=producer, producer_epoch=epoch, base_sequence=sequence)


async def tail_of(bucket: MemoryStore, store: RestoringStore) -> tuple[Tail, StoreSnapshot]:
    snapshot = await store.reload()
    tail = await find_tail(bucket, snapshot, lambda _text: None)
    await put_back(bucket, store, snapshot, tail, lambda _text: None)
    return tail, await store.reload()


async def test_only_what_may_have_been_committed_is_newer(bucket: MemoryStore, store: RestoringStore) -> None:
    batch = numbered(0, 1)
    for epoch, sequence in ((FENCED, 9), (LIVE, 2), (LIVE, 3), (LIVE, 4), (LIVE, 6), (NEW, 0)):
        await put_segment(bucket, epoch, sequence, (TOPIC, 0, [batch]))
    await put_segment(bucket, LIVE, 4, (TOPIC, 0, [batch]), attempt=1)
    await put_segment(bucket, LIVE, 500_000_000_007, (TOPIC, 0, [batch]))
    tail, snapshot = await tail_of(bucket, store)
    assert [(name.agent_epoch, name.sequence, name.attempt) for name in tail.segments] == [
        (LIVE, 4, 0),
        (LIVE, 6, 0),
        (NEW, 0, 0),
    ]
    assert tail.epoch_max == NEW and tail.objects == 8
    (partition,) = tail.partitions.values()
    assert (partition.certain_end, partition.end, partition.records, partition.epochs) == (10, 13, 3, {LIVE, NEW})
    assert {row.partition: row.high_watermark for row in snapshot.partitions} == {0: 13, 1: 0}
    again = await find_tail(bucket, snapshot, lambda _text: None)
    assert {name.agent_epoch for name in again.segments} == {NEW}, "a repetition knows what the first one committed"


async def test_agents_are_merged_by_the_time_of_sealing(bucket: MemoryStore, store: RestoringStore) -> None:
    for epoch, sequence, sealed_ms in ((LIVE, 4, 100), (LIVE, 5, 90), (LIVE, 6, 300), (NEW, 0, 200), (NEW, 1, 95)):
        await put_segment(bucket, epoch, sequence, (TOPIC, 0, [numbered(0, 1)]), sealed_ms=sealed_ms)
    await tail_of(bucket, store)
    keys = [each.segment_key for each in await store.find_extents(TOPIC, 0, 10, 10**9, 10**9)]
    order = [(LIVE, 4), (LIVE, 5), (NEW, 0), (NEW, 1), (LIVE, 6)]
    assert keys == [SegmentName(epoch, sequence, 0, 7).key for epoch, sequence in order]


async def test_idempotent_batches_are_stored_once(bucket: MemoryStore, store: RestoringStore) -> None:
    """Sent again to another agent after the first one's answer was lost, with the next batch after it."""
    first, second = numbered(0, 5, producer=7, sequence=0), numbered(5, 5, producer=7, sequence=5)
    await put_segment(bucket, LIVE, 4, (TOPIC, 0, [first]), sealed_ms=100)
    await put_segment(bucket, NEW, 0, (TOPIC, 0, [first, second]), sealed_ms=200)
    tail, snapshot = await tail_of(bucket, store)
    assert tail.duplicates == 1 and not tail.refused
    assert {row.partition: row.high_watermark for row in snapshot.partitions}[0] == 20
    assert [(each.producer_id, each.partition) for each in snapshot.producers] == [(7, 0)]


async def test_what_cannot_be_put_back_is_said(bucket: MemoryStore, store: RestoringStore) -> None:
    await put_segment(bucket, LIVE, 4, (topic_id(99), 0, [numbered(0, 3)]), (TOPIC, 1, [numbered(0, 2)]))
    await put_segment(bucket, LIVE, 5, (TOPIC, 0, [numbered(0, 2, producer=8, sequence=4)]))
    await bucket.put(SegmentName(LIVE, 6, 0, 7).key, [b"rubbish"], 0)
    await bucket.put("segments/readme", [b"by hand"], 0)
    tail, snapshot = await tail_of(bucket, store)
    assert tail.unknown_topics == {topic_id(99).hex(): 3}
    assert tail.refused == {"out_of_order_sequence_number": 1}
    assert len(tail.unreadable) == 1 and SegmentName(LIVE, 6, 0, 7).key in tail.unreadable[0]
    assert tail.foreign == ["segments/readme"]
    assert {row.partition: row.high_watermark for row in snapshot.partitions} == {0: 10, 1: 2}
