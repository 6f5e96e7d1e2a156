"""What producers were told, what consumers read, and whether both can be true of one Kafka log.

Producers number their records. A record is *acknowledged* when the broker answered with an offset; one that was sent
without an acknowledgement may be there or not. :meth:`History.violations` looks for:

- ``lost``: an acknowledged record is not at the offset that was acknowledged;
- ``offset reused``: two records were acknowledged at, or read from, one offset;
- ``hole``: the offsets of a partition are not dense from 0;
- ``duplicated``: a record of an idempotent producer is there twice;
- ``reordered``: an ordered producer's records of one partition (their first copies) are not as it sent them;
- ``invented``: a record nobody sent;
- ``unread``: an idempotent producer's record is missing although a later one of that partition is there;
- ``went back``: a group's offset was asked for, and is smaller than one committed or answered before the question.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Record:
    """Number ``sequence`` of ``producer``, unique in a history."""

    producer: str
    sequence: int

    def encode(self) -> bytes:
        return f"{self.producer}:{self.sequence}".encode()

    @staticmethod
    def decode(value: bytes) -> Record:
        producer, _, sequence = value.decode().partition(":")
        return Record(producer, int(sequence))


@dataclass(frozen=True, slots=True)
class Violation:
    """``kind`` as in the module's docstring; ``detail`` names partition, offset and records."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class History:
    """Collects from any thread; judge it when everything has stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idempotent: set[str] = set()
        self._ordered: set[str] = set()
        self._sent: dict[Record, int] = {}
        self._acknowledged: list[tuple[int, int, Record]] = []
        self._read: dict[tuple[int, int], set[Record]] = defaultdict(set)
        self._final: dict[tuple[int, int], Record] = {}
        self._floors: dict[tuple[str, int], int] = {}
        self._answers: list[tuple[str, int, int, int]] = []

    def idempotent(self, producer: str) -> None:
        """Each record of ``producer`` must be there at most once, in order, without gaps."""
        self._idempotent.add(producer)
        self._ordered.add(producer)

    def ordered(self, producer: str) -> None:
        """The records of ``producer`` must be in the order it sent them, but for copies."""
        self._ordered.add(producer)

    def sent(self, record: Record, partition: int) -> None:
        with self._lock:
            self._sent[record] = partition

    def acknowledged(self, record: Record, partition: int, offset: int) -> None:
        with self._lock:
            self._acknowledged.append((partition, offset, record))

    def read(self, partition: int, offset: int, value: bytes) -> None:
        """A consumer saw this at some time; any number of times."""
        with self._lock:
            self._read[partition, offset].add(Record.decode(value))

    def read_finally(self, partition: int, offset: int, value: bytes) -> None:
        """Part of one read of everything, from the first offset to the end, after all has stopped."""
        self.read(partition, offset, value)
        with self._lock:
            self._final[partition, offset] = Record.decode(value)

    def committed(self, group: str, partition: int, offset: int) -> None:
        """A commit was acknowledged. One committer at a time, that never commits a smaller offset than before."""
        with self._lock:
            floor = self._floors.get((group, partition), 0)
            assert offset >= floor, f"the committer itself goes back from {floor} to {offset}"
            self._floors[group, partition] = offset

    def committed_floor(self, group: str, partition: int) -> int:
        """What the broker must answer at least to a question that is asked after this call."""
        with self._lock:
            return self._floors.get((group, partition), 0)

    def committed_answer(self, group: str, partition: int, floor: int, offset: int) -> None:
        """The broker's answer to a question asked after :meth:`committed_floor` said ``floor``."""
        with self._lock:
            self._answers.append((group, partition, floor, offset))
            self._floors[group, partition] = max(self._floors.get((group, partition), 0), offset)

    @property
    def acknowledged_count(self) -> int:
        return len(self._acknowledged)

    @property
    def sent_count(self) -> int:
        return len(self._sent)

    def acknowledged_but_unread(self) -> int:
        """Acknowledged records that no consumer has seen yet."""
        with self._lock:
            return sum((partition, offset) not in self._read for partition, offset, _ in self._acknowledged)

    def violations(self) -> list[Violation]:
        """Everything that contradicts a Kafka log."""
        with self._lock:
            return [
                *self._lost(),
                *self._offsets_reused(),
                *self._holes(),
                *self._copies(),
                *self._invented(),
                *self._went_back(),
            ]

    def _lost(self) -> list[Violation]:
        return [
            Violation("lost", f"{record} was acknowledged at {partition}/{offset}, where {found} is")
            for partition, offset, record in self._acknowledged
            if (found := self._final.get((partition, offset))) != record
        ]

    def _offsets_reused(self) -> list[Violation]:
        seen: dict[tuple[int, int], set[Record]] = defaultdict(set)
        for partition, offset, record in self._acknowledged:
            seen[partition, offset].add(record)
        for place, records in self._read.items():
            seen[place] |= records
        return [
            Violation("offset reused", f"{partition}/{offset} had {sorted(map(str, records))}")
            for (partition, offset), records in seen.items()
            if len(records) > 1
        ]

    def _holes(self) -> list[Violation]:
        found = []
        for partition in {partition for partition, _ in self._final}:
            offsets = sorted(offset for number, offset in self._final if number == partition)
            missing = set(range(offsets[-1] + 1)) - set(offsets)
            if missing:
                found.append(Violation("hole", f"partition {partition} lacks {sorted(missing)[:10]}"))
        return found

    def _copies(self) -> list[Violation]:
        """Duplicates, order, and gaps, each within one partition and one producer."""
        logs: dict[tuple[int, str], list[int]] = defaultdict(list)
        for (partition, _), record in sorted(self._final.items()):
            logs[partition, record.producer].append(record.sequence)
        found = []
        for (partition, producer), sequences in logs.items():
            where = f"{producer} in partition {partition}"
            first_copies = list(dict.fromkeys(sequences))
            if producer in self._idempotent and len(first_copies) < len(sequences):
                twice = sorted(sequence for sequence, copies in Counter(sequences).items() if copies > 1)[:10]
                found.append(Violation("duplicated", f"{where}: {twice}"))
            for earlier, later in pairwise(first_copies):
                if later < earlier and producer in self._ordered:
                    found.append(Violation("reordered", f"{where}: {later} after {earlier}"))
            if producer in self._idempotent:
                expected = sorted(
                    record.sequence
                    for record, sent_to in self._sent.items()
                    if record.producer == producer and sent_to == partition and record.sequence <= max(sequences)
                )
                missing = sorted(set(expected) - set(sequences))
                if missing:
                    found.append(Violation("unread", f"{where}: {missing[:10]}"))
        return found

    def _invented(self) -> list[Violation]:
        return [
            Violation("invented", f"{record} at {partition}/{offset} was sent to {self._sent.get(record)}")
            for (partition, offset), record in self._final.items()
            if self._sent.get(record) != partition
        ]

    def _went_back(self) -> list[Violation]:
        return [
            Violation("went back", f"{group} in partition {partition}: {offset} although {floor} had been committed")
            for group, partition, floor, offset in self._answers
            if offset < floor
        ]
