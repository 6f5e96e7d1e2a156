"""Which object keys are allowed: those that mean the same in a folder, a bucket and a dict. Pure."""

from __future__ import annotations

from storage.store import StorageRefused

KEY_BYTES_MAX = 900
"""S3 allows 1,024 bytes; the rest is left for the bucket prefix."""
PART_BYTES_MAX = 200
"""File systems allow 255 bytes per name."""


def validate_key(key: str) -> None:
    """Return when ``key`` is relative, ``/``-separated, printable, and no part of it is hidden or empty.

    :raises StorageRefused: naming the key and the rule it breaks.
    """
    if not key or not key.isprintable() or "\\" in key:
        raise StorageRefused(f"object key {key!r}: must be non-empty printable text without backslashes")
    if len(key.encode()) > KEY_BYTES_MAX:
        raise StorageRefused(f"object key {key[:40]!r}...: longer than {KEY_BYTES_MAX} bytes")
    for part in key.split("/"):
        if not part or part[0] == ".":
            raise StorageRefused(f"object key {key!r}: no part may be empty or start with a dot")
        if len(part) * 4 > PART_BYTES_MAX and len(part.encode()) > PART_BYTES_MAX:
            raise StorageRefused(f"object key {key!r}: part {part[:40]!r}... is longer than {PART_BYTES_MAX} bytes")


def validate_range(key: str, start: int, length: int | None) -> None:
    """:raises StorageRefused: a byte range that no object can have."""
    if start < 0 or (length is not None and length < 0):
        raise StorageRefused(f"get {key}: byte range start={start} length={length} is negative")
