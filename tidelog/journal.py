"""The journal of a metadata service, where its process has a bucket and its store is one that is kept."""

from __future__ import annotations

import structlog

from metadata.journal.journal import Journal
from metadata.journal.metrics import JournalMetrics
from metadata.store.port import MetadataStore
from metadata.store.tables import TableStore
from runtime.clock import Clock
from runtime.settings import JournalSettings
from storage.store import ObjectStore

_log = structlog.get_logger("tidelog.metadata.journal")


def open_journal(
    bucket: ObjectStore | None, store: MetadataStore, settings: JournalSettings, clock: Clock, metrics: JournalMetrics
) -> Journal | None:
    """For one term of ``store``; nothing is started. None, said in the log: there will be no journal."""
    reason = None
    if not settings.enabled:
        reason = "journal.enabled is false"
    elif bucket is None:
        reason = "no storage is set"
    elif not isinstance(store, TableStore) or bucket.name == "memory://":
        reason = "memory:// keeps nothing"
    if reason is not None or bucket is None or not isinstance(store, TableStore):
        _log.warning("journal_off", reason=reason, hint="the metadata is in its database only: back that up")
        return None
    return Journal(bucket, settings, clock, metrics, store.view, store.generation)
