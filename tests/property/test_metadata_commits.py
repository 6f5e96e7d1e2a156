"""Random commits, retries, failed writes and restarts, against a model that keeps every batch ever accepted.

Checked after each step: offsets are dense and never used twice, a duplicate is acknowledged with its first offset, the
window is five batches, sequences wrap, epochs fence, who is not known and cannot have been forgotten begins at
sequence 0; at the end, that readers find exactly the accepted bytes.
"""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metadata.model import BatchCommitted, BatchDraft, ExtentsQuery, MetadataUnavailable, Refusal, SegmentCommit, Topic
from metadata.service import MetadataService
from metadata.store.memory import MemoryMetadataStore
from tests.support.metadata import FaultyMetadataStore, batch, registration, running_service, segment

PARTITIONS = 2
SEQUENCES = 2**31
FORGOTTEN, YOUNG, NEVER_GRANTED = 0, 1, 2**40
"""Producer ids: granted before a topic of this name was deleted, granted since, and from nowhere."""


@dataclass
class Accepted:
    base_offset: int
    record_count: int
    producer: int
    epoch: int
    first: int
    segment_key: str
    byte_position: int
    byte_length: int

    @property
    def last(self) -> int:
        return (self.first + self.record_count - 1) % SEQUENCES


@dataclass
class Model:
    """The rules of reference/kafka.md, said in the plainest way."""

    logs: list[list[Accepted]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])

    def high_watermark(self, partition: int) -> int:
        return sum(accepted.record_count for accepted in self.logs[partition])

    def of(self, partition: int, producer: int) -> list[Accepted]:
        """All batches of the producer's newest epoch."""
        mine = [accepted for accepted in self.logs[partition] if accepted.producer == producer]
        return [accepted for accepted in mine if accepted.epoch == mine[-1].epoch]

    def commit(self, partition: int, one: BatchDraft, key: str, position: int) -> BatchCommitted:
        base = self.high_watermark(partition)
        first = one.base_sequence
        if one.producer_id >= 0:
            known = self.of(partition, one.producer_id)
            last = (first + one.record_count - 1) % SEQUENCES
            if known and one.producer_epoch == known[-1].epoch:
                for earlier in known[-5:]:
                    if (earlier.first, earlier.last) == (first, last):
                        return BatchCommitted(earlier.base_offset, 0, True)
                if first != (known[-1].last + 1) % SEQUENCES:
                    return BatchCommitted(-1, 0, False, Refusal.OUT_OF_ORDER_SEQUENCE)
            elif known and one.producer_epoch < known[-1].epoch:
                return BatchCommitted(-1, 0, False, Refusal.INVALID_PRODUCER_EPOCH)
            elif known and first != 0:
                return BatchCommitted(-1, 0, False, Refusal.OUT_OF_ORDER_SEQUENCE)
            elif not known and first != 0 and one.producer_id != FORGOTTEN:
                never_granted = one.producer_id == NEVER_GRANTED
                refusal = Refusal.UNKNOWN_PRODUCER_ID if never_granted else Refusal.OUT_OF_ORDER_SEQUENCE
                return BatchCommitted(-1, 0, False, refusal)
        self.logs[partition].append(
            Accepted(base, one.record_count, one.producer_id, one.producer_epoch, first, key, position, one.byte_length)
        )
        return BatchCommitted(base, 0)


@dataclass(frozen=True)
class Offer:
    """A batch to be made up when it is known what the producer did before. ``kind``: "next", "again-N" or other."""

    partition: int
    producer: int
    kind: str
    record_count: int
    byte_length: int

    def draft(self, model: Model) -> BatchDraft:
        known = model.of(self.partition, self.producer) if self.producer >= 0 else []
        epoch, first, count = 2, SEQUENCES - 3, self.record_count
        if self.producer < 0:
            epoch, first = -1, 0
        elif not known and self.producer != FORGOTTEN and self.kind not in ("skip", "new epoch, not at zero"):
            first = 0
        elif known:
            epoch, first = known[-1].epoch, (known[-1].last + 1) % SEQUENCES
            if self.kind.startswith("again-"):
                again = known[max(len(known) - 1 - int(self.kind[6:]), 0)]
                first, count = again.first, again.record_count
            elif self.kind == "skip":
                first = (first + 1) % SEQUENCES
            elif self.kind == "zero":
                first = 0
            elif self.kind == "new epoch":
                epoch, first = epoch + 1, 0
            elif self.kind == "new epoch, not at zero":
                epoch, first = epoch + 1, max(first, 1)
            elif self.kind == "old epoch":
                epoch -= 1
        return batch(count, size=self.byte_length, producer=self.producer, epoch=epoch, sequence=first)


