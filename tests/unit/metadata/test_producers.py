"""The idempotence table of reference/kafka.md, row by row."""

from __future__ import annotations

import msgspec
import pytest

from metadata.model import Refusal
from metadata.partitions import PartitionState
from metadata.producers import BATCHES_KEPT, ProducerState
from tests.support.metadata import topic_id

LAST = 2**31 - 1
PARTITION = PartitionState(topic_id(1), 0)


def producer(epoch: int = 3) -> ProducerState:
    return ProducerState(PARTITION, 7, epoch)


@pytest.mark.parametrize("first", [0, 17, LAST])
def test_an_unknown_producer_may_begin_anywhere(first: int) -> None:
    assert producer().offer(3, first, 5, 100) is None


def test_sequences_follow_each_other() -> None:
    state = producer()
    assert state.offer(3, 10, 5, 100) is None
    assert state.offer(3, 15, 1, 105) is None
    for first in (17, 15 + 2, 14, 0, 9):
        assert state.offer(3, first, 1, 106) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert state.offer(3, 16, 1, 106) is None, "a refusal moved nothing"


def test_the_same_first_and_last_sequence_is_a_duplicate_at_its_first_offset() -> None:
    state = producer()
    for index in range(BATCHES_KEPT):
        assert state.offer(3, index * 10, 10, 1_000 + index * 10) is None
    for index in range(BATCHES_KEPT):
        assert state.offer(3, index * 10, 10, 9_999) == 1_000 + index * 10
    assert state.offer(3, 0, 9, 9_999) is Refusal.OUT_OF_ORDER_SEQUENCE, "another last sequence is another batch"


def test_only_five_batches_are_remembered() -> None:
    state = producer()
    for index in range(BATCHES_KEPT + 1):
        assert state.offer(3, index, 1, index) is None
    assert state.offer(3, 0, 1, 99) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert state.offer(3, 1, 1, 99) == 1


def test_a_lower_epoch_is_refused_even_with_known_sequences() -> None:
    state = producer(3)
    state.offer(3, 0, 1, 0)
    assert state.offer(2, 0, 1, 1) is Refusal.INVALID_PRODUCER_EPOCH
    assert state.offer(2, 1, 1, 1) is Refusal.INVALID_PRODUCER_EPOCH


def test_a_higher_epoch_begins_at_zero_and_forgets_the_old_one() -> None:
    state = producer(3)
    state.offer(3, 0, 1, 50)
    assert state.offer(4, 1, 1, 51) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert state.epoch == 3
    assert state.offer(3, 0, 1, 99) == 50, "the refused epoch changed nothing"
    assert state.offer(4, 0, 1, 51) is None, "sequence 0 of the new epoch is no duplicate of the old one's"
    assert state.offer(4, 0, 1, 99) == 51
    assert state.offer(3, 1, 1, 99) is Refusal.INVALID_PRODUCER_EPOCH


@pytest.mark.parametrize(
    ("first", "count", "following"),
    [(LAST, 1, 0), (LAST - 1, 2, 0), (LAST - 1, 3, 1), (LAST, 10, 9), (LAST - 5, 5, LAST)],
)
def test_sequences_wrap_to_zero(first: int, count: int, following: int) -> None:
    state = producer()
    assert state.offer(3, first, count, 0) is None
    assert state.offer(3, (following + 1) % 2**31, 1, 99) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert state.offer(3, following, 4, count) is None
    assert state.offer(3, first, count, 99) == 0
    assert state.offer(3, following, 4, 99) == count


def test_a_state_survives_encoding() -> None:
    state = producer()
    for first, count, offset in ((LAST - 1, 5, 2**40), (3, 1, 2**40 + 5), (4, 2, 2**40 + 6)):
        assert state.offer(3, first, count, offset) is None
    state.updated_ms = 42
    restored = ProducerState.decode(PARTITION, 7, state.encode(), 42)
    assert (restored.epoch, restored.updated_ms, restored.producer_id) == (3, 42, 7)
    assert restored.offer(3, LAST - 1, 5, 0) == 2**40
    assert restored.offer(3, 7, 1, 0) is Refusal.OUT_OF_ORDER_SEQUENCE
    assert restored.offer(3, 6, 1, 2**40 + 8) is None


def test_a_state_of_an_earlier_release_is_understood() -> None:
    state = producer()
    for first, count, offset in ((LAST - 1, 5, 2**40), (3, 1, 2**40 + 5)):
        assert state.offer(3, first, count, offset) is None
    saved = msgspec.msgpack.encode((3, [(LAST - 1, 2, 2**40), (3, 3, 2**40 + 5)]))
    restored = ProducerState.decode(PARTITION, 7, saved, 42)
    assert (restored.epoch, restored.keys, restored.base_offsets) == (3, state.keys, state.base_offsets)
    assert restored.encode() == state.encode()
