"""What the objects under ``meta/`` add up to: which snapshots are whole, what follows them, what may go. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from metadata.journal.format import (
    EntryName,
    SnapshotName,
    parse_entry_key,
    parse_snapshot_key,
)

SNAPSHOTS_KEPT = 2


@dataclass(slots=True)
class Chain:
    """``entries`` and ``complete`` snapshots in ascending order; ``keys`` are all keys that belong to a snapshot."""

    entries: list[EntryName] = field(default_factory=list)
    complete: list[SnapshotName] = field(default_factory=list)
    keys: dict[SnapshotName, list[str]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not self.entries and not self.keys

    @property
    def generation_max(self) -> int:
        """0: nothing is there."""
        return max(
            max((name.generation for name in self.entries), default=0),
            max((name.generation for name in self.keys), default=0),
        )

    def following(self, generation: int, after: int) -> list[EntryName]:
        """Entries that go on from entry ``after`` of a generation, up to the first that is missing."""
        numbers = {name.number for name in self.entries if name.generation == generation}
        found = []
        while after + 1 in numbers:
            after += 1
            found.append(EntryName(generation, after))
        return found


def read_chain(keys: Iterable[str]) -> Chain:
    """From a listing of ``meta/``; keys that are none of ours are left out."""
    chain = Chain()
    for key in keys:
        entry = parse_entry_key(key)
        if entry is not None:
            chain.entries.append(entry)
            continue
        snapshot = parse_snapshot_key(key)
        if snapshot is not None:
            name, is_complete = snapshot
            chain.keys.setdefault(name, []).append(key)
            if is_complete:
                chain.complete.append(name)
    chain.entries.sort()
    chain.complete.sort()
    return chain


def to_prune(chain: Chain, generation: int, after_of: dict[SnapshotName, int]) -> list[str]:
    """Keys that nobody needs once the two newest snapshots of this and earlier generations are whole.

    ``after_of`` has the last entry that is in a snapshot, for those kept. Nothing of a later generation goes, nor
    what a snapshot that is still being written has.
    """
    kept = [name for name in chain.complete if name.generation <= generation][-SNAPSHOTS_KEPT:]
    if len(kept) < SNAPSHOTS_KEPT or kept[0] not in after_of:
        return []
    oldest = kept[0]
    entries = [
        name.key
        for name in chain.entries
        if name.generation < oldest.generation
        or (name.generation == oldest.generation and name.number <= after_of[oldest])
    ]
    # ``complete`` first: without it nobody reads the parts.
    parts = [key for name, keys in chain.keys.items() if name < oldest for key in sorted(keys, reverse=True)]
    return parts + entries
