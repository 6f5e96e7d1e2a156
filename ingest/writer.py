"""The ingest path's front: takes validated batches in, and settles their tickets once they are committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ingest.metrics import IngestMetrics
from ingest.ticket import PendingBatch, ProduceTicket
from metadata.client import MetadataClient
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from runtime.settings import IngestSettings
from runtime.tasks import Supervisor
from storage.store import Chunk, ObjectStore


class SegmentSink(Protocol):
    """Who wants the newest segments' bytes (the fetch path, so that tailing costs no GET). Callbacks return at once."""

    def segment_uploaded(self, segment_key: str, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """The object is durable and its commit is about to be asked for: (byte position, chunk) of all its batches.

        The chunks never change; the sink may keep them, and accounts for them, from now on.
        """

    def segment_dropped(self, segment_key: str) -> None:
        """The segment announced before will not be (or may never have been) committed: forget its bytes."""


class SegmentWriter:
    """See the module's text. One event loop."""

    def __init__(
        self,
        store: ObjectStore,
        metadata: MetadataClient,
        settings: IngestSettings,
        budget: Budget,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: IngestMetrics,
        sink: SegmentSink,
        on_fenced: Callable[[], None] | None = None,
    ) -> None:
        raise NotImplementedError

    def start(self, agent_epoch: int) -> None:
        """Commit under ``agent_epoch`` from now on; again after being fenced, with the new epoch."""
        raise NotImplementedError

    def append(self, ticket: ProduceTicket, index: int, batch: PendingBatch) -> None:
        """Take in one batch; ``ticket.settle(index, ...)`` follows. Never blocks, never fails."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Seal, upload and commit everything; returns when every ticket has settled."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Cut off what is left: every ticket settles with IngestFailed. Idempotent."""
        raise NotImplementedError

    def problem(self) -> str | None:
        """None while batches can be committed, else one sentence."""
        raise NotImplementedError
