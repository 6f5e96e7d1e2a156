"""``memory://``: objects in this process, for tests, the simulation and benchmarks. Gone when it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from runtime.clock import Clock
from storage.keys import validate_key, validate_range
from storage.store import Chunk, ObjectExists, ObjectInfo, ObjectNotFound, StorageUnavailable


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    modified_ms: int


class MemoryStore:
    """Each object is one ``bytes``: one copy when it is put, none when it is read whole.

    ``crc32c`` is not verified: nothing lies between the caller's memory and this one, and a benchmark must
    not pay for what an S3 server would do elsewhere (:class:`storage.faults.FaultyStore` does verify it).
    With ``capacity_bytes`` a put that does not fit fails as on a full disk.
    """

    hedged = False

    def __init__(self, clock: Clock, capacity_bytes: int | None = None) -> None:
        self.name = "memory://"
        self.held_bytes = 0
        self._clock = clock
        self._capacity_bytes = capacity_bytes
        self._objects: dict[str, _Object] = {}

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        validate_key(key)
        existing = self._objects.get(key)
        # Joining copies whatever may change later; a single `bytes` cannot, and is kept as it is.
        data = b"".join(chunks)
        if existing is not None:
            if existing.data != data:
                raise ObjectExists(f"put {key}: another object of {len(existing.data)} bytes has this key")
            return
        if self._capacity_bytes is not None and self.held_bytes + len(data) > self._capacity_bytes:
            raise StorageUnavailable(
                f"put {key}: {len(data)} bytes do not fit, {self.held_bytes} of {self._capacity_bytes} are used"
            )
        self.held_bytes += len(data)
        self._objects[key] = _Object(data, self._clock.now_ms())

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        validate_range(key, start, length)
        data = self._find("get", key).data
        return data[start:] if length is None else data[start : start + length]

    async def head(self, key: str) -> ObjectInfo:
        found = self._find("head", key)
        return ObjectInfo(key, len(found.data), found.modified_ms)

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            gone = self._objects.pop(key, None)
            if gone is not None:
                self.held_bytes -= len(gone.data)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(key for key in self._objects if key.startswith(prefix)):
            found = self._objects.get(key)
            if found is not None:  # deleted while the caller was busy with an earlier one
                yield ObjectInfo(key, len(found.data), found.modified_ms)

    async def check(self) -> None:
        """Always writable."""

    async def close(self) -> None:
        """Nothing to release; the objects stay readable, as a bucket's would."""

    def _find(self, operation: str, key: str) -> _Object:
        found = self._objects.get(key)
        if found is None:
            raise ObjectNotFound(f"{operation} {key}: no such object")
        return found
