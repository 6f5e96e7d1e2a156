"""Jobs that delete objects: of dead segments, which the metadata service names, and orphans, which a sweep finds."""

from __future__ import annotations

import msgspec

from agent.jobs.metrics import JobMetrics
from ingest.segment import SEGMENT_PREFIX, SHARDS, parse_segment_key
from metadata.client import MetadataClient
from metadata.job_model import (
    DELETE_OBJECTS,
    SWEEP_ORPHANS,
    SWEEP_PARTS,
    ObjectsToDelete,
    Sweep,
    Swept,
    SweptObject,
)
from runtime.clock import Clock
from storage.store import ObjectInfo, ObjectStore

assert SWEEP_PARTS == SHARDS, "each part of a sweep is one of the prefixes that keys are spread over"

SWEPT_AT_ONCE = 500
"""Objects the service is asked about in one call."""
SWEEP_PAUSE_SECONDS = 0.05
"""Between two such calls: a listing of ten million objects takes half an hour, and disturbs nobody."""

_encode = msgspec.msgpack.Encoder().encode
_decode_deletion = msgspec.msgpack.Decoder(ObjectsToDelete).decode
_decode_sweep = msgspec.msgpack.Decoder(Sweep).decode


class DeleteObjects:
    """Objects of dead segments. That one is gone already is what a repetition meets."""

    kind = DELETE_OBJECTS

    def __init__(self, store: ObjectStore, metrics: JobMetrics) -> None:
        self._store = store
        self._deleted = metrics.objects_deleted.labels("dead")

    async def run(self, payload: bytes) -> bytes:
        keys = [key for _, _, key in _decode_deletion(payload).segments]
        await self._store.delete(keys)
        self._deleted.inc(len(keys))
        return b""


class SweepOrphans:
    """Lists, and deletes what the metadata service says no commit can name any more. Memory is that of one page."""

    kind = SWEEP_ORPHANS

    def __init__(self, store: ObjectStore, metadata: MetadataClient, clock: Clock, metrics: JobMetrics) -> None:
        self._store = store
        self._metadata = metadata
        self._clock = clock
        self._listed = metrics.objects_listed
        self._deleted = metrics.objects_deleted.labels("orphan")

    async def run(self, payload: bytes) -> bytes:
        sweep = _decode_sweep(payload)
        before_ms = self._clock.now_ms() - sweep.age_ms
        listed = deleted = deleted_bytes = 0
        for prefix in _prefixes(sweep):
            page: dict[str, ObjectInfo] = {}
            async for info in self._store.list(prefix):
                listed += 1
                if info.modified_ms < before_ms:
                    page[info.key] = info
                if len(page) == SWEPT_AT_ONCE:
                    gone = await self._sweep(page)
                    deleted, deleted_bytes = deleted + len(gone), deleted_bytes + _bytes(gone)
                    page = {}
                    await self._clock.sleep(SWEEP_PAUSE_SECONDS)
            gone = await self._sweep(page)
            deleted, deleted_bytes = deleted + len(gone), deleted_bytes + _bytes(gone)
        self._listed.inc(listed)
        return _encode(Swept(listed, deleted, deleted_bytes))

    async def _sweep(self, page: dict[str, ObjectInfo]) -> list[ObjectInfo]:
        """Ask which of ``page`` are orphans, and delete them."""
        objects = [swept for info in page.values() if (swept := _swept_object(info)) is not None]
        orphans = await self._metadata.find_orphans(objects) if objects else []
        if not orphans:
            return []
        await self._store.delete(orphans)
        self._deleted.inc(len(orphans))
        return [page[key] for key in orphans]


def _prefixes(sweep: Sweep) -> list[str]:
    parts = range(SHARDS) if sweep.part < 0 else [sweep.part]
    epoch = f"{sweep.agent_epoch:010d}-" if sweep.agent_epoch >= 0 else ""
    return [f"{SEGMENT_PREFIX}{part:x}/{epoch}" for part in parts]


def _swept_object(info: ObjectInfo) -> SweptObject | None:
    """None: it has not a segment's key, and is nobody's business here."""
    try:
        name = parse_segment_key(info.key)
    except ValueError:
        return None
    return SweptObject(name.agent_epoch, name.sequence, info.key, info.modified_ms)


def _bytes(infos: list[ObjectInfo]) -> int:
    return sum(info.byte_length for info in infos)
