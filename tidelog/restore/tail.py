"""What was committed after the journal's end: found by its keys, read from its footers, committed anew.

An object that no segment row of the restored metadata knows is one of two things. Agents commit in the order of their
sequences, so one whose epoch had been fenced, or whose sequence is not above the last one of its epoch, was never
committed and never will be: an orphan. Any other *may* have been committed. Which, nobody knows; but a client that was
told nothing, or a retriable error, expects its records to be stored once or more, so all of them are committed, by the
code that decides commits: idempotent producers' batches are stored once, whatever was sent again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from ingest.compacted_segment import CompactedFooter
from ingest.segment import SEGMENT_PREFIX, SegmentFooter, SegmentName, decode_footer, parse_segment_key
from ingest.segment_ending import SegmentCorrupt, ending_byte_length
from metadata.job_model import COMPACTED_SEQUENCE_MIN
from metadata.journal.restore import RestoringStore, raised_counters
from metadata.model import ExtentDraft, Refusal, SegmentCommit, SegmentCommitted, TopicId
from metadata.state import FENCED_EPOCH, State
from metadata.store.port import AgentSaved, Change, StoreSnapshot
from storage.store import ObjectInfo, ObjectStore, StorageError

READS = 8
FOOTER_GUESS_BYTES = 64 << 10
"""Read from the end of an object at first: nearly always the whole footer."""
SEGMENTS_PER_WRITE = 200


@dataclass(slots=True)
class PartitionTail:
    """What became of one partition. Offsets from ``certain_end`` on may not be those that were acknowledged."""

    topic: str
    partition: int
    certain_end: int
    end: int = 0
    records: int = 0
    epochs: set[int] = field(default_factory=set)
    """Agents that wrote it since: with one, offsets are those that were acknowledged, unless it gave up a segment."""


@dataclass(slots=True)
class Tail:
    """What is newer than the journal."""

    objects: int = 0
    orphans: int = 0
    """Objects that were never committed."""
    foreign: list[str] = field(default_factory=list)
    """Under ``segments/``, but not called like a segment."""
    segments: list[SegmentName] = field(default_factory=list)
    """May have been committed since. One of each, though it may have been put twice."""
    unreadable: list[str] = field(default_factory=list)
    partitions: dict[tuple[TopicId, int], PartitionTail] = field(default_factory=dict)
    unknown_topics: dict[str, int] = field(default_factory=dict)
    """Topic id and records: of topics created since (or deleted before)."""
    duplicates: int = 0
    """Batches that were stored already."""
    refused: dict[str, int] = field(default_factory=dict)
    """Batches by Kafka's reason."""
    epoch_max: int = 0


async def find_tail(bucket: ObjectStore, snapshot: StoreSnapshot, progress: Callable[[str], None]) -> Tail:
    """List the bucket and see what the restored metadata cannot know. :raises storage.store.StorageError:"""
    tail = Tail()
    last = {agent.agent_epoch: -1 for agent in snapshot.agents if agent.agent_epoch != FENCED_EPOCH}
    for answer in snapshot.answers:
        if answer.agent_epoch in last:
            last[answer.agent_epoch] = max(last[answer.agent_epoch], answer.sequence)
    found: dict[tuple[int, int], SegmentName] = {}
    async for info in bucket.list(SEGMENT_PREFIX):
        tail.objects += 1
        if tail.objects % 10_000 == 0:
            progress(f"bucket: {tail.objects:,} objects listed")
        try:
            name = parse_segment_key(info.key)
        except ValueError:
            tail.foreign.append(info.key)
            continue
        tail.epoch_max = max(tail.epoch_max, name.agent_epoch)
        if _may_be_newer(name, last, snapshot.counters.get("agent_epoch", 0)):
            known = found.setdefault((name.agent_epoch, name.sequence), name)
            if name.attempt < known.attempt:
                found[name.agent_epoch, name.sequence] = name
    tail.segments = [found[key] for key in sorted(found)]
    return tail


def _may_be_newer(name: SegmentName, last: dict[int, int], epochs_granted: int) -> bool:
    if name.sequence >= COMPACTED_SEQUENCE_MIN:
        return False
    if name.agent_epoch > epochs_granted:
        return True
    return name.sequence > last.get(name.agent_epoch, COMPACTED_SEQUENCE_MIN)


