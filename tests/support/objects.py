"""Real segments in a real folder, committed through a real metadata service: for what reads both from outside."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.batch_header import BatchHeader
from ingest.segment import PartitionRun, SegmentName, encode_segment
from metadata.model import SegmentCommit, TopicId
from metadata.service import MetadataService
from storage.store import ObjectStore

Run = tuple[TopicId, int, Sequence[bytes]]
"""Topic, partition, batches."""


async def put_segment(
    bucket: ObjectStore, epoch: int, sequence: int, *runs: Run, sealed_ms: int = 1_000, attempt: int = 0
) -> SegmentCommit:
    """Put the object; what is to be committed of it."""
    encoded = encode_segment(epoch, sequence, sealed_ms, [_run(*run) for run in runs])
    key = SegmentName(epoch, sequence, attempt, 7).key
    await bucket.put(key, encoded.chunks(), encoded.crc32c)
    return SegmentCommit(sequence, key, encoded.byte_length, encoded.extents)


async def put_and_commit(
    bucket: ObjectStore, service: MetadataService, epoch: int, sequence: int, *runs: Run
) -> SegmentCommit:
    commit = await put_segment(bucket, epoch, sequence, *runs)
    await service.commit_segments(epoch, sequence - 1, [commit])
    return commit


def _run(topic_id: TopicId, partition: int, batches: Sequence[bytes]) -> PartitionRun:
    run = PartitionRun(topic_id, partition)
    for batch in batches:
        run.payloads.append(batch)
        run.batches.append(BatchHeader.parse(batch).draft())
    return run
