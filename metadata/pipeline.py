"""Group commit: commands decide one after the other in memory, and those that come together share one durable write.

While a write runs, commands that arrive are decided on what it *will* leave behind, and become the next write; never
more than one is decided ahead. Nobody is answered before everything that was decided before is durable. When a write
is durable the next one begins, its callbacks run, and its waiters are answered. When a write fails its outcome is
unknown: what was decided on it is forgotten, the state is rebuilt from the store, and those commands are decided anew.
When the store says that another process leads now, everything ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog

from metadata.metrics import MetadataMetrics
from metadata.model import MetadataError, MetadataUnavailable
from metadata.store.port import Change, Deposed, MetadataStore, StoreSnapshot
from runtime.clock import Clock
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata")

T = TypeVar("T")
Decide = Callable[["Transaction"], Any]

COMMANDS_QUEUED_MAX = 20_000
"""One more command is refused with MetadataUnavailable before it is decided."""
COMMANDS_PER_WRITE_MAX = 2_000
"""Bounds how long the loop decides without a pause, and how large one transaction gets."""
RELOAD_PAUSE_SECONDS = (0.1, 2.0)
"""First and longest pause between attempts to read the store again after a failed write."""


class Transaction:
    """What the commands of one write decided so far. Handed to each ``decide``; not to be kept after it returned."""

    __slots__ = ("_callbacks", "changes")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        """Appending a change to this list is the same as :meth:`change`."""
        self._callbacks: list[Callable[[], None]] = []

    def change(self, change: Change) -> None:
        """Make ``change`` durable with this transaction, after those added before it."""
        self.changes.append(change)

    def after_durable(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` on the loop once the write is durable, in the order added, before any waiter is answered.

        It is never called when the write fails. It must not raise; if it does, that is logged and nothing else
        is disturbed.
        """
        self._callbacks.append(callback)

    def mark(self) -> tuple[int, int]:
        """Where the next command's part begins, for :meth:`discard_from`."""
        return len(self.changes), len(self._callbacks)

    def discard_from(self, mark: tuple[int, int]) -> None:
        """Forget what was added since ``mark``: the command that added it was refused."""
        del self.changes[mark[0] :]
        del self._callbacks[mark[1] :]

    def durable(self) -> None:
        """The write is durable: run the callbacks."""
        for callback in self._callbacks:
            try:
                callback()
            except Exception as error:
                _log.error("metadata_callback_failed", error=repr(error), exc_info=error)


class _Group:
    """Commands that share a write, in order: what each decided, and who waits for it."""

    __slots__ = ("broken", "commands", "transaction")

    def __init__(self) -> None:
        self.transaction = Transaction()
        self.commands: list[tuple[Decide, asyncio.Future[Any], Any]] = []
        """The command, its waiter, and the result: an answer or a MetadataError."""
        self.broken: Exception | None = None
        """A command failed half-way: nothing that stands on this state may be written, and nothing more decided."""

    def __bool__(self) -> bool:
        """Something is to be done."""
        return bool(self.commands) or self.broken is not None

    @property
    def is_full(self) -> bool:
        return self.broken is not None or len(self.commands) >= COMMANDS_PER_WRITE_MAX

    def decide(self, decide: Decide, answer: asyncio.Future[Any]) -> None:
        transaction = self.transaction
        mark = transaction.mark()
        try:
            self.commands.append((decide, answer, decide(transaction)))
        except MetadataError as error:
            transaction.discard_from(mark)
            self.commands.append((decide, answer, error))
        except Exception as error:
            _log.error("metadata_command_failed", error=repr(error), exc_info=error)
            _settle(answer, error)
            self.broken = error

    def answer(self) -> None:
        """All of it is durable."""
        self.transaction.durable()
        for _, answer, result in self.commands:
            _settle(answer, result)

    def fail(self, why: str) -> None:
        """Fail every waiter; one that was refused anyway keeps its refusal."""
        for _, answer, result in self.commands:
            _settle(answer, result if isinstance(result, MetadataError) else MetadataUnavailable(why))