KINDS = ["next"] * 6 + [f"again-{number}" for number in range(7)]
KINDS += ["skip", "zero", "new epoch", "new epoch, not at zero", "old epoch"]
OFFERS = st.builds(
    Offer,
    st.integers(0, PARTITIONS - 1),
    st.sampled_from([-1, FORGOTTEN, FORGOTTEN, YOUNG, NEVER_GRANTED]),
    st.sampled_from(KINDS),
    st.integers(1, 4),
    st.integers(60, 70),
)
STEPS = st.one_of(
    st.tuples(st.just("commit"), st.lists(OFFERS, max_size=12)),
    st.tuples(st.just("commit"), st.lists(OFFERS, max_size=12)),
    st.tuples(st.just("fail without effect"), st.lists(OFFERS, min_size=1, max_size=6)),
    st.tuples(st.just("fail after effect"), st.lists(OFFERS, min_size=1, max_size=6)),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.none()),
)


class Run:
    """One example: the service under test and the model, step by step."""

    def __init__(self) -> None:
        self.store = FaultyMetadataStore(MemoryMetadataStore())
        self.model = Model()
        self.sequence = 0
        self.remembered: list[tuple[SegmentCommit, list[list[BatchCommitted]]]] = []
        self.epoch = -1
        self.topic: Topic

    def draft(self, offers: list[Offer]) -> tuple[SegmentCommit, list[list[BatchCommitted]], Model]:
        """The segment to commit, what must be answered, and the model after it."""
        self.sequence += 1
        key = f"segments/{self.sequence}"
        after = copy.deepcopy(self.model)
        position = 0
        drafts: list[tuple[bytes, int, list[BatchDraft]]] = []
        expected: list[list[BatchCommitted]] = []
        for partition in range(PARTITIONS):
            batches, answers = [], []
            for offer in offers:
                if offer.partition == partition:
                    batches.append(offer.draft(after))
                    answers.append(after.commit(partition, batches[-1], key, position))
                    position += batches[-1].byte_length
            drafts.append((self.topic.topic_id, partition, batches))
            expected.append(answers)
        return segment(self.sequence, *drafts), expected, after

    async def commit(self, service: MetadataService, commit: SegmentCommit, expected: Any) -> None:
        # What may still be repeated is not settled, however many sequences failed writes used up since.
        oldest = self.remembered[0][0].sequence if self.remembered else self.sequence
        settled = min(self.sequence - 5, oldest - 1)
        (answer,) = await service.commit_segments(self.epoch, settled, [commit])
        assert [list(row) for row in answer.extents] == expected

    async def step(self, service: MetadataService, kind: str, argument: Any) -> None:
        if kind == "repeat":
            if argument < len(self.remembered):
                await self.commit(service, *self.remembered[-1 - argument])
            return
        commit, expected, after = self.draft(argument)
        if kind == "commit":
            await self.commit(service, commit, expected)
        else:
            taken = kind == "fail after effect"
            self.store.fail_before, self.store.fail_after = int(not taken), int(taken)
            try:
                await self.commit(service, commit, expected)
                raise AssertionError("the write was to fail")
            except MetadataUnavailable:
                pass
            if not taken:
                return
        self.model = after
        self.remembered = [*self.remembered[-3:], (commit, expected)]

    async def check_offsets(self, service: MetadataService) -> None:
        await service.commit_segments(self.epoch, -1, [])  # decided after a reload that may be under way
        offsets = await service.partition_offsets([(self.topic.topic_id, number) for number in range(PARTITIONS)])
        for number, found in enumerate(offsets):
            assert found is not None and found.high_watermark == self.model.high_watermark(number)

    async def check_bytes(self, service: MetadataService) -> None:
        for number in range(PARTITIONS):
            end = self.model.high_watermark(number)
            (found,) = await service.find_extents([ExtentsQuery(self.topic.topic_id, number, 0, 10**9)])
            batches = iter(self.model.logs[number])
            offset = 0
            for extent in found.extents:
                assert extent.base_offset == offset
                position = extent.byte_position
                while offset <= extent.last_offset:
                    one = next(batches)
                    assert (one.segment_key, one.byte_position) == (extent.segment_key, position)
                    position += one.byte_length
                    offset += one.record_count
                assert position == extent.byte_position + extent.byte_length
            assert offset == end


async def run(steps: list[tuple[str, Any]]) -> None:
    state = Run()
    remaining = iter([*steps, ("restart", None)])
    for start in range(len(steps) + 2):
        async with running_service(state.store, entropy_seed=start + 1) as service:
            if start == 0:
                state.epoch = (await service.register_agent(registration())).agent_epoch
                deleted = await service.create_topic("logs", PARTITIONS, {})
                assert (await service.grant_producer_id(-1, -1)).producer_id == FORGOTTEN
                await service.delete_topic(deleted.topic_id)
                assert (await service.grant_producer_id(-1, -1)).producer_id == YOUNG
                state.topic = await service.create_topic("logs", PARTITIONS, {})
            else:
                await state.check_offsets(service)
            for kind, argument in remaining:
                if kind == "restart":
                    break
                await state.step(service, kind, argument)
                await state.check_offsets(service)
            else:
                await state.check_bytes(service)
                return


_NEXT = Offer(0, -1, "next", 1, 60)
_LOST = ("fail without effect", [_NEXT])


@example([("commit", []), ("commit", []), ("commit", []), _LOST, _LOST, ("commit", []), ("repeat", 3)])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(STEPS, min_size=1, max_size=25))
def test_commits_follow_the_model(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(run(steps))
