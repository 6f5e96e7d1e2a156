"""The steps of ``tidelog fsck``: list the bucket, read the metadata's tables, then the objects.

The cluster goes on meanwhile. The bucket is listed first: what the metadata then refers to and the listing does not
have may be new, and is asked for by itself; where it is not there, the metadata is asked once more, for retention or
compaction may have let it go.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ingest.segment import SEGMENT_PREFIX, check_segment, decode_footer, parse_segment_key
from ingest.segment_ending import SegmentCorrupt, ending_byte_length
from metadata.store.factory import open_metadata_store
from metadata.store.tables import TableStore
from runtime.clock import Clock, SystemClock
from runtime.settings import Settings
from storage.store import ObjectInfo, ObjectNotFound, ObjectStore
from tidelog.bucket import Progress, ProgressLine, command_settings, opened_bucket, run
from tidelog.client import fail, show_json
from tidelog.fsck.index import Findings, Segment, read_index, still_referenced
from tidelog.fsck.objects import check_references

FOOTER_GUESS_BYTES = 64 << 10
HARMLESS = frozenset({"orphan"})
"""The orphan sweep's business (RFC 6)."""
SHOWN = 50


def run_fsck(storage: str, metadata: str, with_data: bool, reads: int, in_flight_seconds: int, as_json: bool) -> int:
    """Check, print the report; 0: nothing is wrong, 1: something is."""
    settings = command_settings({"storage": storage, "metadata": metadata})
    check = Check(settings, SystemClock(), with_data, reads, in_flight_seconds, ProgressLine())
    report = run(check.run())
    if as_json:
        show_json(report)
    else:
        for finding in report["findings"][:SHOWN]:
            print(f"{finding['kind']}: {finding['what']}")
        if len(report["findings"]) > SHOWN:
            print(f"and {len(report['findings']) - SHOWN:,} more: see --json")
        read = "read whole" if with_data else "by their footers only"
        print(
            f"{report['segments']:,} segments ({read}), {report['extents']:,} extents, {report['records']:,} records of"
            f" {report['partitions']:,} partitions; {report['objects']:,} objects, {report['in_flight']:,} of them new."
        )
        wrong = {kind: count for kind, count in report["counts"].items() if kind not in HARMLESS}
        print(f"Wrong: {', '.join(f'{count:,} {kind}' for kind, count in wrong.items()) or 'nothing'}.")
    return 0 if report["ok"] else 1


class Check:
    """One run."""

    def __init__(
        self, settings: Settings, clock: Clock, with_data: bool, reads: int, in_flight_seconds: int, progress: Progress
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._with_data = with_data
        self._reads = reads
        self._in_flight_ms = in_flight_seconds * 1000
        self._progress = progress
        self._findings = Findings()
        self._missing: list[Segment] = []
        self._in_flight = 0
        self._checked = 0

    async def run(self) -> dict[str, Any]:
        """The report. :raises StorageError: :raises StoreUnavailable:"""
        store = open_metadata_store(self._settings.metadata_url(), self._settings.leadership.lease_ms, self._clock)
        if not isinstance(store, TableStore):
            fail("memory:// cannot be checked from outside")
        async with opened_bucket(self._settings, self._clock) as bucket:
            listed = await self._list(bucket)
            view = await store.view()
            try:
                index = await read_index(view, self._findings, self._progress)
            finally:
                await view.close()
            await self._check_objects(bucket, list(index.segments.values()), listed)
            self._classify({segment.key for segment in index.segments.values()}, listed)
            for segment in self._missing:
                view = await store.view()
                try:
                    if await still_referenced(view, segment):
                        self._report_missing(segment)
                finally:
                    await view.close()
        counts = self._findings.counts
        return {
            "ok": not set(counts) - HARMLESS,
            "objects": len(listed),
            "segments": len(index.segments),
            "partitions": index.partitions,
            "extents": index.extents,
            "records": index.records,
            "in_flight": self._in_flight,
            "data_read": self._with_data,
            "counts": counts,
            "findings": [{"kind": each.kind, "what": each.what} for each in self._findings.found],
        }

    async def _list(self, bucket: ObjectStore) -> dict[str, ObjectInfo]:
        listed: dict[str, ObjectInfo] = {}
        async for info in bucket.list(SEGMENT_PREFIX):
            listed[info.key] = info
            if len(listed) % 10_000 == 0:
                self._progress(f"bucket: {len(listed):,} objects listed")
        return listed

    async def _check_objects(self, bucket: ObjectStore, segments: list[Segment], listed: dict[str, ObjectInfo]) -> None:
        queue = iter([segment for segment in segments if segment.references])
        total = sum(1 for segment in segments if segment.references)

        async def work() -> None:
            for segment in queue:
                await self._check_object(bucket, segment, listed.get(segment.key))
                self._checked += 1
                self._progress(f"objects: {self._checked:,} of {total:,} checked")

        async with asyncio.TaskGroup() as group:
            for number in range(self._reads):
                group.create_task(work(), name=f"fsck-{number}")

    async def _check_object(self, bucket: ObjectStore, segment: Segment, info: ObjectInfo | None) -> None:
        try:
            info = info or await bucket.head(segment.key)
            if info.byte_length != segment.byte_length:
                self._findings.add(
                    "damaged", f"{segment.key}: {info.byte_length} bytes, committed with {segment.byte_length}"
                )
                return
            if self._with_data:
                data = await bucket.get(segment.key)
                footer = await asyncio.to_thread(check_segment, data)
            else:
                tail = await bucket.get(segment.key, max(0, info.byte_length - FOOTER_GUESS_BYTES))
                if ending_byte_length(tail) > len(tail):
                    tail = await bucket.get(segment.key, max(0, info.byte_length - ending_byte_length(tail)))
                footer = decode_footer(tail, info.byte_length)
        except ObjectNotFound:
            self._missing.append(segment)
        except SegmentCorrupt as error:
            self._findings.add("damaged", f"{segment.key}: {error}; {_of(segment)}")
        else:
            check_references(segment, footer, self._findings)

    def _report_missing(self, segment: Segment) -> None:
        self._findings.add("missing", f"{segment.key}; {_of(segment)}")

    def _classify(self, known: set[str], listed: dict[str, ObjectInfo]) -> None:
        """Objects that no segment row names: they were put a moment ago, or are orphans."""
        now_ms = self._clock.now_ms()
        for key, info in listed.items():
            if key in known:
                continue
            try:
                parse_segment_key(key)
            except ValueError:
                self._findings.add("foreign", key)
                continue
            if now_ms - info.modified_ms < self._in_flight_ms:
                self._in_flight += 1
            else:
                self._findings.add("orphan", f"{key} ({info.byte_length:,} bytes)")


def _of(segment: Segment) -> str:
    """Whose records are concerned."""
    shown = [f"{each.partition} {each.base_offset}-{each.last_offset}" for each in segment.references[:5]]
    more = f" and {len(segment.references) - 5} more" if len(segment.references) > 5 else ""
    return f"offsets of {', '.join(shown)}{more}"
