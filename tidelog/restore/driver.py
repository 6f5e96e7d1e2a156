"""The steps of ``tidelog restore``, one after the other."""

from __future__ import annotations

from metadata.journal.restore import (
    Replayed,
    RestoreFailed,
    RestoringStore,
    fence_the_past,
    finish,
    look,
    replay,
)
from metadata.store.factory import open_metadata_store
from metadata.store.port import MetadataStore
from metadata.store.tables import NotEmpty, TableStore
from runtime.clock import Clock, SystemClock
from runtime.settings import Settings, without_password
from tidelog.bucket import Progress, ProgressLine, command_settings, opened_bucket, run
from tidelog.client import fail, show_json
from tidelog.restore.report import as_json, as_text
from tidelog.restore.tail import Tail, find_tail, put_back


def run_restore(source: str, metadata: str, with_tail: bool, json_wanted: bool) -> None:
    """Restore, and print the report; exits with 1 and one message when that is not possible."""
    settings = command_settings({"storage": source, "metadata": metadata}, {"storage": "--from"})
    try:
        replayed, tail, newer = run(_restore(settings, SystemClock(), with_tail, ProgressLine()))
    except (RestoreFailed, NotEmpty) as error:
        where = without_password(settings.metadata_url())
        fail(f"{where} is not empty: {error}" if isinstance(error, NotEmpty) else str(error))
    if json_wanted:
        show_json(as_json(replayed, tail, newer))
    else:
        print(as_text(replayed, tail, newer))


async def _restore(
    settings: Settings, clock: Clock, with_tail: bool, progress: Progress
) -> tuple[Replayed, Tail | None, int]:
    store = open_metadata_store(settings.metadata_url(), settings.leadership.lease_ms, clock)
    try:
        async with opened_bucket(settings, clock) as bucket:
            chain = await look(bucket)
            target = _target(store)
            replayed = await replay(bucket, target, chain, progress)
            snapshot = await target.reload()
            tail = await find_tail(bucket, snapshot, progress)
            if with_tail:
                await put_back(bucket, target, snapshot, tail, progress)
                snapshot = await target.reload()
            await fence_the_past(target, snapshot, tail.epoch_max, clock.now_ms())
            await finish(target, replayed.generation_max)
            return replayed, tail if with_tail else None, len(tail.segments)
    finally:
        await store.close()


def _target(store: MetadataStore) -> RestoringStore:
    """:raises RestoreFailed: it is one that keeps nothing."""
    if not isinstance(store, TableStore):
        raise RestoreFailed("memory:// keeps nothing: name a file or a database")
    return store
