"""What a restore did and what it could not know, as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from metadata.journal.restore import Replayed
from tidelog.restore.tail import PartitionTail, Tail

SHOWN = 20


def as_json(replayed: Replayed, tail: Tail | None, unfilled: int) -> dict[str, Any]:
    """Machine-readable; times in milliseconds."""
    report: dict[str, Any] = {
        "cluster_id": replayed.cluster_id,
        "snapshot": replayed.snapshot,
        "snapshot_ms": replayed.snapshot_ms,
        "snapshots_damaged": replayed.snapshots_damaged,
        "journal_entries": replayed.entries,
        "journal_last_ms": replayed.last_ms,
        "journal_ended_by": replayed.ended_by,
        "journal_entries_unused": replayed.entries_unused,
        "segments_newer_than_the_journal": unfilled,
    }
    if tail is not None:
        report |= {
            "put_back": [_partition(partition) for partition in sorted(tail.partitions.values(), key=_place)],
            "put_back_records": sum(partition.records for partition in tail.partitions.values()),
            "unreadable_segments": tail.unreadable,
            "unknown_topics": tail.unknown_topics,
            "duplicate_batches": tail.duplicates,
            "refused_batches": tail.refused,
            "foreign_objects": tail.foreign,
        }
    return report


def as_text(replayed: Replayed, tail: Tail | None, unfilled: int) -> str:
    return "\n".join(_lines(replayed, tail, unfilled))


def _lines(replayed: Replayed, tail: Tail | None, unfilled: int) -> Iterator[str]:
    yield f"Cluster {replayed.cluster_id} is restored."
    yield (
        f"Certain: everything that was durable at {_time(replayed.last_ms)}, from snapshot {replayed.snapshot}"
        f" ({replayed.snapshot_rows:,} rows) and {replayed.entries:,} entries of the journal."
    )
    for damaged in replayed.snapshots_damaged:
        yield f"Damaged snapshot: {damaged}"
    if replayed.ended_by is not None:
        yield f"The journal goes on, but cannot be followed: {replayed.ended_by}."
        yield f"{replayed.entries_unused:,} entries were not used."
    yield (
        "Not known: what was done after that time to topics, configs, groups' offsets and members, producers' ids;"
        " consumers may read some records again."
    )
    if tail is None:
        yield (
            f"{unfilled:,} segments in the bucket are newer than the journal and were left out: their records, if they"
            " were acknowledged, are lost, and their offsets will be given to others."
        )
        return
    records = sum(partition.records for partition in tail.partitions.values())
    yield (
        f"{unfilled:,} segments in the bucket are newer than the journal: {records:,} records of"
        f" {len(tail.partitions):,} partitions were put back."
    )
    shown = sorted(tail.partitions.values(), key=_place)
    for partition in shown[:SHOWN]:
        doubt = (
            "offsets as acknowledged, unless its agent gave up a segment"
            if len(partition.epochs) == 1
            else f"{len(partition.epochs)} agents wrote it: offsets may differ from those acknowledged"
        )
        yield (
            f"  {partition.topic}/{partition.partition}: certain up to offset {partition.certain_end}, put back up to"
            f" {partition.end} ({partition.records:,} records; {doubt})"
        )
    if len(shown) > SHOWN:
        yield f"  and {len(shown) - SHOWN:,} more: see --json"
    if tail.duplicates:
        yield f"{tail.duplicates:,} batches had been stored before, and were not stored twice."
    for reason, count in sorted(tail.refused.items()):
        yield f"LOST, if acknowledged: {count:,} batches that were refused ({reason})."
    for topic_id, count in sorted(tail.unknown_topics.items()):
        yield (
            f"LOST, if acknowledged: {count:,} records of the topic with id {topic_id}, which was created after the"
            " journal's end, or deleted."
        )
    for unreadable in tail.unreadable[:SHOWN]:
        yield f"LOST, if acknowledged: the records of {unreadable}"
    if len(tail.unreadable) > SHOWN:
        yield f"  and of {len(tail.unreadable) - SHOWN:,} more: see --json"
    if tail.foreign:
        yield f"{len(tail.foreign):,} objects are not called like segments, such as {tail.foreign[0]}."


def _partition(partition: PartitionTail) -> dict[str, Any]:
    return {
        "topic": partition.topic,
        "partition": partition.partition,
        "certain_end_offset": partition.certain_end,
        "end_offset": partition.end,
        "records": partition.records,
        "agents": len(partition.epochs),
    }


def _place(partition: PartitionTail) -> tuple[str, int]:
    return partition.topic, partition.partition


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
