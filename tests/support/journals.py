"""A metadata service with a journal in a bucket of memory, and restores from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
from prometheus_client import CollectorRegistry

from metadata.journal.journal import Journal
from metadata.journal.metrics import JournalMetrics
from metadata.journal.restore import Replayed, RestoringStore, fence_the_past, finish, look, replay
from metadata.metrics import MetadataMetrics
from metadata.model import Extent
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from metadata.store.port import MetadataStore, StoreSnapshot
from runtime.clock import SystemClock, SystemEntropy
from runtime.settings import AgentsSettings, GroupSettings, JournalSettings, TopicSettings
from runtime.tasks import Supervisor
from storage.store import ObjectStore
from tests.support.metadata import batch, registration, segment

QUICK = JournalSettings(interval_ms=10)


class Journaled:
    """What a test needs of a running service."""

    def __init__(self, service: MetadataService, journal: Journal, store: MetadataStore) -> None:
        self.service = service
        self.journal = journal
        self.store = store
        self.epoch = 0
        self.sequence = 0
        self.topic_id = b""

    async def begin(self, name: str = "logs") -> None:
        """An agent, and a topic of two partitions."""
        self.epoch = (await self.service.register_agent(registration())).agent_epoch
        self.topic_id = (await self.service.create_topic(name, 2, {})).topic_id

    async def commit(self, count: int = 1) -> None:
        """Segments of two records in each partition."""
        for _ in range(count):
            self.sequence += 1
            commit = segment(self.sequence, (self.topic_id, 0, [batch(2)]), (self.topic_id, 1, [batch(2)]))
            await self.service.commit_segments(self.epoch, self.sequence - 1, [commit])

    async def caught_up(self) -> None:
        """Until all that is durable could be restored."""
        async with asyncio.timeout(10):
            while self.journal.lag_seconds() or self.journal.state() != "ok" or self.journal._buffer.byte_length:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def journaled(
    url: str, bucket: ObjectStore, settings: JournalSettings = QUICK, *, store: MetadataStore | None = None
) -> AsyncIterator[Journaled]:
    """A term of its own on the store at ``url``."""
    failures: list[BaseException] = []
    supervisor = Supervisor(lambda _name, error: failures.append(error))
    store = store or open_metadata_store(url)
    clock = SystemClock()
    tables = cast("Any", store)
    journal = Journal(bucket, settings, clock, JournalMetrics(CollectorRegistry()), tables.view, tables.generation)
    service = MetadataService(
        store,
        clock,
        SystemEntropy(),
        supervisor,
        MetadataMetrics(CollectorRegistry()),
        GroupSettings(),
        TopicSettings(),
        AgentsSettings(session_timeout_ms=600_000),
        journal=journal,
    )
    try:
        await service.start()
        yield Journaled(service, journal, store)
    finally:
        await service.stop()
        await supervisor.stop()
    assert not failures, failures


async def restored(bucket: ObjectStore, url: str, *, fence: bool = False) -> tuple[Replayed, StoreSnapshot]:
    """Restore into the empty store at ``url``; what is in it then. It can be opened when that returns."""
    store = cast("RestoringStore", open_metadata_store(url))
    try:
        replayed = await replay(bucket, store, await look(bucket), lambda _text: None)
        snapshot = await store.reload()
        if fence:
            await fence_the_past(store, snapshot, 0, 1_000)
            snapshot = await store.reload()
        await finish(store, replayed.generation_max)
    finally:
        await store.close()
    return replayed, snapshot


async def contents(url: str) -> tuple[Any, ...]:
    """Everything in a store that is not about who leads it, comparable: snapshot and extents."""
    store = open_metadata_store(url)
    try:
        snapshot = await store.open("nobody")
        extents: list[Extent] = []
        for row in snapshot.partitions:
            extents += await store.find_extents(row.topic_id, row.partition, row.log_start_offset, 10**15, 10**15)
        plain = msgspec.structs.replace(
            snapshot,
            answers=tuple(
                sorted(
                    (msgspec.structs.replace(answer, answer=b"") for answer in snapshot.answers),
                    key=lambda answer: (answer.agent_epoch, answer.sequence),
                )
            ),
            topics=tuple(sorted(snapshot.topics, key=lambda topic: topic.topic_id)),
            partitions=tuple(sorted(snapshot.partitions, key=lambda row: (row.topic_id, row.partition))),
            producers=tuple(sorted(snapshot.producers, key=lambda each: (each.topic_id, each.partition))),
        )
        return plain, sorted(extents, key=lambda extent: (extent.topic_id, extent.partition, extent.base_offset))
    finally:
        await store.close()


def sqlite_url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder}/{name}.sqlite"
