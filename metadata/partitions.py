"""Partitions while commands decide, and the hot loop that gives the batches of a segment their offsets. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadata.model import (
    BatchCommitted,
    BatchDraft,
    Extent,
    ExtentDraft,
    Refusal,
    SegmentCommit,
    SegmentCommitted,
    Topic,
    TopicId,
)
from metadata.producers import ProducerState
from metadata.store.port import Change, LogStartMoved


class PartitionState:
    """One partition while commands decide; its high watermark may be ahead of what is durable."""

    __slots__ = (
        "dropped",
        "high_watermark",
        "log_start_offset",
        "partition",
        "producer_id_floor",
        "producers",
        "topic_id",
    )

    def __init__(self, topic_id: TopicId, partition: int, producer_id_floor: int = 0) -> None:
        self.topic_id = topic_id
        self.partition = partition
        self.log_start_offset = 0
        self.high_watermark = 0
        self.producer_id_floor = producer_id_floor
        """Producers with ids below it may have been forgotten here."""
        self.producers: dict[int, ProducerState] = {}
        self.dropped = False

    def move_log_start(self, offset: int, changes: list[Change]) -> bool:
        """Records below ``offset``, at most the high watermark, are gone. False: they were already."""
        assert offset <= self.high_watermark, "a log does not start above its end"
        if offset <= self.log_start_offset:
            return False
        self.log_start_offset = offset
        changes.append(LogStartMoved(self.topic_id, self.partition, offset))
        return True


class TopicState:
    """A topic and its partitions, by index."""

    __slots__ = ("partitions", "topic")

    def __init__(self, topic: Topic, producer_id_floor: int = 0) -> None:
        self.topic = topic
        self.partitions: list[PartitionState] = []
        self.grow(topic, producer_id_floor)

    def grow(self, topic: Topic, producer_id_floor: int) -> None:
        """It is ``topic`` now, which has more partitions."""
        self.topic = topic
        self.partitions += [
            PartitionState(topic.topic_id, index, producer_id_floor)
            for index in range(len(self.partitions), topic.partition_count)
        ]


@dataclass(slots=True)
class CommitOutcome:
    """What a commit decided: the answers, what becomes visible once it is durable, and counts of batches."""

    answers: list[SegmentCommitted] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    batches: int = 0
    duplicates: int = 0
    refused: int = 0


def commit_extent(
    topic: TopicState | None,
    commit: SegmentCommit,
    draft: ExtentDraft,
    now_ms: int,
    producer_ids_granted: int,
    outcome: CommitOutcome,
    touched: dict[ProducerState, None],
) -> tuple[BatchCommitted, ...]:
    """Decide the batches of one draft; accepted ones that touch in the segment become one extent.

    ``producer_ids_granted``: ids from here on were never handed out.
    The hot loop of the service: every batch of every producer passes here once.
    """
    if topic is None or not 0 <= draft.partition < len(topic.partitions):
        refusal = Refusal.UNKNOWN_TOPIC_ID if topic is None else Refusal.UNKNOWN_TOPIC_OR_PARTITION
        outcome.batches += len(draft.batches)
        outcome.refused += len(draft.batches)
        return (BatchCommitted(-1, -1, False, refusal),) * len(draft.batches)
    partition = topic.partitions[draft.partition]
    # The partition's own id, not the draft's: one object for all, whose hash is known and which is hot in the caches.
    topic_id, number, segment_key = partition.topic_id, draft.partition, commit.segment_key
    log_start_offset = partition.log_start_offset
    answers: list[BatchCommitted] = []
    run_base = offset = partition.high_watermark
    run_position = position = draft.byte_position
    run_timestamp = -1

    for batch in draft.batches:
        # Clients without idempotence send id -1 with any sequence (aiokafka, kafkajs: 0): it means nothing.
        if batch.producer_id >= 0:
            verdict = _offer(partition, batch, offset, producer_ids_granted, touched)
            if verdict is not None:
                if offset > run_base:
                    length = position - run_position
                    outcome.extents.append(
                        Extent(
                            topic_id,
                            number,
                            run_base,
                            offset - 1,
                            segment_key,
                            run_position,
                            length,
                            run_timestamp,
                            now_ms,
                        )
                    )
                if isinstance(verdict, Refusal):
                    answers.append(BatchCommitted(-1, log_start_offset, False, verdict))
                    outcome.refused += 1
                else:
                    answers.append(BatchCommitted(verdict, log_start_offset, True, None))
                    outcome.duplicates += 1
                position += batch.byte_length
                run_base, run_position, run_timestamp = offset, position, -1
                continue
        answers.append(BatchCommitted(offset, log_start_offset))
        offset += batch.record_count
        position += batch.byte_length
        if batch.max_timestamp_ms > run_timestamp:
            run_timestamp = batch.max_timestamp_ms
    if offset > run_base:
        length = position - run_position
        outcome.extents.append(
            Extent(topic_id, number, run_base, offset - 1, segment_key, run_position, length, run_timestamp, now_ms)
        )
    outcome.batches += len(answers)
    partition.high_watermark = offset
    return tuple(answers)


def _offer(
    partition: PartitionState,
    batch: BatchDraft,
    base_offset: int,
    producer_ids_granted: int,
    touched: dict[ProducerState, None],
) -> int | Refusal | None:
    """The verdict on a batch of an idempotent producer, as :meth:`ProducerState.offer` gives it."""
    producer_id = batch.producer_id
    producer = partition.producers.get(producer_id)
    if producer is None:
        if batch.base_sequence != 0 and producer_id >= partition.producer_id_floor:
            # Something of it came before this, and failed or is still to come: it may not be overtaken.
            known = producer_id < producer_ids_granted
            return Refusal.OUT_OF_ORDER_SEQUENCE if known else Refusal.UNKNOWN_PRODUCER_ID
        producer = ProducerState(partition, producer_id, batch.producer_epoch)
        partition.producers[producer_id] = producer
    verdict = producer.offer(batch.producer_epoch, batch.base_sequence, batch.record_count, base_offset)
    if verdict is None:
        touched[producer] = None
    return verdict
