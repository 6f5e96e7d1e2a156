"""What recorded clients were told, judged together: several partitions, producers, groups and consumers of one topic.

Beyond what :mod:`tests.support.history` finds in a log, :meth:`Recordings.violations` looks for:

- ``non-monotonic poll``: within one assignment a consumer was given an offset again, or a smaller one;
- ``skipped``: within one assignment a consumer was not given an offset between two others;
- ``never read``: no member of a group was given an offset of the log, although the group had read to its end;
- ``went back``: a consumer that was assigned a partition began below an offset whose commit was acknowledged before;
- ``client error``: a client met an error that no fault may cause, such as a fatal one of an idempotent producer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.history import History, Record, Violation

Log = Mapping[tuple[int, int], bytes]
"""What is at each (partition, offset), read when everything has stopped."""


@dataclass(slots=True)
class Recording:
    """The events of one client, in its order. Times are of the machine's monotonic clock, in seconds.

    ``group`` is None for a producer, of which ``ordered`` says whether it is idempotent.
    """

    name: str
    group: str | None = None
    sent: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Sequence: when, and to which partition."""
    acknowledged: list[tuple[float, int, int, int]] = field(default_factory=list)
    """When, sequence, partition, offset."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    polls: list[tuple[float, int, int, str] | tuple[float, frozenset[int]]] = field(default_factory=list)
    """When, partition, offset, value; and assignments among them."""
    commits: list[tuple[float, int, int]] = field(default_factory=list)
    """When it was acknowledged, partition, offset."""
    assignment: frozenset[int] = frozenset()
    errors: list[str] = field(default_factory=list)
    finished: int | None = None
    """Records without an answer at the end."""
    polled_count: int = 0

    def take(self, line: str) -> None:
        """One line of :mod:`tests.support.recorded_main`."""
        event, at, *details = json.loads(line)
        if event == "sent":
            self.sent[details[0]] = (at, details[1])
        elif event == "acknowledged":
            self.acknowledged.append((at, details[0], details[1], details[2]))
        elif event == "failed":
            self.failed.append((details[0], details[1]))
        elif event == "polled":
            self.polls += [(at, details[0], offset, value) for offset, value in details[1]]
            self.polled_count += len(details[1])
        elif event == "assigned":
            self.assignment |= frozenset(details[0])
            self.polls.append((at, frozenset(details[0])))
        elif event == "revoked":
            self.assignment -= frozenset(details[0])
        elif event == "committed":
            self.commits += [(at, int(partition), offset) for partition, offset in details[0].items()]
        elif event == "error":
            self.errors.append(details[0])
        else:
            assert event == "finished", line
            self.finished = details[0]


class Recordings:
    """All clients of one topic."""

    def __init__(self, recordings: Iterable[Recording]) -> None:
        self._all = list(recordings)

    @property
    def producers(self) -> Sequence[Recording]:
        return [one for one in self._all if one.group is None]

    @property
    def consumers(self) -> Sequence[Recording]:
        return [one for one in self._all if one.group is not None]

    def violations(self, log: Log) -> list[Violation]:
        """Everything that contradicts one Kafka log with idempotent producers and groups that read it to its end."""
        return [
            *self._of_the_log(log),
            *(violation for consumer in self.consumers for violation in _polls_out_of_order(consumer)),
            *self._never_read(log),
            *self._went_back(),
            *(Violation("client error", f"{one.name}: {text}") for one in self._all for text in one.errors),
        ]

    def unread(self, group: str, log_ends: Mapping[int, int]) -> int:
        """Offsets below ``log_ends`` that no member of ``group`` has been given."""
        seen: dict[int, set[int]] = defaultdict(set)
        for partition, offset in self._seen(group):
            seen[partition].add(offset)
        return sum(end - len(seen[partition]) for partition, end in log_ends.items())

    def resumed(self, since: float) -> dict[str, float | None]:
        """For each producer and group, how many seconds after ``since`` records sent later than that had been
        acknowledged, or read, in every partition; None: not yet in all of them."""
        fresh = {
            (partition, offset): at
            for producer in self.producers
            for at, sequence, partition, offset in producer.acknowledged
            if producer.sent[sequence][0] > since
        }
        found: dict[str, float | None] = {}
        for producer in self.producers:
            partitions = {partition for _, partition in producer.sent.values()}
            first: dict[int, float] = {}
            for at, sequence, partition, _ in producer.acknowledged:
                if producer.sent[sequence][0] > since:
                    first.setdefault(partition, at)
            found[producer.name] = max(first.values()) - since if len(first) == len(partitions) else None
        partitions = {partition for producer in self.producers for _, partition in producer.sent.values()}
        for group in {one.group for one in self.consumers if one.group is not None}:
            read: dict[int, float] = {}
            for consumer in self.consumers:
                for event in consumer.polls if consumer.group == group else ():
                    if len(event) == 4 and event[0] > since and (event[1], event[2]) in fresh:
                        read[event[1]] = min(event[0], read.get(event[1], event[0]))
            found[group] = max(read.values()) - since if len(read) == len(partitions) else None
        return found

    def latencies_ms(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """From sending to acknowledgement, of records sent in that time, in ascending order."""
        return sorted(
            (at - producer.sent[sequence][0]) * 1000
            for producer in self.producers
            for at, sequence, _, _ in producer.acknowledged
            if since <= producer.sent[sequence][0] <= until
        )

    def counts(self) -> str:
        """For people."""
        sent = sum(len(one.sent) for one in self.producers)
        acknowledged = sum(len(one.acknowledged) for one in self.producers)
        polled = sum(one.polled_count for one in self.consumers)
        failed = sum(len(one.failed) for one in self.producers)
        return f"{sent} sent, {acknowledged} acknowledged, {failed} failed, {polled} polled"

    def _of_the_log(self, log: Log) -> list[Violation]:
        history = History()
        for producer in self.producers:
            history.idempotent(producer.name)
            for sequence, (_, partition) in producer.sent.items():
                history.sent(Record(producer.name, sequence), partition)
            for _, sequence, partition, offset in producer.acknowledged:
                history.acknowledged(Record(producer.name, sequence), partition, offset)
        for consumer in self.consumers:
            for event in consumer.polls:
                if len(event) == 4:
                    history.read(event[1], event[2], event[3].encode())
        for (partition, offset), value in log.items():
            history.read_finally(partition, offset, value)
        return history.violations()

    def _seen(self, group: str) -> set[tuple[int, int]]:
        return {
            (event[1], event[2])
            for consumer in self.consumers
            if consumer.group == group
            for event in consumer.polls
            if len(event) == 4
        }

    def _never_read(self, log: Log) -> list[Violation]:
        found = []
        for group in sorted({one.group for one in self.consumers if one.group is not None}):
            missing = sorted(set(log) - self._seen(group))
            if missing:
                places = ", ".join(f"{partition}/{offset}" for partition, offset in missing[:10])
                found.append(Violation("never read", f"{group}: {len(missing)} offsets, such as {places}"))
        return found

    def _went_back(self) -> list[Violation]:
        """Only commits that had been acknowledged when the partition was assigned bind its new owner."""
        found = []
        for consumer in self.consumers:
            commits = [commit for other in self.consumers if other.group == consumer.group for commit in other.commits]
            assigned: dict[int, float] = {}
            for event in consumer.polls:
                if len(event) == 2:
                    assigned |= dict.fromkeys(event[1], event[0])
                    continue
                _, partition, offset, _ = event
                at = assigned.pop(partition, None)
                if at is None:
                    continue
                floor = max((one for then, number, one in commits if number == partition and then < at), default=0)
                if offset < floor:
                    found.append(
                        Violation(
                            "went back", f"{consumer.name} began partition {partition} at {offset}, committed: {floor}"
                        )
                    )
        return found


def _polls_out_of_order(consumer: Recording) -> list[Violation]:
    last: dict[int, int] = {}
    found = []
    for event in consumer.polls:
        if len(event) == 2:
            for partition in event[1]:
                last.pop(partition, None)
            continue
        _, partition, offset, _ = event
        before = last.get(partition)
        if before is not None and offset <= before:
            found.append(Violation("non-monotonic poll", f"{consumer.name}: {partition}/{offset} after {before}"))
        elif before is not None and offset > before + 1:
            found.append(Violation("skipped", f"{consumer.name}: {partition}/{before + 1} to {offset - 1}"))
        last[partition] = offset
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Of values in ascending order; NaN without any."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")