async def put_back(
    bucket: ObjectStore, store: RestoringStore, snapshot: StoreSnapshot, tail: Tail, progress: Callable[[str], None]
) -> None:
    """Commit the segments of ``tail`` in the order in which they were sealed, and note in it what became of them.

    :raises storage.store.StorageError: :raises metadata.store.port.StoreUnavailable:
    """
    footers = await _read_footers(bucket, tail, progress)
    state = State(_with_epochs(snapshot, {footer.agent_epoch for _, _, footer in footers}, tail.epoch_max))
    names = {topic.topic_id: topic.name for topic in snapshot.topics}
    ends = {(row.topic_id, row.partition): row.high_watermark for row in snapshot.partitions}
    changes: list[Change] = []
    for count, (name, byte_length, footer) in enumerate(in_order(footers), 1):
        drafts = tuple(
            ExtentDraft(extent.topic_id, extent.partition, extent.byte_position, extent.batches)
            for extent in footer.extents
        )
        commit = SegmentCommit(name.sequence, name.key, byte_length, drafts)
        outcome = state.commit_segments(name.agent_epoch, -1, [commit], footer.sealed_ms, changes)
        _note(tail, commit, outcome.answers[0], name.agent_epoch, names, ends)
        if count % SEGMENTS_PER_WRITE == 0:
            await store.write(changes)
            changes = []
            progress(f"newer than the journal: {count:,} of {len(footers):,} segments put back")
    if changes:
        await store.write(changes)


def _with_epochs(snapshot: StoreSnapshot, epochs: set[int], epoch_max: int) -> StoreSnapshot:
    """As if the agents that registered since the journal's end were known, and all producer ids had been granted."""
    known = {agent.agent_epoch for agent in snapshot.agents}
    strangers = tuple(
        AgentSaved(f"unknown/{epoch}", -1, epoch, "", "") for epoch in sorted(epochs) if epoch not in known
    )
    counters = snapshot.counters | raised_counters(snapshot, epoch_max)
    return msgspec.structs.replace(snapshot, agents=snapshot.agents + strangers, counters=counters)


Footer = tuple[SegmentName, int, SegmentFooter]


async def _read_footers(bucket: ObjectStore, tail: Tail, progress: Callable[[str], None]) -> list[Footer]:
    places = asyncio.Semaphore(READS)

    async def read(name: SegmentName) -> Footer | None:
        async with places:
            try:
                info = await bucket.head(name.key)
                footer = await read_footer(bucket, info)
            except (SegmentCorrupt, StorageError) as error:
                tail.unreadable.append(f"{name.key}: {error}")
                return None
            if isinstance(footer, CompactedFooter):
                return None
            return name, info.byte_length, footer

    found: list[Footer] = []
    for first in range(0, len(tail.segments), SEGMENTS_PER_WRITE):
        some = await asyncio.gather(*(read(name) for name in tail.segments[first : first + SEGMENTS_PER_WRITE]))
        found += [each for each in some if each is not None]
        progress(f"newer than the journal: {len(found):,} of {len(tail.segments):,} footers read")
    return found


async def read_footer(bucket: ObjectStore, info: ObjectInfo) -> SegmentFooter | CompactedFooter:
    """With one GET, or two where it is large. :raises SegmentCorrupt: :raises storage.store.StorageError:"""
    tail = await bucket.get(info.key, max(0, info.byte_length - FOOTER_GUESS_BYTES))
    wanted = ending_byte_length(tail)
    if wanted > len(tail):
        tail = await bucket.get(info.key, max(0, info.byte_length - wanted))
    return decode_footer(tail, info.byte_length)


def in_order(footers: Iterable[Footer]) -> Iterator[Footer]:
    """Each agent's in the order of its sequences, agents merged by the time of sealing."""
    queues: dict[int, list[Footer]] = defaultdict(list)
    for footer in footers:
        queues[footer[0].agent_epoch].append(footer)
    heads = []
    for epoch, queue in queues.items():
        queue.sort(key=lambda each: each[0].sequence, reverse=True)
        heads.append((queue[-1][2].sealed_ms, epoch))
    heapq.heapify(heads)
    while heads:
        sealed_ms, epoch = heapq.heappop(heads)
        yield queues[epoch].pop()
        if queues[epoch]:  # a clock that was set back does not bring a later segment before an earlier one
            heapq.heappush(heads, (max(sealed_ms, queues[epoch][-1][2].sealed_ms), epoch))


def _note(
    tail: Tail,
    commit: SegmentCommit,
    answer: SegmentCommitted,
    agent_epoch: int,
    names: dict[TopicId, str],
    ends: dict[tuple[TopicId, int], int],
) -> None:
    for draft, answers in zip(commit.extents, answer.extents, strict=True):
        key = (draft.topic_id, draft.partition)
        if key not in ends:
            records = sum(batch.record_count for batch in draft.batches)
            topic_id = draft.topic_id.hex()
            tail.unknown_topics[topic_id] = tail.unknown_topics.get(topic_id, 0) + records
            continue
        partition = tail.partitions.setdefault(
            key, PartitionTail(names[draft.topic_id], draft.partition, ends[key], ends[key])
        )
        partition.epochs.add(agent_epoch)
        for batch, told in zip(draft.batches, answers, strict=True):
            if told.duplicate:
                tail.duplicates += 1
            elif told.refusal is not None:
                reason = Refusal(told.refusal).value
                tail.refused[reason] = tail.refused.get(reason, 0) + 1
            else:
                partition.records += batch.record_count
                partition.end = told.base_offset + batch.record_count
