"""The metadata service with its store, inside the process that calls it."""

from __future__ import annotations

from metadata.journal.metrics import JournalMetrics
from metadata.metrics import MetadataMetrics
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from tidelog.group_metrics import GroupMetrics
from tidelog.journal import open_journal
from tidelog.parts import ProcessParts


async def start_metadata_service(parts: ProcessParts) -> MetadataService:
    """Started, watched by readiness, and closed with the process.

    :raises metadata.store.port.StoreUnavailable: its store cannot be used.
    """
    settings, clock = parts.settings, parts.clock
    store = open_metadata_store(settings.metadata_url(), settings.leadership.lease_ms, clock)
    service = MetadataService(
        store,
        clock,
        parts.entropy,
        parts.supervisor,
        MetadataMetrics(parts.registry),
        settings.groups,
        settings.topics,
        settings.agents,
        settings.lifecycle,
        settings.compaction,
        open_journal(parts.object_store, store, settings.journal, clock, JournalMetrics(parts.registry)),
    )
    parts.closes("metadata", service.stop)
    await service.start()
    parts.health.add_readiness("metadata", service.problem)
    parts.health.add_fact("journal", service.journal_state)
    group_metrics = GroupMetrics(parts.registry, clock)
    parts.http.before_scrape(lambda: group_metrics.refresh(service))
    return service
