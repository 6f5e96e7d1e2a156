"""The metadata service with its store, inside the process that calls it."""

from __future__ import annotations

from metadata.metrics import MetadataMetrics
from metadata.service import MetadataService
from metadata.store.factory import open_metadata_store
from tidelog.group_metrics import GroupMetrics
from tidelog.parts import ProcessParts


async def start_metadata_service(parts: ProcessParts) -> MetadataService:
    """Started, watched by readiness, and closed with the process.

    :raises metadata.store.port.StoreUnavailable: its store cannot be used.
    """
    settings, clock = parts.settings, parts.clock
    service = MetadataService(
        open_metadata_store(settings.metadata_url(), settings.leadership.lease_ms, clock),
        clock,
        parts.entropy,
        parts.supervisor,
        MetadataMetrics(parts.registry),
        settings.groups,
        settings.topics,
        settings.agents,
        settings.lifecycle,
        settings.compaction,
    )
    parts.closes("metadata", service.stop)
    await service.start()
    parts.health.add_readiness("metadata", service.problem)
    group_metrics = GroupMetrics(parts.registry, clock)
    parts.http.before_scrape(lambda: group_metrics.refresh(service))
    return service
