"""Background jobs as they travel between the metadata service and the agents that do them."""

from __future__ import annotations

import msgspec

DELETE_OBJECTS = "delete-objects"
"""The payload is an :class:`ObjectsToDelete`, the result empty: all of them are gone from the store."""
SWEEP_ORPHANS = "sweep-orphans"
"""The payload is a :class:`Sweep`, the result a :class:`Swept`."""
COMPACT_SEGMENTS = "compact-segments"
"""The payload is a :class:`metadata.compaction.CompactionJob`, the result empty: what could be swapped was."""
CLEAN_PARTITION = "clean-partition"
"""The payload is a :class:`metadata.compaction.CleanJob`, the result empty."""
COMPACTED_SEQUENCE_MIN = 500_000_000_000
"""Compacted segments are numbered from here on within their agent's epoch, ingested ones from 0."""
SWEEP_PARTS = 16
"""A sweep of the whole bucket has so many parts: one for each prefix that segments' keys are spread over."""


class JobLease(msgspec.Struct, frozen=True, array_like=True):
    """A job that one agent does, until ``lease_ms`` after it was leased or renewed last.

    ``target`` tells jobs of a kind apart. Whoever loses the lease stops: another may be doing the job by then, which is
    harmless for every kind, but a waste.
    """

    lease_id: int
    kind: str
    target: str
    payload: bytes
    """MessagePack, as its kind has it."""
    lease_ms: int


class ObjectsToDelete(msgspec.Struct, frozen=True, array_like=True):
    """Segments that nothing references any more."""

    segments: tuple[tuple[int, int, str], ...]
    """(agent epoch, sequence, key)"""


class Sweep(msgspec.Struct, frozen=True, array_like=True):
    """Look for orphans among objects older than ``age_ms``."""

    age_ms: int
    agent_epoch: int = -1
    """Of this epoch alone; -1: of all, and then only in ``part``."""
    part: int = -1
    """One of :data:`SWEEP_PARTS`; -1: all."""


class SweptObject(msgspec.Struct, frozen=True, array_like=True):
    """An object with a segment's key, as a sweep found it."""

    agent_epoch: int
    sequence: int
    segment_key: str
    modified_ms: int
    """By the object store's clock."""


class Swept(msgspec.Struct, frozen=True, array_like=True):
    """What became of a sweep."""

    objects_listed: int = 0
    objects_deleted: int = 0
    bytes_deleted: int = 0
