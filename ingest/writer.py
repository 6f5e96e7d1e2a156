"""The ingest path's front: takes validated batches in, and settles their tickets once they are committed.

append -> open segment -> seal (size, linger, memory, drain) -> upload (concurrent, hedged) -> commit (in seal order)
-> settle. Nothing runs while nothing is open or pending: no timer, no polling.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence

import structlog

from ingest.buffer import BATCH_OVERHEAD_BYTES, OpenSegment
from ingest.committer import Committer
from ingest.metrics import IngestMetrics
from ingest.policy import SealReason, seal_after_append, seal_bytes
from ingest.sealed import SealedSegment
from ingest.segment import encode_segment
from ingest.sink import SegmentSink
from ingest.ticket import IngestFailed, PendingBatch, Ticket
from ingest.uploader import Uploader, UploadFailed
from metadata.client import MetadataClient
from metadata.model import Fenced
from runtime.budget import Budget
from runtime.clock import Clock, Entropy
from runtime.settings import IngestSettings
from runtime.tasks import Supervisor
from storage.store import ObjectStore

__all__ = ["SegmentSink", "SegmentWriter"]

_CHARGED_BATCHES = 64
"""The budget hears of batch overheads so many at a time."""

_UPLOAD_SHARE = 0.75
"""An upload is given up after this share of a segment's deadline, so that what was sealed with it, is durable and waits
behind it for its turn, still has time for its commit."""

_log = structlog.get_logger("tidelog.ingest")


class _State(enum.StrEnum):
    NEW = "not started"
    RUNNING = "running"
    FENCED = "this agent's epoch was fenced: nothing it does can commit until it has registered again"
    STOPPED = "stopped"


class SegmentWriter:
    """See the module's text. One event loop; every method is called on it.

    Payload bytes of borrowed batches are on the request's account until its ticket has settled; the writer takes from
    the budget ("segment") what it holds beside them: bookkeeping per batch, copies of small batches, footers. Since
    nothing settles while the store or the metadata service is down, the budget then fills and connections stop reading:
    that is the bound on the queue of sealed segments.
    """

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
        """``on_fenced()`` is called once per epoch, when it turns out to have been replaced and everything pending has
        failed; the app then registers anew and calls :meth:`start`, or shuts down."""
        self._settings = settings
        self._budget = budget
        self._clock = clock
        self._supervisor = supervisor
        self._metrics = metrics
        self._on_fenced = on_fenced
        self._segment_bytes_max = settings.segment_bytes_max
        self._uploader = Uploader(store, settings, clock, entropy, supervisor, metrics)
        self._committer = Committer(metadata, budget, clock, entropy, metrics, sink, self._uploader.discard)
        self._state = _State.NEW
        self._agent_epoch = -1
        self._sequence = 0
        self._open: OpenSegment | None = None
        self._uploads: set[asyncio.Task[None]] = set()
        self._committing: asyncio.Task[None] | None = None

    def start(self, agent_epoch: int) -> None:
        """Commit under ``agent_epoch`` from now on; again after being fenced, with the new epoch."""
        if self._state not in (_State.NEW, _State.FENCED):
            raise RuntimeError(f"the writer cannot start: {self._state}")
        if agent_epoch <= self._agent_epoch:
            raise RuntimeError(f"agent epoch {agent_epoch} is not newer than {self._agent_epoch}")
        self._agent_epoch = agent_epoch
        self._sequence = 0
        self._state = _State.RUNNING
        self._committing = self._supervisor.start("ingest-committer", self._commit())

    async def fence(self) -> None:
        """The epoch is known to be fenced: fail what is pending and take in nothing until :meth:`start`.

        What a commit call under way does is unknown, as its producers are told. Nothing happens unless it runs.
        """
        committing = self._committing
        if self._state is _State.RUNNING:
            assert committing is not None
            committing.cancel()
            self._give_up(_State.FENCED, "fenced")
        if committing is not None:
            await asyncio.wait([committing])

    def append(self, ticket: Ticket, batches: Sequence[PendingBatch]) -> None:
        """Take in the batches of one request, in order; ``ticket.settle(i, ...)`` follows for the i-th, never before
        this returns.

        Never blocks, never fails; about a microsecond a batch, but for the one that fills the segment, which is then
        laid out.
        """
        start = 0
        while start < len(batches):
            segment = self._open
            if segment is None:
                if self._state is not _State.RUNNING:
                    self._turn_away(ticket, len(batches))
                    return
                segment = self._open_segment()
            byte_max, pending = self._segment_bytes_max, self._committer.unsettled
            start = segment.append(ticket, batches, start, seal_bytes(byte_max, self._budget.exhausted, pending))
            self._grown(segment)

    def append_one(self, ticket: Ticket, batch: PendingBatch) -> None:
        """As :meth:`append` of this batch alone, which is what tens of thousands of requests a second hold."""
        segment = self._open
        if segment is None:
            if self._state is not _State.RUNNING:
                self._turn_away(ticket, 1)
                return
            segment = self._open_segment()
        segment.append_one(ticket, batch)
        self._grown(segment)

    def _grown(self, segment: OpenSegment) -> None:
        """Charge the budget for what was appended, and seal the segment if that is due."""
        while segment.batch_count > segment.charged_batches:
            segment.charged_batches += _CHARGED_BATCHES
            self._budget.take("segment", _CHARGED_BATCHES * BATCH_OVERHEAD_BYTES)
        exhausted, pending = self._budget.exhausted, self._committer.unsettled
        reason = seal_after_append(
            segment.byte_length, segment.batch_count, self._segment_bytes_max, exhausted, pending
        )
        if reason is not None:
            self._seal(segment, reason)

    def _turn_away(self, ticket: Ticket, batch_count: int) -> None:
        """Nothing can be taken in, and nothing of the request was: the state does not change during :meth:`append`."""
        error = IngestFailed(str(self._state))
        for index in range(batch_count):
            asyncio.get_running_loop().call_soon(ticket.settle, index, error)

    async def drain(self) -> None:
        """Seal, upload and commit everything; returns when every ticket has settled and losers' objects are deleted.

        What is appended meanwhile is drained too. Takes as long as the deadline of uploads at the most; cancelling
        leaves everything going on.
        """
        while self._open is not None or self._committer.unsettled:
            if self._open is not None:
                self._seal(self._open, SealReason.DRAIN)
            await self._committer.wait_settled()
        if self._uploads:
            await asyncio.wait(self._uploads)
        await self._uploader.drain()

    async def stop(self) -> None:
        """Cut off what is left: every ticket settles with IngestFailed, later appends too. Idempotent."""
        committing, self._committing = self._committing, None
        if committing is not None:
            committing.cancel()
        self._give_up(_State.STOPPED, "stopped")
        ending = {*self._uploads, committing} if committing is not None else set(self._uploads)
        if ending:
            await asyncio.wait(ending)
        await self._uploader.stop()

    def problem(self) -> str | None:
        """None while batches can be committed, else one sentence."""
        if self._state is not _State.RUNNING:
            return str(self._state)
        if (commits := self.commit_problem()) is not None:
            return f"commits fail: {commits}"
        if (uploads := self.upload_problem()) is not None:
            return f"uploads fail: {uploads}"
        return None

    def commit_problem(self) -> str | None:
        """Why the latest commit call failed, while something waits for it."""
        return self._committer.failure if self._committer.unsettled else None

    def upload_problem(self) -> str | None:
        """Why the latest attempt of an upload failed, while something waits for it."""
        return self._uploader.failure if self._committer.unsettled else None

    def settled_records(self) -> dict[str, int]:
        """Records whose producers have been answered, by what became of them ("committed" and what failed)."""
        return dict(self._committer.settled_records)

    def pending_records(self) -> int:
        """Records taken in and not answered yet."""
        return self._committer.unsettled_records() + (0 if self._open is None else self._open.record_count)

    def _open_segment(self) -> OpenSegment:
        timer = asyncio.get_running_loop().call_later(self._settings.linger_ms / 1000, self._linger_over)
        self._open = OpenSegment(self._clock.monotonic(), timer)
        return self._open

    def _linger_over(self) -> None:
        assert self._open is not None, "sealing cancels the linger"
        self._seal(self._open, SealReason.LINGER)

    def _seal(self, segment: OpenSegment, reason: SealReason) -> None:
        segment.timer.cancel()
        self._open = None
        runs = list(segment.runs.values())
        encoded = encode_segment(self._agent_epoch, self._sequence, self._clock.now_ms(), runs)
        kept_bytes = encoded.copied_bytes + len(encoded.ending)
        self._budget.take("segment", kept_bytes)
        now = self._clock.monotonic()
        seconds = self._settings.upload_deadline_ms / 1000
        sealed = SealedSegment(
            self._sequence,
            encoded,
            [run.waiters for run in runs],
            segment.record_count,
            segment.charged_batches * BATCH_OVERHEAD_BYTES + kept_bytes,
            now,
            now + seconds * _UPLOAD_SHARE,
            now + seconds,
        )
        self._sequence += 1
        self._metrics.seals[reason].inc()
        self._metrics.segment_bytes.observe(encoded.byte_length)
        self._metrics.wait_seconds.observe(now - segment.opened_at)
        self._committer.add(sealed)
        upload = self._supervisor.start(f"ingest-upload-{sealed.sequence}", self._upload(self._agent_epoch, sealed))
        sealed.upload = upload
        self._uploads.add(upload)
        upload.add_done_callback(self._uploads.discard)

    async def _upload(self, agent_epoch: int, sealed: SealedSegment) -> None:
        assert sealed.encoded is not None
        try:
            key = await self._uploader.upload(agent_epoch, sealed.sequence, sealed.encoded)
        except UploadFailed as error:
            _log.error("upload_refused", sequence=sealed.sequence, error=str(error))
            sealed.upload = None
            self._committer.upload_failed(sealed, str(error))
        except BaseException:
            sealed.upload = None
            self._committer.upload_failed(sealed, "the upload was cut off")
            raise
        else:
            sealed.upload = None
            self._committer.uploaded(sealed, key)

    async def _commit(self) -> None:
        try:
            await self._committer.run(self._agent_epoch)
        except Fenced as error:
            _log.error("agent_fenced", epoch=self._agent_epoch, error=str(error))
            self._give_up(_State.FENCED, "fenced")
            if self._on_fenced is not None:
                self._on_fenced()

    def _give_up(self, state: _State, outcome: str) -> None:
        """Fail everything open and pending, and take in nothing more."""
        self._state = state
        error = IngestFailed(str(state))
        segment, self._open = self._open, None
        if segment is not None:
            segment.timer.cancel()
            self._budget.give("segment", segment.charged_batches * BATCH_OVERHEAD_BYTES)
            for run in segment.runs.values():
                for ticket, index in zip(run.tickets, run.indexes, strict=True):
                    ticket.settle(index, error)
        self._committer.fail_all(error, outcome)
