"""Building a metadata store anew from a bucket: the newest whole snapshot, and the journal as far as it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from metadata.journal.chain import Chain, read_chain
from metadata.journal.format import (
    META_PREFIX,
    JournalCorrupt,
    SnapshotComplete,
    SnapshotName,
    decode_complete,
    decode_entry,
    decode_part,
)
from metadata.state import FENCED_EPOCH, SWEEP_FROM
from metadata.store.port import (
    AnswersSettled,
    Change,
    CounterSaved,
    MetadataStore,
    ProducersExpired,
    StoreSnapshot,
)
from metadata.store.tables import TableStore
from storage.store import ObjectNotFound, ObjectStore

JUMPS = {"agent_epoch": 1_000_000, "node_id": 10_000, "producer_id": 1_000_000}
"""So far above the last number known each goes on: more than can have been given out since the journal's end."""
GENERATIONS_SKIPPED = 1_000
ROWS_AT_ONCE = 10_000
_SEQUENCE_ANY = 2**63 - 1

Progress = Callable[[str], None]


class RestoreFailed(Exception):
    """Nothing could be restored, or not to the end; the message says what to do."""


class RestoringStore(MetadataStore, TableStore, Protocol):
    """A store that can be restored into."""


@dataclass(slots=True)
class Replayed:
    """What was in the bucket, and how far it reaches. Times are the leaders'."""

    cluster_id: str
    snapshot: str
    snapshot_ms: int
    snapshot_rows: int
    snapshots_damaged: list[str]
    entries: int
    writes: int
    last_ms: int
    """Everything that had become durable by then is restored."""
    ended_by: str | None
    """Why the journal was not read further, when there is more of it."""
    entries_unused: int
    generation_max: int


async def look(bucket: ObjectStore) -> Chain:
    """:raises RestoreFailed: there is nothing to restore from. :raises storage.store.StorageError:"""
    chain = read_chain([info.key async for info in bucket.list(META_PREFIX)])
    if not chain.complete:
        what = "no complete snapshot" if not chain.empty else f"nothing under {META_PREFIX}"
        raise RestoreFailed(
            f"{bucket.name} has {what}: no metadata process wrote its journal there to the end of a first snapshot"
        )
    return chain


async def replay(bucket: ObjectStore, store: RestoringStore, chain: Chain, progress: Progress) -> Replayed:
    """Fill ``store`` from the newest snapshot that is whole, and go on with the journal.

    The store stays marked as unfinished: see :meth:`metadata.store.tables.TableStore.begin_restore`.

    :raises RestoreFailed: no snapshot is whole. :raises metadata.store.tables.NotEmpty:
    :raises storage.store.StorageError: :raises metadata.store.port.StoreUnavailable:
    """
    damaged: list[str] = []
    for name in reversed(chain.complete):
        if await store.begin_restore(str(name)):
            progress("removed what an earlier restore had left")
        try:
            complete = await _load_snapshot(bucket, store, name, progress)
        except (JournalCorrupt, ObjectNotFound) as error:
            damaged.append(f"{name}: {error}")
            progress(f"snapshot {name} is damaged: {error}")
            continue
        return await _follow(bucket, store, chain, complete, damaged, progress)
    raise RestoreFailed(f"no snapshot in {bucket.name} is whole: {'; '.join(damaged)}")


async def _load_snapshot(
    bucket: ObjectStore, store: RestoringStore, name: SnapshotName, progress: Progress
) -> SnapshotComplete:
    complete = decode_complete(await bucket.get(name.complete_key), name)
    count = 0
    rows: dict[str, int] = dict.fromkeys(complete.rows, 0)
    for number in range(complete.parts):
        data = await bucket.get(name.part_key(number))
        part = await asyncio.to_thread(decode_part, data, name, number)
        for first in range(0, len(part.rows), ROWS_AT_ONCE):
            await store.load_rows(part.table, part.rows[first : first + ROWS_AT_ONCE])
        rows[part.table.name] = rows.get(part.table.name, 0) + len(part.rows)
        count += len(part.rows)
        progress(f"snapshot {name}: part {number + 1} of {complete.parts}, {count:,} rows")
    if rows != complete.rows:
        raise JournalCorrupt(f"it has {rows} rows, and should have {complete.rows}")
    return complete


