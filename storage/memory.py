"""``memory://``: objects in this process, for tests, the simulation and benchmarks. Gone when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from runtime.clock import Clock
from storage.arena import Arena
from storage.keys import validate_key, validate_range
from storage.store import Chunk, ObjectExists, ObjectInfo, ObjectNotFound, StorageUnavailable


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes | memoryview
    modified_ms: int
    position: int = 0
    """Where in the arena the data is."""


class MemoryStore:
    """Each object is copied once, when it is put, into a ``bytes`` of its own.

    With ``capacity_bytes`` all memory is allocated and touched when the store is made (about a second per
    gigabyte), puts only copy into it, and a put that does not fit fails as on a full disk.

    ``crc32c`` is not verified: nothing lies between the caller's memory and this one, and a benchmark must
    not pay for what an S3 server would do elsewhere (:class:`storage.faults.FaultyStore` does verify it).
    """

    hedged = False

    def __init__(self, clock: Clock, capacity_bytes: int | None = None) -> None:
        self.name = "memory://"
        self.held_bytes = 0
        self._clock = clock
        self._arena = Arena(capacity_bytes) if capacity_bytes is not None else None
        self._objects: dict[str, _Object] = {}

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        validate_key(key)
        existing = self._objects.get(key)
        if existing is not None:
            if existing.data != b"".join(chunks):
                raise ObjectExists(f"put {key}: another object of {len(existing.data)} bytes has this key")
            return
        stored = self._store(key, chunks)
        self._objects[key] = stored
        self.held_bytes += len(stored.data)

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        validate_range(key, start, length)
        data = self._find("get", key).data
        return bytes(data[start:] if length is None else data[start : start + length])

    async def head(self, key: str) -> ObjectInfo:
        found = self._find("head", key)
        return ObjectInfo(key, len(found.data), found.modified_ms)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            gone = self._objects.pop(key, None)
            if gone is None:
                continue
            self.held_bytes -= len(gone.data)
            if self._arena is not None:
                self._arena.free(gone.position, len(gone.data))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(key for key in self._objects if key.startswith(prefix)):
            found = self._objects.get(key)
            if found is not None:  # deleted while the caller was busy with an earlier one
                yield ObjectInfo(key, len(found.data), found.modified_ms)

    async def check(self) -> None:
        """Always writable."""

    async def close(self) -> None:
        """Nothing to release; the objects stay readable, as a bucket's would."""

    def _store(self, key: str, chunks: Sequence[Chunk]) -> _Object:
        now_ms = self._clock.now_ms()
        if self._arena is None:
            return _Object(b"".join(chunks), now_ms)
        byte_length = sum(map(len, chunks))
        placed = self._arena.store(chunks, byte_length)
        if placed is None:
            raise StorageUnavailable(f"put {key}: {byte_length} bytes do not fit, {self.held_bytes} are held")
        position, view = placed
        return _Object(view, now_ms, position)

    def _find(self, operation: str, key: str) -> _Object:
        found = self._objects.get(key)
        if found is None:
            raise ObjectNotFound(f"{operation} {key}: no such object")
        return found