class CommandPipeline:
    """Runs commands against the state of one metadata service; one event loop, one writer.

    The state belongs to whoever passes the ``decide`` functions; ``on_reload`` callbacks rebuild it.
    """

    def __init__(self, store: MetadataStore, clock: Clock, metrics: MetadataMetrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._queue: deque[tuple[Decide, asyncio.Future[Any]]] = deque()
        """Not decided yet."""
        self._next = _Group()
        """Decided, and written next."""
        self._durable: _Group | None = None
        """Written, and answered as soon as the next write has begun."""
        self._writing = False
        self._wake = asyncio.Event()
        self._on_reload: list[Callable[[StoreSnapshot], None]] = []
        self._on_written: list[Callable[[Sequence[Change]], None]] = []
        self._between: deque[tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._driver: asyncio.Task[None] | None = None
        self._stopping = False
        self._problem: str | None = None

    def on_reload(self, callback: Callable[[StoreSnapshot], None]) -> None:
        """Call ``callback`` with everything durable, at the start and after each failed write, in the order added.

        It must rebuild its part of the state from the snapshot alone, and must not raise.
        """
        self._on_reload.append(callback)

    def on_written(self, callback: Callable[[Sequence[Change]], None]) -> None:
        """Call ``callback`` with the changes of each write that has become durable, in order. It must not raise."""
        self._on_written.append(callback)

    @property
    def started(self) -> bool:
        """The state was loaded once; loads from now on follow a failed write."""
        return self._driver is not None

    def check_running(self) -> None:
        """:raises MetadataUnavailable: commands are not taken: not yet, or not any more."""
        if self._stopping or self._driver is None or self._driver.done():
            raise MetadataUnavailable(self._problem or "the metadata service is not running")

    def problem(self) -> str | None:
        """Why commands cannot be decided now, None when all is well."""
        return self._problem

    async def start(self, supervisor: Supervisor, new_cluster_id: str) -> StoreSnapshot:
        """Open the store, load the state through the ``on_reload`` callbacks, and begin to take commands.

        When the store is deposed, the task ``metadata-pipeline`` fails with Deposed, which ``supervisor`` reports.

        :raises StoreUnavailable: the store cannot be opened; nothing was started.
        """
        snapshot = await self._store.open(new_cluster_id)
        self._load(snapshot)
        self._driver = supervisor.start("metadata-pipeline", self._drive())
        return snapshot

    async def stop(self) -> None:
        """Refuse new commands, finish those that are queued, and end. Idempotent. The store stays open."""
        self._stopping = True
        self._wake.set()
        if self._driver is not None:
            await asyncio.wait([self._driver])
        self._fail_queued("the metadata service has stopped")

    async def run(self, decide: Callable[[Transaction], T]) -> T:
        """Run ``decide`` on the loop, in the order of calls, and return its result once its changes are durable.

        ``decide`` changes the in-memory state and adds the matching changes to the transaction, synchronously. It is
        called again, on the state as it is durable, when a write before its own failed. A result without changes is
        returned when everything it may have seen is durable: with the write it shares, or when the write before it
        has ended. ``decide`` may raise a :class:`MetadataError` (such as Refused or Fenced) before it changed any
        state: its changes are discarded and only this caller sees the error.

        Cancelling a command that waits in the queue drops it; later the outcome is unknown.

        :raises MetadataUnavailable: the write failed (unknown outcome), too many commands are queued, or the
            service has stopped.
        """
        self.check_running()
        if len(self._queue) >= COMMANDS_QUEUED_MAX:
            raise MetadataUnavailable(f"{COMMANDS_QUEUED_MAX} metadata commands are queued already")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((decide, answer))
        if self._writing:
            self._decide_queued()
        else:
            self._wake.set()
        return await answer

    async def between_writes(self, work: Callable[[], Awaitable[T]]) -> T:
        """Await ``work`` at a moment when nothing is being written, and everything written is durable and was told.

        Commands wait meanwhile: it must be short. Its errors are the caller's.

        :raises MetadataUnavailable: the pipeline has stopped.
        """
        self.check_running()
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._between.append((work, answer))
        self._wake.set()
        return await answer

    async def _drive(self) -> None:
        try:
            while True:
                if self._between:
                    self._answer_durable()
                    await self._work_between(*self._between.popleft())
                    continue
                if not (self._queue or self._next):
                    self._answer_durable()
                    if self._stopping:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                await self._one_transaction()
        except Deposed as error:
            self._problem = f"another process leads now: {error}"
            raise
        finally:
            self._answer_durable()
            self._undecide()
            self._fail_queued(self._problem or "the metadata service has stopped")

    async def _work_between(self, work: Callable[[], Awaitable[Any]], answer: asyncio.Future[Any]) -> None:
        if answer.done():
            return
        try:
            _settle(answer, await work())
        except asyncio.CancelledError:
            _settle(answer, MetadataUnavailable("the metadata service has stopped"))
            raise
        except Exception as error:
            _settle(answer, error)

    def _decide_queued(self) -> None:
        """Decide as many of the queued commands as the next write takes."""
        queue, group = self._queue, self._next
        while queue and not group.is_full:
            decide, answer = queue.popleft()
            if not answer.done():
                group.decide(decide, answer)

    async def _one_transaction(self) -> None:
        """Decide what is queued and write what is decided; answer the last one and decide the next one meanwhile."""
        self._decide_queued()
        group, self._next = self._next, _Group()
        broken: BaseException | None = group.broken
        changes = group.transaction.changes
        if broken is None and changes:
            started = self._clock.monotonic()
            self._writing = True
            if self._durable is not None:
                # In the loop's next turn: the store is at work by then.
                asyncio.get_running_loop().call_soon(self._answer_durable)
            try:
                await self._store.write(changes)
            except asyncio.CancelledError:
                group.fail("the metadata service stopped during a write")
                raise
            except Exception as error:
                broken = error
            finally:
                self._writing = False
            self._metrics.write_done(self._clock.monotonic() - started, len(group.commands), broken is None)
        self._answer_durable()
        if broken is not None:
            group.fail(f"the metadata could not be written: {broken}")
            self._undecide()
            await self._recover(broken)
            return
        self._durable = group

    def _answer_durable(self) -> None:
        """Tell of what was written, and answer it, unless that was done."""
        group, self._durable = self._durable, None
        if group is None:
            return
        if group.transaction.changes:
            for callback in self._on_written:
                callback(group.transaction.changes)
        group.answer()

    def _undecide(self) -> None:
        """What the next write would stand on is gone: its commands are queued again, before all others."""
        group, self._next = self._next, _Group()
        self._queue.extendleft((decide, answer) for decide, answer, _ in reversed(group.commands))

    async def _recover(self, cause: BaseException) -> None:
        """Rebuild the state from the store; commands that queue meanwhile fail with each attempt that fails.

        :raises Deposed: there is nothing to recover.
        """
        if isinstance(cause, Deposed):
            raise cause
        pause, pause_max = RELOAD_PAUSE_SECONDS
        self._problem = f"the metadata store failed: {cause}"
        _log.error("metadata_write_failed", error=repr(cause))
        while True:
            try:
                snapshot = await self._store.reload()
                break
            except Deposed:
                raise
            except Exception as error:
                self._problem = f"the metadata store cannot be read: {error}"
                self._fail_queued(self._problem)
                if self._stopping:
                    return
                await self._clock.sleep(pause)
                pause = min(pause * 2, pause_max)
        self._load(snapshot)
        self._metrics.reloads.inc()
        self._problem = None
        _log.info("metadata_reloaded", topics=len(snapshot.topics), partitions=len(snapshot.partitions))

    def _load(self, snapshot: StoreSnapshot) -> None:
        for callback in self._on_reload:
            callback(snapshot)

    def _fail_queued(self, why: str) -> None:
        while self._between:
            _settle(self._between.popleft()[1], MetadataUnavailable(why))
        while self._queue:
            _settle(self._queue.popleft()[1], MetadataUnavailable(why))


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    """Answer one waiter, unless it was cancelled."""
    if answer.done():
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)
