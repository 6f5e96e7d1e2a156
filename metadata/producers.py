"""Idempotence of one producer on one partition, as Kafka's ProducerStateManager has it. Pure.

The order of the checks is Kafka's (ProducerAppendInfo, ProducerStateEntry):

1. the same epoch and the same (first, last) sequence as one of the last five batches: a duplicate, acknowledged
   with that batch's offset;
2. an epoch lower than the known one: INVALID_PRODUCER_EPOCH;
3. a higher epoch that does not begin at sequence 0: OUT_OF_ORDER_SEQUENCE;
4. a sequence that does not follow the last one (2147483647 is followed by 0): OUT_OF_ORDER_SEQUENCE.

A producer that a partition does not know begins at sequence 0, unless its state may have been forgotten there
(``metadata.partitions``): then it may begin anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from metadata.model import ProducerDescription, Refusal

if TYPE_CHECKING:
    from metadata.partitions import PartitionState

BATCHES_KEPT = 5
"""Kafka's producers have at most five requests in flight, so a retry is one of the last five batches."""
_SEQUENCE_MASK = 0x7FFFFFFF
_FIRST_SHIFT = 32


class ProducerRecord(msgspec.Struct, frozen=True, array_like=True):
    """:class:`ProducerState` as the store keeps it, one for every batch: lists that are there already, oldest first."""

    epoch: int
    keys: list[int | tuple[int, int, int]]
    """First sequence << 32 | last sequence. A state saved before there were keys has (first, last, base offset)."""
    base_offsets: list[int] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ProducerRecord).decode


class ProducerState:
    """What is remembered of a producer on a partition. ``offer`` is the only way it moves."""

    __slots__ = ("base_offsets", "epoch", "keys", "partition", "producer_id", "updated_ms")

    def __init__(self, partition: PartitionState, producer_id: int, epoch: int) -> None:
        self.partition = partition
        self.producer_id = producer_id
        self.epoch = epoch
        self.keys: list[int] = []
        """First and last sequence of the newest batches, packed into one integer each: one comparison finds a retry."""
        self.base_offsets: list[int] = []
        self.updated_ms = 0

    def offer(self, epoch: int, first: int, record_count: int, base_offset: int) -> int | Refusal | None:
        """A batch of ``record_count`` records from sequence ``first`` on would get ``base_offset``.

        None: it follows, and is remembered. An integer: it is a duplicate of the batch at that offset. A refusal:
        it must not be appended. The state moves only in the first case.
        """
        key = first << _FIRST_SHIFT | (first + record_count - 1) & _SEQUENCE_MASK
        keys = self.keys
        if epoch == self.epoch:
            if key in keys:
                return self.base_offsets[keys.index(key)]
            if keys and first != (keys[-1] + 1) & _SEQUENCE_MASK:
                return Refusal.OUT_OF_ORDER_SEQUENCE
        elif epoch < self.epoch:
            return Refusal.INVALID_PRODUCER_EPOCH
        elif first != 0:
            return Refusal.OUT_OF_ORDER_SEQUENCE
        else:
            self.epoch = epoch
            keys.clear()
            self.base_offsets.clear()
        if len(keys) == BATCHES_KEPT:
            del keys[0], self.base_offsets[0]
        keys.append(key)
        self.base_offsets.append(base_offset)
        return None

    def describe(self) -> ProducerDescription:
        last_sequence = self.keys[-1] & _SEQUENCE_MASK if self.keys else -1
        return ProducerDescription(self.producer_id, self.epoch, last_sequence, self.updated_ms)

    def encode(self) -> bytes:
        """The state as the MessagePack of a :class:`ProducerRecord`, for the store."""
        return _encode((self.epoch, self.keys, self.base_offsets))

    @classmethod
    def decode(cls, partition: PartitionState, producer_id: int, record: bytes, updated_ms: int) -> ProducerState:
        """The inverse of :meth:`encode`.

        :raises msgspec.DecodeError: ``record`` is damaged.
        """
        decoded = _decode(record)
        state = cls(partition, producer_id, decoded.epoch)
        state.base_offsets = decoded.base_offsets
        for key in decoded.keys:
            if isinstance(key, int):
                state.keys.append(key)
            else:
                state.keys.append(key[0] << _FIRST_SHIFT | key[1])
                state.base_offsets.append(key[2])
        state.updated_ms = updated_ms
        return state
