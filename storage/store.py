"""The object store port: whole immutable objects, written once, read by range.

Keys are ``/``-separated, relative to the store's root (a bucket prefix or a folder). Every implementation
and decorator (retry, metrics, hedging is the uploader's) speaks this protocol; the contract suite in
``tests/contract`` runs against all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Chunk = bytes | bytearray | memoryview


class StorageError(Exception):
    """An object store operation failed. The message names the operation, the key and the cause."""


class ObjectNotFound(StorageError):
    """There is no object under this key."""


class ObjectExists(StorageError):
    """A *different* object lives under this key; nothing was written."""


class StorageUnavailable(StorageError):
    """Transient (timeout, 5xx, throttling, connection, disk full): the same call may work later.

    The outcome of a ``put`` that ended so is unknown; repeating it with the same key and bytes is safe.
    """


class StorageThrottled(StorageUnavailable):
    """The store asked for less (503 SlowDown, 429)."""


class StorageRefused(StorageError):
    """Permanent (access denied, no such bucket, bad configuration): retrying will not help."""


class ChecksumMismatch(StorageRefused):
    """The bytes of a put do not have the CRC32C that was given with them; nothing was written."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    byte_length: int
    modified_ms: int


class ObjectStore(Protocol):
    """See the module's text. All methods may raise :class:`StorageError`'s subclasses."""

    name: str
    """What logs and the start-up banner call it, e.g. ``s3://logs/prod``; no credentials in it."""
    hedged: bool
    """Whether a straggling put is worth a second one (object stores over a network)."""

    async def put(self, key: str, chunks: Sequence[Chunk], crc32c: int) -> None:
        """Create ``key`` from the concatenated ``chunks``; durable when this returns.

        ``crc32c`` is the checksum of the whole object; the store verifies it where it can. The chunks are
        borrowed: they must not change until this returns. Putting the same bytes again succeeds (a retry
        after an unknown outcome). Cancelling leaves the outcome unknown; no partial object ever appears.

        :raises ObjectExists: another object has this key.
        """

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """``length`` bytes from ``start`` (to the end when None); fewer only where the object ends.

        :raises ObjectNotFound:
        """

    async def head(self, key: str) -> ObjectInfo:
        """:raises ObjectNotFound:"""

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; a key that does not exist is fine."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key starts with ``prefix``, in key order. Never used to serve clients."""

    async def check(self) -> None:
        """Raise with a message an operator can act on unless the store can be written and read."""

    async def close(self) -> None:
        """Release connections and threads. Idempotent."""
