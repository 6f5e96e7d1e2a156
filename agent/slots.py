"""A request's place in its connection's order of answers."""

from __future__ import annotations

from typing import Protocol

from agent.metrics import ApiMetrics
from agent.wire.codec import EncodedResponse
from agent.wire.frames import Block


class SlotOwner(Protocol):
    """The connection that waits for a slot's answer."""

    def completed(self, slot: Slot) -> None:
        """``slot`` has its answer (or the reason to close instead); once per slot, on the event loop."""


class Slot:
    """One request that was taken in, until its answer is written.

    Exactly one of these ends it, after which ``owner.completed`` is called: ``answer`` (a whole frame; empty when
    none is due, as for acks=0), ``answer`` as the head of a ``payload``, or ``closes``, the reason to close the
    connection once all earlier answers are written. A slot without a ``block`` only marks where the stream ended.
    """

    __slots__ = ("answer", "api", "block", "closes", "held_bytes", "owner", "payload", "unsent_bytes")

    def __init__(self, owner: SlotOwner, block: Block | None, api: ApiMetrics | None) -> None:
        self.owner = owner
        self.block = block
        self.api = api
        self.answer: bytes | None = None
        self.payload: EncodedResponse | None = None
        self.closes: str | None = None
        self.unsent_bytes = 0
        """Of its answer, on the connection's account until it is written."""
        self.held_bytes = 0
        """Of these, what the budget counts as ours: not what a payload's lender counts."""
