"""One metadata process's part in leading: wait, lead, serve, renew, and make room when another has taken over.

Each term has a store, a service and tasks of its own, built anew; nothing of an earlier one is kept. While the lease is
in doubt (no renewal for three quarters of it, or the store's session was lost) nothing is answered, so a process that
was frozen or cut off says nothing stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from metadata.rpc.server import RpcServer
from metadata.service import MetadataService
from metadata.store.port import Deposed, MetadataStore, StoreUnavailable
from runtime.clock import Clock, Entropy
from runtime.tasks import Supervisor

RENEW_SECONDS = 1.0
RETRY_SECONDS = (0.2, 2.0)
"""First and longest pause before trying to lead again after a failure."""
STANDING_BY_SECONDS = 3.0
"""An attempt to lead that has not failed for so long is a standby's wait."""
FINISH_SECONDS = 5.0
"""For what was decided to become durable at the end of a term."""

_log = structlog.get_logger("tidelog.metadata")


class _Lease:
    """Until when this process may be sure that it leads, by its own monotonic clock."""

    def __init__(self, clock: Clock, renewed_at: float, lease_ms: int) -> None:
        self._clock = clock
        self._seconds = lease_ms / 1000 * 3 / 4
        self.renewed_at = renewed_at

    def valid(self) -> bool:
        return self._clock.monotonic() < self.renewed_at + self._seconds


class Leadership:
    """Leads whenever it can, from :meth:`start` to :meth:`stop`, and lets ``server`` answer then.

    ``open_store`` and ``build_service`` are called for each term, and open and start nothing; ``on_end`` after it.
    """

    def __init__(
        self,
        open_store: Callable[[], MetadataStore],
        build_service: Callable[[MetadataStore, Supervisor], MetadataService],
        server: RpcServer,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        lease_ms: int,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_store = open_store
        self._build_service = build_service
        self._server = server
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._lease_ms = lease_ms
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        """Beside the cancellation, which a TaskGroup drops when one of its tasks failed at the same moment."""
        self._failure: str | None = None
        self._tried_at = 0.0

    def start(self) -> None:
        """Begin to wait for leadership; again after :meth:`stop`."""
        self._stopping = False
        self._task = self._supervisor.start("metadata-leadership", self._run())

    async def stop(self) -> None:
        """Stop leading at once: what was decided is finished, and the store closed for the next. Idempotent."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def problem(self) -> str | None:
        """Why this process can neither lead nor stand by; None when it can."""
        if self._failure is not None and self._clock.monotonic() - self._tried_at > STANDING_BY_SECONDS:
            self._failure = None
        return self._failure

    async def _run(self) -> None:
        pause, pause_max = RETRY_SECONDS
        while True:
            self._tried_at = self._clock.monotonic()
            store = self._open_store()
            try:
                await self._lead(store)
            except* Deposed as errors:  # standing by again is no failure
                _log.warning("metadata_term_ended", reason=_reasons(errors))
            except* StoreUnavailable as errors:
                self._failure = _reasons(errors)
                _log.warning("metadata_term_ended", reason=self._failure)
            finally:
                await _in_time("metadata_store_not_closed", store.close())
            if self._stopping:
                return
            if self._clock.monotonic() - self._tried_at > STANDING_BY_SECONDS:
                pause = RETRY_SECONDS[0]
            await self._clock.sleep(self._entropy.uniform(pause / 2, pause))
            pause = min(pause * 2, pause_max)

    async def _lead(self, store: MetadataStore) -> None:
        """One term, from waiting for it to its end.

        :raises ExceptionGroup: of StoreUnavailable: the store failed, or another process leads now.
        """
        generation = await store.lead()
        began = self._clock.monotonic()
        await store.renew()  # whatever time has passed since the lease was granted, this one is later than ``began``
        lease = _Lease(self._clock, began, self._lease_ms)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew(store, lease), name="metadata-renew")
            group.create_task(self._serve(store, generation, lease), name="metadata-term")

    async def _renew(self, store: MetadataStore, lease: _Lease) -> None:
        """:raises StoreUnavailable: the lease ended, or another process leads (Deposed)."""
        while True:
            await self._clock.sleep(RENEW_SECONDS)
            began, was_sure = self._clock.monotonic(), store.sure()
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    await store.renew()
            except Deposed:
                raise
            except (StoreUnavailable, TimeoutError) as error:
                _log.warning("metadata_lease_not_renewed", error=repr(error))
                if not lease.valid():
                    raise StoreUnavailable(f"the lease could not be renewed: {error!r}") from error
            else:
                in_doubt = not was_sure or not lease.valid()
                lease.renewed_at = began
                if in_doubt and (term := self._server.term) is not None:
                    term.service.excuse_silence()

    async def _serve(self, store: MetadataStore, generation: int, lease: _Lease) -> None:
        """:raises StoreUnavailable: the store cannot be read, or a task of the service failed."""
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def task_failed(name: str, error: BaseException) -> None:
            if not failed.done():
                known = isinstance(error, StoreUnavailable)  # Deposed, above all
                failed.set_exception(error if known else StoreUnavailable(f"{name} failed: {error!r}"))

        supervisor = Supervisor(task_failed)
        service = self._build_service(store, supervisor)
        try:
            await service.start()
            await self._server.begin_term(service, generation, lambda: lease.valid() and store.sure(), supervisor)
            self._failure = None
            _log.info("metadata_leading", generation=generation)
            await failed
        finally:
            self._server.end_term()
            await _in_time("metadata_not_finished", service.stop())
            await supervisor.stop()
            failed.cancel()
            self._on_end()
            _log.info("metadata_not_leading", generation=generation)


async def _in_time(event: str, work: Coroutine[Any, Any, None]) -> None:
    """Await ``work``, but not for ever."""
    try:
        async with asyncio.timeout(FINISH_SECONDS):
            await work
    except (TimeoutError, StoreUnavailable) as error:
        _log.warning(event, error=repr(error))


def _reasons(errors: BaseExceptionGroup[Any]) -> str:
    """All of them, in a line."""
    reasons = [_reasons(each) if isinstance(each, BaseExceptionGroup) else str(each) for each in errors.exceptions]
    return "; ".join(reasons)