async def _follow(
    bucket: ObjectStore,
    store: RestoringStore,
    chain: Chain,
    complete: SnapshotComplete,
    damaged: list[str],
    progress: Progress,
) -> Replayed:
    following = chain.following(complete.generation, complete.after)
    newer = [name for name in chain.entries if (name.generation, name.number) > (complete.generation, complete.after)]
    replayed = Replayed(
        complete.cluster_id,
        f"{complete.generation}-{complete.number}",
        complete.taken_ms,
        sum(complete.rows.values()),
        damaged,
        0,
        0,
        complete.taken_ms,
        None,
        0,
        chain.generation_max,
    )
    await store.reload()
    for name in following:
        try:
            entry = await asyncio.to_thread(decode_entry, await bucket.get(name.key), name)
        except (JournalCorrupt, ObjectNotFound) as error:
            replayed.ended_by = f"{name.key} is damaged: {error}"
            break
        try:
            await store.write([change for write in entry.writes for change in write])
        except ValueError as error:
            raise RestoreFailed(f"{name.key} contradicts what came before it: {error}") from error
        replayed.entries += 1
        replayed.writes += len(entry.writes)
        replayed.last_ms = max(replayed.last_ms, entry.last_ms)
        progress(f"journal: {replayed.entries:,} of {len(following):,} entries")
    replayed.entries_unused = len(newer) - replayed.entries
    if replayed.entries_unused and replayed.ended_by is None:
        first = newer[replayed.entries]
        replayed.ended_by = f"what comes before {first.key} is not in the bucket, nor a whole snapshot after it"
    return replayed


async def fence_the_past(store: RestoringStore, snapshot: StoreSnapshot, epochs_seen: int, now_ms: int) -> None:
    """No agent, epoch, node id or producer id of before means anything new from now on.

    ``snapshot`` is what is durable; ``epochs_seen``: the highest agent epoch that was met in the bucket.

    :raises metadata.store.port.StoreUnavailable:
    """
    changes: list[Change] = [
        msgspec.structs.replace(agent, agent_epoch=FENCED_EPOCH, fenced_ms=now_ms)
        for agent in snapshot.agents
        if agent.agent_epoch != FENCED_EPOCH
    ]
    epochs = {answer.agent_epoch for answer in snapshot.answers}
    changes += [AnswersSettled(agent_epoch, _SEQUENCE_ANY) for agent_epoch in sorted(epochs)]
    counters = raised_counters(snapshot, epochs_seen)
    changes += [CounterSaved(name, value) for name, value in counters.items()]
    # What the journal does not know of may be all that is left of it: no sweep takes it for an orphan.
    changes.append(CounterSaved(SWEEP_FROM, now_ms))
    await store.write(changes)
    last_producer_id = counters["producer_id"] - 1
    floors = [(row.topic_id, row.partition, last_producer_id) for row in snapshot.partitions]
    for first in range(0, len(floors), ROWS_AT_ONCE):
        await store.write([ProducersExpired(tuple(floors[first : first + ROWS_AT_ONCE]))])


def raised_counters(snapshot: StoreSnapshot, epochs_seen: int) -> dict[str, int]:
    """Where ids go on."""
    known = {name: snapshot.counters.get(name, 0) for name in JUMPS}
    known["agent_epoch"] = max(known["agent_epoch"], epochs_seen)
    return {name: value + JUMPS[name] for name, value in known.items()}


async def finish(store: RestoringStore, generation_max: int) -> None:
    """The store may be led from now on. Close it. :raises metadata.store.port.StoreUnavailable:"""
    await store.end_restore(max(generation_max, store.generation()) + GENERATIONS_SKIPPED)
