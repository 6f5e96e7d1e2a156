"""A sealed segment, from seal to settled tickets."""

from __future__ import annotations

import asyncio

from ingest.buffer import Waiters
from ingest.segment import EncodedSegment
from ingest.ticket import IngestFailed
from metadata.model import ExtentDraft, SegmentCommit, SegmentCommitted


class SealedSegment:
    """Its bytes, who waits for it, and how far it has come. ``waiters`` has an entry per extent, in extent order.

    *Settled*: its tickets have their outcomes (and its memory is given back). *Sent*: a commit that names it was asked
    for at least once, so that only the metadata service knows whether it is committed.
    """

    __slots__ = (
        "batch_count",
        "commit_deadline",
        "data_byte_length",
        "encoded",
        "extents",
        "held_bytes",
        "record_count",
        "sealed_at",
        "segment_key",
        "sent",
        "sequence",
        "settled",
        "upload",
        "upload_deadline",
        "uploaded_at",
        "waiters",
    )

    def __init__(
        self,
        sequence: int,
        encoded: EncodedSegment,
        waiters: list[Waiters],
        record_count: int,
        held_bytes: int,
        sealed_at: float,
        upload_deadline: float,
        commit_deadline: float,
    ) -> None:
        self.sequence = sequence
        self.encoded: EncodedSegment | None = encoded
        self.extents: tuple[ExtentDraft, ...] = encoded.extents
        self.waiters = waiters
        self.batch_count = sum(len(tickets) for tickets, _ in waiters)
        self.record_count = record_count
        self.data_byte_length = encoded.byte_length - len(encoded.ending)
        self.held_bytes = held_bytes
        self.sealed_at = sealed_at
        self.upload_deadline = upload_deadline
        self.commit_deadline = commit_deadline
        self.upload: asyncio.Task[None] | None = None
        self.segment_key: str | None = None
        self.uploaded_at = sealed_at
        self.sent = False
        self.settled = False

    @property
    def deadline(self) -> float:
        """By when (the clock's monotonic seconds) the stage it is in must end."""
        return self.upload_deadline if self.segment_key is None else self.commit_deadline

    def commit(self) -> SegmentCommit:
        """What the metadata service is asked for; only while not settled."""
        assert self.encoded is not None and self.segment_key is not None
        return SegmentCommit(self.sequence, self.segment_key, self.encoded.byte_length, self.extents)

    def check_answer(self, answer: SegmentCommitted) -> None:
        """:raises RuntimeError: the answer is to something else; acknowledging from it could lose records."""
        shape = [len(tickets) for tickets, _ in self.waiters]
        if answer.sequence != self.sequence or shape != [len(outcomes) for outcomes in answer.extents]:
            raise RuntimeError(f"the answer to segment {self.sequence} has another shape than the question")

    def settle(self, answer: SegmentCommitted) -> tuple[int, int]:
        """Give every batch its own outcome; how many were refused, and how many were duplicates."""
        refused = duplicate = 0
        for (tickets, indexes), outcomes in zip(self.waiters, answer.extents, strict=True):
            for ticket, index, outcome in zip(tickets, indexes, outcomes, strict=True):
                if outcome.refusal is not None:
                    refused += 1
                elif outcome.duplicate:
                    duplicate += 1
                ticket.settle(index, outcome)
        self._release()
        return refused, duplicate

    def fail(self, error: IngestFailed) -> None:
        """Give every batch ``error``."""
        for tickets, indexes in self.waiters:
            for ticket, index in zip(tickets, indexes, strict=True):
                ticket.settle(index, error)
        self._release()

    def _release(self) -> None:
        self.settled = True
        self.waiters = []
        self.extents = ()
        self.encoded = None
