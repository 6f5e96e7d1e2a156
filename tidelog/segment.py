"""``tidelog segment``: explain, check and print any object of the bucket."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from tidelog.client import AsJson, fail, show_json, show_table

app = typer.Typer(help="Explain an object, or print its records.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="Such as segments/3/0000000001-000000000007-00-5f1c2a9b.")]
Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="file:///dir or s3://bucket/prefix?...")]


@app.command()
def show(key: Key, storage: Storage, as_json: AsJson = False) -> None:
    """Say what an object is, what is in it, and whether it is whole: every checksum of it is verified."""
    data = _read(key, storage)
    explained = _explain(key, data)
    if as_json:
        show_json(explained)
    else:
        rows = explained.pop("extents", None) or explained.pop("changes", None)
        for name, value in explained.items():
            print(f"{name:<14}{value}")
        if rows:
            print()
            show_table(list(rows[0]), [list(row.values()) for row in rows])
    if explained.get("damage") is not None:
        raise typer.Exit(1)


@app.command()
def cat(key: Key, storage: Storage) -> None:
    """Print the records of a segment as JSON lines: topic id, partition, place, timestamp, key, value.

    Offsets are those within the segment's run: which ones they became is known to the metadata, unless it is compacted.
    """
    import json

    from ingest.batch_header import BatchHeader
    from ingest.compacted_segment import CompactedFooter
    from ingest.compression import iterate_records
    from ingest.segment import check_segment
    from ingest.segment_ending import SegmentCorrupt

    data = _read(key, storage)
    try:
        footer = check_segment(data)
    except SegmentCorrupt as error:
        fail(f"{key}: {error}")
    view = memoryview(data)
    for extent in footer.extents:
        position, end, offset = extent.byte_position, extent.byte_position + extent.byte_length, 0
        while position < end:
            header = BatchHeader.parse(view[position:end])
            batch = view[position : position + header.byte_length]
            base = header.base_offset if isinstance(footer, CompactedFooter) else offset
            for record in iterate_records(batch):
                line = {
                    "topic_id": extent.topic_id.hex(),
                    "partition": extent.partition,
                    "offset": base + record.offset_delta,
                    "timestamp_ms": record.timestamp_ms,
                    "key": _text(record.key),
                    "value": _text(record.value),
                }
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            offset += header.record_count
            position += header.byte_length


def _read(key: str, storage: str) -> bytes:
    from runtime.clock import SystemClock
    from tidelog.bucket import command_settings, opened_bucket, run

    settings = command_settings({"storage": storage})

    async def read() -> bytes:
        async with opened_bucket(settings, SystemClock()) as bucket:
            return await bucket.get(key)

    return run(read())


def _explain(key: str, data: bytes) -> dict[str, Any]:
    from metadata.journal.format import META_PREFIX

    return _explain_meta(key, data) if key.startswith(META_PREFIX) else _explain_segment(key, data)


def _explain_segment(key: str, data: bytes) -> dict[str, Any]:
    from ingest.compacted_segment import CompactedFooter
    from ingest.segment import check_segment, decode_footer, parse_segment_key
    from ingest.segment_ending import SegmentCorrupt

    found: dict[str, Any] = {"key": key, "byte_length": len(data), "damage": None}
    try:
        name = parse_segment_key(key)
        found |= {"writer": f"{name.writer:08x}", "attempt": name.attempt}
    except ValueError as error:
        found["damage"] = str(error)
    try:
        footer = decode_footer(data, len(data))
        found |= {"kind": "compacted segment" if isinstance(footer, CompactedFooter) else "segment"}
        found |= {"agent_epoch": footer.agent_epoch, "sequence": footer.sequence, "sealed_ms": footer.sealed_ms}
        found["extents"] = [_extent(extent) for extent in footer.extents]
        check_segment(data)
    except SegmentCorrupt as error:
        found["damage"] = str(error)
    return found


def _extent(extent: Any) -> dict[str, Any]:
    row = {
        "topic_id": extent.topic_id.hex(),
        "partition": extent.partition,
        "byte_position": extent.byte_position,
        "byte_length": extent.byte_length,
    }
    if hasattr(extent, "base_offset"):
        return row | {"base_offset": extent.base_offset, "last_offset": extent.last_offset}
    return row | {
        "batches": len(extent.batches),
        "records": sum(batch.record_count for batch in extent.batches),
        "max_timestamp_ms": max(batch.max_timestamp_ms for batch in extent.batches),
    }


def _explain_meta(key: str, data: bytes) -> dict[str, Any]:
    from collections import Counter

    from metadata.journal import format as meta

    found: dict[str, Any] = {"key": key, "byte_length": len(data), "damage": None}
    try:
        entry, snapshot = meta.parse_entry_key(key), meta.parse_snapshot_key(key)
        if entry is not None:
            written = meta.decode_entry(data, entry)
            found |= {"kind": "journal entry", "cluster_id": written.cluster_id, "writes": len(written.writes)}
            found |= {"first_ms": written.first_ms, "last_ms": written.last_ms}
            kinds = Counter(type(change).__name__ for write in written.writes for change in write)
            found["changes"] = [{"change": kind, "count": count} for kind, count in sorted(kinds.items())]
        elif snapshot is not None and snapshot[1]:
            complete = meta.decode_complete(data, snapshot[0])
            found |= {"kind": "complete snapshot", "cluster_id": complete.cluster_id, "taken_ms": complete.taken_ms}
            found |= {"after_entry": complete.after, "parts": complete.parts, "rows": sum(complete.rows.values())}
        elif snapshot is not None:
            part = meta.decode_part(data, snapshot[0], int(key.rpartition("/")[2]))
            found |= {"kind": "snapshot part", "cluster_id": part.cluster_id, "table": part.table.name}
            found["rows"] = len(part.rows)
        else:
            found["damage"] = "not a key of the journal or of a snapshot"
    except meta.JournalCorrupt as error:
        found["damage"] = str(error)
    return found


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
