"""What the databases in ``tests/unit/metadata/released`` of revision 0002 hold, whatever the store."""

from __future__ import annotations

from metadata.group_model import OffsetRecord
from metadata.model import Extent
from metadata.store.port import MetadataStore, PartitionRow, SegmentTotals, StoreSnapshot

LOGS = bytes.fromhex("1E2FEB89414C443C9027C4D1C386BBC4")
COMMIT_MS = 1_700_000_000_000
NOW_MS = 1_800_000_000_000
LONG_AFTER_MS = 10**15


async def holds_what_was_released(store: MetadataStore, snapshot: StoreSnapshot) -> None:
    """Segments 1 and 2 hold extents of ``logs``; 3 held one of a deleted topic that was purged, 4 never had any."""
    assert snapshot.partitions == (PartitionRow(LOGS, 0, 0, 9, 7_000), PartitionRow(LOGS, 1, 0, 6, 1_000))
    assert [answer.sequence for answer in snapshot.answers] == [4]
    assert snapshot.agents[0].agent_epoch == 3
    assert snapshot.offsets == {"group": (OffsetRecord(LOGS, 0, 5, -1, "m", COMMIT_MS),)}
    assert await store.find_extents(LOGS, 0, 0, 1_000, 9) == [
        Extent(LOGS, 0, 0, 4, "segments/1", 0, 200, 1_000, COMMIT_MS),
        Extent(LOGS, 0, 5, 8, "segments/2", 0, 100, 7_000, COMMIT_MS),
    ]
    assert await store.segment_totals(0, 100) == SegmentTotals(4, 870, 400, 2, 170)
    # Of the dead, the answer of segment 4 may still be asked for.
    (dead,) = await store.find_dead_segments(LONG_AFTER_MS, 10)
    assert (dead.agent_epoch, dead.sequence, dead.segment_key, dead.byte_length) == (3, 3, "segments/3", 90)
    assert dead.dead_ms > COMMIT_MS, "dead since it was found out, at the earliest"
    assert not await store.purge(100, NOW_MS)
