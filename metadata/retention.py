"""Which extents a topic's retention lets go. Pure; Kafka's rules (``UnifiedLog.deleteOldSegments``) with extents for
segments: the oldest ones together, whole, and as long as each of them may go.

=====================  ==================================================================================
``retention.ms``       while the largest timestamp in an extent is older (its commit's time where its records
                       have none)
``retention.bytes``    while what is left without the extent is still as large as this, or larger
``cleanup.policy``     without ``delete``, nothing goes
=====================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from metadata.config_definitions import split_list
from metadata.model import Extent
from metadata.topic_configs import effective

NEVER_MS = 2**62


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """What a topic keeps; -1: no limit."""

    retention_ms: int
    retention_bytes: int
    compacted: bool
    """Its extents also shrink by compaction."""

    @property
    def keeps_all(self) -> bool:
        return self.retention_ms < 0 and self.retention_bytes < 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """``log_start_offset``: the new one, or None when everything stays. ``due_ms``: when the oldest extent that stays
    is too old; :data:`NEVER_MS` when there is none here. ``complete``: there is one that stays."""

    log_start_offset: int | None
    freed_bytes: int
    due_ms: int
    complete: bool


def deletes(configs: Mapping[str, str]) -> bool:
    """Whether anything of the topic may be deleted before the topic is."""
    return "delete" in split_list(effective(configs, "cleanup.policy"))


def retention_policy(configs: Mapping[str, str]) -> RetentionPolicy:
    """Of a topic on which ``configs``, valid already, are set."""
    if not deletes(configs):
        return RetentionPolicy(-1, -1, compacted=True)
    return RetentionPolicy(
        int(effective(configs, "retention.ms")),
        int(effective(configs, "retention.bytes")),
        "compact" in split_list(effective(configs, "cleanup.policy")),
    )


def judge(policy: RetentionPolicy, oldest: Iterable[Extent], size_bytes: int, now_ms: int) -> Verdict:
    """How far a log may be cut. ``oldest``: its first extents in order; ``size_bytes``: of all its extents together."""
    log_start_offset: int | None = None
    freed = 0
    for extent in oldest:
        due_ms = _due_ms(policy, extent)
        too_large = policy.retention_bytes >= 0 and size_bytes - freed - extent.byte_length >= policy.retention_bytes
        if due_ms > now_ms and not too_large:
            return Verdict(log_start_offset, freed, due_ms, complete=True)
        freed += extent.byte_length
        log_start_offset = extent.last_offset + 1
    return Verdict(log_start_offset, freed, NEVER_MS, complete=False)


def _due_ms(policy: RetentionPolicy, extent: Extent) -> int:
    if policy.retention_ms < 0:
        return NEVER_MS
    newest_ms = extent.max_timestamp_ms if extent.max_timestamp_ms >= 0 else extent.commit_ms
    return newest_ms + policy.retention_ms + 1
