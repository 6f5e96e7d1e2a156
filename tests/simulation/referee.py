"""Who watches a simulated world: histories of what clients were told, and looks at what becomes durable.

Which invariant of ``docs/design.md`` is judged where:

==  =================================================================================================================
1   :class:`tests.support.history.History` (lost, unread, duplicated), and copies of plain producers' records
2   History (offset reused, hole), and :meth:`Referee.skipped`, :meth:`Referee.out_of_range` while it runs
3   :meth:`Referee.high_watermark_seen`: no client hears of an offset that is not durable
4   :meth:`Referee.acknowledged` (the first offsets again), History (reordered, duplicated)
5   :meth:`Referee.look_at_write`: whatever becomes durable comes from the living epoch and the present generation
6   :meth:`Referee.look_at_delete`: no object that an extent references, or that may still be committed
7   History (went back)
8   :meth:`tests.simulation.world.World.held_memory`
==  =================================================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from metadata.model import Extent
from metadata.store.port import AgentSaved, Change, ExtentsAdded, ExtentsSwapped, SegmentAdded
from tests.simulation.database import Database
from tests.simulation.object_store import Bucket
from tests.simulation.trace import Trace
from tests.support.history import History, Record, Violation

UNEXPECTED_EVENTS = frozenset(
    {
        "task_failed",
        "rpc_failed",
        "metadata_command_failed",
        "metadata_callback_failed",
        "metadata_listener_failed",
        "metadata_listener_dropped",
        "handler_failed",
        "connection_failed",
        "fetch_broken",
        "extent_corrupt",
        "close_failed",
    }
)
"""Log lines that say that the product is wrong, whatever the world did to it."""


class Referee:
    """Collects violations of one world. Its looks at writes and deletes run at the moment of their effect."""

    def __init__(self, database: Database, bucket: Bucket, trace: Trace, deletion_grace_seconds: float) -> None:
        self.history = History()
        self.violations: list[Violation] = []
        self.sends: Counter[Record] = Counter()
        """How often each record was sent."""
        self.reads = 0
        self.acknowledged_batches = 0
        self._trace = trace
        self._database = database
        self._bucket = bucket
        self._grace_seconds = deletion_grace_seconds
        self._epochs: dict[str, int] = {}
        """The living epoch of each agent, as durable."""
        self._acknowledged_at: dict[tuple[str, Record], int] = {}
        self._producer_ids: dict[int, str] = {}
        self._seen_high_watermark: dict[tuple[str, int], int] = {}
        self.decided_late_until = 0.0
        """A metadata process froze: what it had decided becomes durable when it thaws, and counts from its decision."""
        self._was_referenced: set[str] = set()
        self._dead_since: dict[str, float] = {}
        """Segments that nothing references any more."""
        database.on_write.append(self.look_at_write)
        database.after_write.append(self.look_for_the_dead)
        bucket.before_delete.append(self.look_at_delete)

    def violation(self, kind: str, detail: str) -> None:
        """Kept, once."""
        found = Violation(kind, detail)
        if found not in self.violations:
            self._trace.note("referee", "VIOLATION", found)
            self.violations.append(found)

    # --- what clients are told ----------------------------------------------------------------------------

    def acknowledged(self, producer: str, partition: int, base_offset: int, records: Sequence[Record]) -> None:
        """A batch was acknowledged at ``base_offset``."""
        self._trace.note(producer, "acknowledged", f"{partition}/{base_offset}", len(records))
        self.acknowledged_batches += 1
        for index, record in enumerate(records):
            offset = base_offset + index
            self.history.acknowledged(record, partition, offset)
            if offset >= self.durable_high_watermark(partition):
                self.violation("acknowledged early", f"{record} at {partition}/{offset} is not durable")

    def producer_id_granted(self, producer: str, producer_id: int) -> None:
        other = self._producer_ids.setdefault(producer_id, producer)
        if other != producer:
            self.violation("producer id reused", f"{producer_id} was granted to {other} and {producer}")

    def read(self, reader: str, partition: int, offset: int, value: bytes, high_watermark: int) -> None:
        self.reads += 1
        self.history.read(partition, offset, value)
        if offset >= high_watermark:
            self.violation("uncommitted read", f"{reader}: {partition}/{offset} with high watermark {high_watermark}")

    def high_watermark_seen(self, reader: str, partition: int, high_watermark: int) -> None:
        durable = self.durable_high_watermark(partition)
        if high_watermark > durable:
            self.violation(
                "high watermark early", f"{reader}: {high_watermark} in partition {partition}, {durable} is durable"
            )

    def skipped(self, reader: str, partition: int, offset: int, first: int) -> None:
        self.violation("skipped", f"{reader} asked for {partition}/{offset} and got {first}")

    def out_of_range(self, reader: str, partition: int, offset: int) -> None:
        """A reader asks for nothing but what it has been told of."""
        self.violation("out of range", f"{reader} at {partition}/{offset}, which it was told to exist")

    def committed(self, group: str, partition: int, offset: int) -> None:
        self._trace.note(group, "committed", f"{partition}/{offset}")
        if offset > self.history.committed_floor(group, partition):  # an answer may arrive after a successor's
            self.history.committed(group, partition, offset)

    def committed_answer(self, group: str, partition: int, floor: int, offset: int) -> None:
        self._trace.note(group, "resumes", f"{partition}/{offset}", f"floor={floor}")
        if offset < floor:
            self.violation("went back", f"{group} in partition {partition}: {offset} although {floor} was committed")
        self.history.committed_answer(group, partition, floor, offset)

    # --- what is durable ----------------------------------------------------------------------------------

    def durable_high_watermark(self, partition: int) -> int:
        for (_, number), kept in self._database.store._partitions.items():
            if number == partition:
                return kept.high_watermark
        return 0

    def look_at_write(self, generation: int, changes: Sequence[Change]) -> None:
        """``changes`` become durable now."""
        for change in changes:
            if isinstance(change, AgentSaved):
                self._epochs[change.agent_uid] = change.agent_epoch
            elif isinstance(change, SegmentAdded):
                if change.agent_epoch not in self._epochs.values():
                    self.violation("fenced", f"a segment of epoch {change.agent_epoch} was committed after its end")
            elif isinstance(change, ExtentsAdded):
                self._look_at_extents(change.extents)
            elif isinstance(change, ExtentsSwapped):
                if change.segment.agent_epoch not in self._epochs.values():
                    self.violation("fenced", f"a swap of epoch {change.segment.agent_epoch} after its end")
                self._look_at_extents(change.extents)
                self._look_at_swap(change)
        self._trace.note("database", "write", generation, len(changes), *(type(change).__name__ for change in changes))

    def _look_at_extents(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self._was_referenced.add(extent.segment_key)
            if extent.segment_key not in self._bucket.objects._objects:
                self.violation("missing object", f"{extent.segment_key} was committed, and is not in the bucket")

    def _look_at_swap(self, change: ExtentsSwapped) -> None:
        """What takes the place of extents covers their offsets, and no others."""
        for extent in change.extents:
            kept = self._database.store._partitions.get((extent.topic_id, extent.partition))
            gone = [] if kept is None else kept.extents[kept.inside(extent.base_offset, extent.last_offset)]
            if not gone or gone[0].base_offset != extent.base_offset or gone[-1].last_offset != extent.last_offset:
                self.violation("swap", f"{extent} takes the place of {len(gone)} extents that cover something else")
            elif any(each.level >= extent.level for each in gone):
                self.violation("swap", f"{extent} takes the place of extents that were compacted as far")

    def look_for_the_dead(self, changes: Sequence[Change]) -> None:
        """``changes`` have become durable: which segments did they free?"""
        if all(isinstance(change, ExtentsAdded) or not isinstance(change, _FREEING) for change in changes):
            return
        now = self._bucket.loop.time()
        for key, segment in self._database.store._segments_by_key.items():
            if segment.live_extents == 0 and key in self._was_referenced:
                self._dead_since.setdefault(key, now)

    def look_at_delete(self, keys: Sequence[str]) -> None:
        """``keys`` leave the bucket now."""
        now = self._bucket.loop.time()
        for key in keys:
            segment = self._database.store._segments_by_key.get(key)
            if segment is None or key not in self._bucket.objects._objects:
                continue
            if segment.live_extents:
                self.violation("deleted", f"{key} is referenced by {segment.live_extents} extents")
            elif (
                now > self.decided_late_until
                and (seconds := now - self._dead_since.get(key, -1e9)) < self._grace_seconds - GRACE_LEEWAY_SECONDS
            ):
                self.violation("deleted early", f"{key} was referenced {seconds:.1f} s ago")

    # --- logs ---------------------------------------------------------------------------------------------

    def log_line(self, process: object, level: str, event: str, fields: dict[str, object]) -> None:
        """One line that a process logged."""
        if event in UNEXPECTED_EVENTS and not _is_expected(event, fields):
            self.violation("failed inside", f"{process}: {event} {fields.get('error') or fields}")

    # --- at the end ---------------------------------------------------------------------------------------

    def judge(self) -> list[Violation]:
        """Everything that was and is wrong; after the final read."""
        copies: Counter[Record] = Counter(self.history._final.values())
        for record, count in copies.items():
            if count > max(1, self.sends[record]):
                self.violation("copied", f"{record} is there {count} times and was sent {self.sends[record]} times")
        for found in self.history.violations():
            if found not in self.violations:
                self.violations.append(found)
        return self.violations


_FREEING = (ExtentsSwapped, SegmentAdded)
GRACE_LEEWAY_SECONDS = 3.5
"""A grace begins when the service decides; a slow write makes that durable up to three seconds later."""


def _is_expected(event: str, fields: dict[str, object]) -> bool:
    """A metadata process that loses its lease ends its pipeline with Deposed, which is how it should be."""
    return event == "task_failed" and "Deposed" in str(fields.get("error"))
