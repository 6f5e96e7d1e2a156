"""Joins and syncs that wait for the others of their group: each has a ticket, and is answered exactly once.

The group (:mod:`metadata.groups`) is given tickets and gives answers to tickets; who waits for them, and that it may
have been cancelled meanwhile, is known here alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from metadata.group_model import JoinGroupAnswer, SyncGroupAnswer
from metadata.group_states import Effects
from metadata.model import MetadataUnavailable, Refusal
from metadata.pipeline import CommandPipeline, Transaction

T = TypeVar("T")
Decide = Callable[[int, Transaction], None]
"""Decides one call, given its ticket."""


class ParkedCalls:
    """Everybody who waits, of all groups. One event loop.

    Cancelling a call forgets nothing of what was decided: its answer goes nowhere. A call raises
    :class:`metadata.model.MetadataUnavailable` when the pipeline does, or after :meth:`stop`.
    """

    def __init__(self, pipeline: CommandPipeline) -> None:
        self._pipeline = pipeline
        self._tickets = count(1)
        self._joins: dict[int, asyncio.Future[JoinGroupAnswer]] = {}
        self._syncs: dict[int, asyncio.Future[SyncGroupAnswer]] = {}
        self._stopping = False

    async def join(self, decide: Decide) -> JoinGroupAnswer:
        """Run ``decide``, and wait until the join's ticket is answered."""
        return await self._run(self._joins, decide)

    async def sync(self, decide: Decide) -> SyncGroupAnswer:
        """The same for a sync."""
        return await self._run(self._syncs, decide)

    async def _run(self, waiting: dict[int, asyncio.Future[T]], decide: Decide) -> T:
        def decide_with_ticket(transaction: Transaction) -> asyncio.Future[T]:
            if self._stopping:
                raise MetadataUnavailable("the group coordinator has stopped")
            ticket = next(self._tickets)
            waiting[ticket] = answer = asyncio.get_running_loop().create_future()
            decide(ticket, transaction)
            return answer

        # Decided anew after a failed write, it has a new ticket: what became of the first one means nothing.
        return await (await self._pipeline.run(decide_with_ticket))

    def answer(self, effects: Effects) -> None:
        """What the group has decided about tickets is durable."""
        for ticket, join_answer in effects.joins:
            _settle(self._joins.pop(ticket, None), join_answer)
        for ticket, sync_answer in effects.syncs:
            _settle(self._syncs.pop(ticket, None), sync_answer)

    def answer_all(self, refusal: Refusal) -> None:
        """The groups are no more what they were: everybody who waits is refused."""
        # The same dicts stay: a command that is queued now will park its ticket in the one it was given.
        for join in self._joins.values():
            _settle(join, JoinGroupAnswer(refusal, ""))
        self._joins.clear()
        for sync in self._syncs.values():
            _settle(sync, SyncGroupAnswer(refusal))
        self._syncs.clear()

    def stop(self) -> None:
        """Send everybody who waits to look for another coordinator; nobody waits from now on."""
        self._stopping = True
        self.answer_all(Refusal.NOT_COORDINATOR)


def _settle(waiting: asyncio.Future[T] | None, answer: T) -> None:
    """Answer one who waits, unless it was cancelled."""
    if waiting is not None and not waiting.done():
        waiting.set_result(answer)
