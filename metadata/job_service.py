"""The part of the metadata service that has work for agents. Drives :mod:`metadata.jobs`.

Each kind of job has a source, which finds what is to be done from what is durable, and acts on what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import structlog

from metadata.agent_model import AgentInfo
from metadata.job_model import JobLease
from metadata.jobs import Job, JobBoard
from metadata.metrics import MetadataMetrics
from metadata.model import Fenced, MetadataError, MetadataUnavailable
from metadata.store.port import StoreUnavailable
from runtime.clock import Clock
from runtime.tasks import Supervisor

_log = structlog.get_logger("tidelog.metadata.jobs")

LEASES_PER_CALL_MAX = 64
LOOK_SECONDS = 1.0
"""Pause between two looks for something to do. A source that costs more than a moment looks less often."""
POSTPONED_SECONDS = 5.0
"""After a look that failed."""


class JobSource(Protocol):
    """Where jobs of one kind come from. Doing one twice must be harmless: a new leader knows of no lease."""

    kind: str

    async def find(self, open_jobs: Sequence[Job]) -> Sequence[Job]:
        """Jobs to be done now. ``open_jobs`` are those of this kind that were found before and are not finished.

        :raises metadata.store.port.StoreUnavailable: later.
        :raises metadata.model.MetadataUnavailable: later.
        """

    async def finished(self, job: Job, result: bytes) -> None:
        """An agent did the job: make what follows from it durable. ``result`` is what its handler returned.

        :raises ValueError: ``result`` is not an answer to the job: somebody else does it again.
        :raises metadata.model.MetadataUnavailable: the outcome is unknown: it is done again.
        """


class JobService:
    """Leases for agents, and a task that looks for what is to be done. One event loop."""

    def __init__(self, clock: Clock, lease_ms: int, metrics: MetadataMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._board = JobBoard(lease_ms)
        self._sources: dict[str, JobSource] = {}
        self._living: set[int] = set()

    def add(self, source: JobSource) -> None:
        """Before the start."""
        self._sources[source.kind] = source

    def start(self, supervisor: Supervisor) -> None:
        supervisor.start("metadata-jobs", self._look_forever())

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        """Those that are gone have lost their leases."""
        self._living = {agent.agent_epoch for agent in agents}
        self._board.keep(self._living)

    def holders(self, kind: str) -> set[int]:
        """Agent epochs that do a job of a kind."""
        return self._board.holders(kind)

    # --- calls ------------------------------------------------------------------------------------------

    def lease(self, agent_epoch: int, kinds: Sequence[str], count_max: int) -> list[JobLease]:
        """:raises metadata.model.Fenced:"""
        self._check(agent_epoch)
        leases = self._board.lease(agent_epoch, kinds, min(count_max, LEASES_PER_CALL_MAX), self._now())
        self._count()
        return leases

    def renew(self, agent_epoch: int, lease_ids: Sequence[int]) -> list[int]:
        """:raises metadata.model.Fenced:"""
        self._check(agent_epoch)
        return self._board.renew(agent_epoch, lease_ids, self._now())

    async def finish(self, agent_epoch: int, lease_id: int, result: bytes | None) -> bool:
        """:raises metadata.model.Fenced: :raises metadata.model.MetadataUnavailable:"""
        self._check(agent_epoch)
        if result is None:
            job = self._board.give_back(agent_epoch, lease_id, self._now())
            if job is not None:
                self._metrics.jobs_failed.labels(job.kind).inc()
            self._count()
            return job is not None
        job = self._board.finish(agent_epoch, lease_id, self._now())
        if job is None:
            return False
        succeeded = False
        try:
            await self._sources[job.kind].finished(job, result)
            succeeded = True
        except ValueError as error:
            _log.error("job_result_refused", kind=job.kind, target=job.target, error=str(error))
        finally:
            self._board.settle(job, succeeded, self._now())
            outcome = self._metrics.jobs_finished if succeeded else self._metrics.jobs_failed
            outcome.labels(job.kind).inc()
            self._count()
        return succeeded

    def _check(self, agent_epoch: int) -> None:
        if agent_epoch not in self._living:
            raise Fenced(f"agent epoch {agent_epoch} was fenced, replaced or never existed: register again")

    # --- looking ----------------------------------------------------------------------------------------

    async def _look_forever(self) -> None:
        while True:
            pause = LOOK_SECONDS
            for source in self._sources.values():
                try:
                    self._board.offer(await source.find(self._board.jobs(source.kind)))
                except (StoreUnavailable, MetadataUnavailable) as error:
                    _log.warning("jobs_not_found", kind=source.kind, error=str(error))
                    pause = POSTPONED_SECONDS
                except MetadataError as error:
                    _log.error("jobs_not_found", kind=source.kind, error=repr(error))
                    pause = POSTPONED_SECONDS
            self._count()
            await self._clock.sleep(pause)

    def _count(self) -> None:
        for kind in self._sources:
            waiting, leased = self._board.counts(kind)
            self._metrics.jobs.labels(kind, "open").set(waiting)
            self._metrics.jobs.labels(kind, "leased").set(leased)

    def _now(self) -> int:
        return int(self._clock.monotonic() * 1000)
