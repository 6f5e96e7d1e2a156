"""Background jobs of an agent with the role ``jobs``: leased from the metadata service, done some at a time, renewed
while they run.

A job whose lease is lost is cancelled: another agent may be doing it by then. One that fails is given back, and
comes up again after a pause, here or elsewhere. Nothing of a job is kept here: an agent that dies in the middle of one
leaves a lease that ends by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from agent.jobs.metrics import JobMetrics
from metadata.client import MetadataClient
from metadata.job_model import JobLease
from metadata.model import Fenced, MetadataError
from runtime.clock import Clock, Entropy
from runtime.settings import JobsSettings
from runtime.tasks import Supervisor
from storage.store import StorageError

RENEWALS_PER_LEASE = 4
AWAY_SECONDS_MAX = 5.0
"""Longest pause between two questions to a service that does not answer."""

_log = structlog.get_logger("tidelog.agent.jobs")


class JobHandler(Protocol):
    """Does the jobs of one kind. ``run`` may be cancelled at any moment, and be repeated by another agent."""

    kind: str

    async def run(self, payload: bytes) -> bytes:
        """What the metadata service is told. Anything raised gives the job back; only what is expected to fail now
        and then may be raised (StorageError, MetadataError, ValueError for a payload that is none)."""


class JobRunner:
    """Asks for work while there is room, until :meth:`stop`. ``agent_epoch()`` is the current one."""

    def __init__(
        self,
        metadata: MetadataClient,
        handlers: Sequence[JobHandler],
        settings: JobsSettings,
        agent_epoch: Callable[[], int],
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: JobMetrics,
    ) -> None:
        self._metadata = metadata
        self._handlers = {handler.kind: handler for handler in handlers}
        self._settings = settings
        self._agent_epoch = agent_epoch
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._metrics = metrics
        self._running: dict[int, _Running] = {}
        self._free = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        self._asking = self._supervisor.start("jobs", self._ask_forever())

    async def stop(self) -> None:
        """Take no more, and give up what is running: its leases end with this agent's epoch. Idempotent."""
        self._stopped = True
        tasks = [running.task for running in self._running.values()]
        if self._asking is not None:
            tasks.append(self._asking)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _ask_forever(self) -> None:
        pause_max = self._settings.poll_ms / 1000
        pause = pause_max
        while True:
            room = self._settings.at_once - len(self._running)
            if room <= 0:
                self._free.clear()
                await self._free.wait()
                continue
            epoch = self._agent_epoch()
            try:
                leases = await self._metadata.lease_jobs(epoch, list(self._handlers), room)
            except MetadataError as error:
                if not isinstance(error, Fenced):  # the membership registers anew
                    _log.info("jobs_not_leased", error=str(error))
                pause = min(pause * 2, AWAY_SECONDS_MAX)
                leases = []
            else:
                pause = pause_max
            for lease in leases:
                self._begin(epoch, lease)
            if len(leases) < room:
                await self._clock.sleep(self._entropy.uniform(pause / 2, pause))

    def _begin(self, epoch: int, lease: JobLease) -> None:
        name = f"job-{lease.kind}-{lease.lease_id}"
        running = _Running(self._supervisor.start(name, self._do(epoch, lease)))
        self._running[lease.lease_id] = running
        running.renewing = self._supervisor.start(f"{name}-lease", self._keep(epoch, lease, running.task))
        running.task.add_done_callback(lambda _: self._ended(lease.lease_id, running))

    def _ended(self, lease_id: int, running: _Running) -> None:
        if running.renewing is not None:
            running.renewing.cancel()
        if self._running.get(lease_id) is running:
            del self._running[lease_id]
        self._free.set()

    async def _do(self, epoch: int, lease: JobLease) -> None:
        began = self._clock.monotonic()
        result: bytes | None = None
        try:
            result = await self._handlers[lease.kind].run(lease.payload)
        except (StorageError, MetadataError, ValueError) as error:
            _log.warning("job_failed", kind=lease.kind, target=lease.target, error=str(error))
        except asyncio.CancelledError:
            self._metrics.finished.labels(lease.kind, "given_up").inc()
            raise
        self._metrics.seconds.labels(lease.kind).observe(self._clock.monotonic() - began)
        try:
            held = await self._metadata.finish_job(epoch, lease.lease_id, result)
        except MetadataError as error:
            # Done, and nobody knows: somebody does it again, which is harmless.
            _log.info("job_result_not_told", kind=lease.kind, target=lease.target, error=str(error))
            held = False
        outcome = "failed" if result is None else "done" if held else "untold"
        self._metrics.finished.labels(lease.kind, outcome).inc()

    async def _keep(self, epoch: int, lease: JobLease, job: asyncio.Task[None]) -> None:
        """Renew the lease until the job ends; cancel the job when the lease is lost."""
        lease_seconds = lease.lease_ms / 1000
        until = self._clock.monotonic() + lease_seconds
        while True:
            await self._clock.sleep(lease_seconds / RENEWALS_PER_LEASE)
            asked = self._clock.monotonic()
            try:
                held = bool(await self._metadata.renew_jobs(epoch, [lease.lease_id]))
            except Fenced:
                held = False
            except MetadataError:
                held = asked < until
            else:
                until = asked + lease_seconds
            if not held:
                _log.warning("job_lease_lost", kind=lease.kind, target=lease.target)
                job.cancel()
                return


class _Running:
    """A job under way, and the task that keeps its lease."""

    __slots__ = ("renewing", "task")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.renewing: asyncio.Task[None] | None = None
