"""An object against what the metadata says is in it. Pure."""

from __future__ import annotations

from ingest.compacted_segment import CompactedFooter
from ingest.segment import SegmentFooter
from tidelog.fsck.index import Findings, Segment


def check_references(segment: Segment, footer: SegmentFooter | CompactedFooter, findings: Findings) -> None:
    """Every extent is a run of whole batches of its partition there, with as many records as it has offsets."""
    if isinstance(footer, CompactedFooter):
        placed = {(extent.topic_id, extent.partition, extent.byte_position): extent for extent in footer.extents}
        for reference in segment.references:
            partition = reference.partition
            found = placed.get((partition.topic_id, partition.number, reference.byte_position))
            if found is None or (found.base_offset, found.last_offset, found.byte_length) != (
                reference.base_offset,
                reference.last_offset,
                reference.byte_length,
            ):
                _misplaced(segment, partition, reference.base_offset, reference.last_offset, findings)
        return
    runs = {(extent.topic_id, extent.partition): extent for extent in footer.extents}
    for reference in segment.references:
        partition = reference.partition
        run = runs.get((partition.topic_id, partition.number))
        records = None
        if run is not None:
            position, records = run.byte_position, 0
            start, end = reference.byte_position, reference.byte_position + reference.byte_length
            edges = {run.byte_position}
            for batch in run.batches:
                if start <= position and position + batch.byte_length <= end:
                    records += batch.record_count
                position += batch.byte_length
                edges.add(position)
            if not {start, end} <= edges:
                records = None
        if records != reference.last_offset + 1 - reference.base_offset:
            _misplaced(segment, partition, reference.base_offset, reference.last_offset, findings)


def _misplaced(segment: Segment, partition: object, base: int, last: int, findings: Findings) -> None:
    findings.add("misplaced", f"{partition} offsets {base}-{last}: not what {segment.key} has there")
