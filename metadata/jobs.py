"""The board of background jobs: what is to be done, and who has the lease on it. Pure; times are milliseconds that
never go back.

=================================  ==============================================================================
a job that                         is
=================================  ==============================================================================
was offered                        OPEN, until an agent takes it; the oldest of a kind first
was leased                         its agent's, until the lease ends
is renewed in time                 its agent's for another lease
is not finished in time            OPEN again, for anybody; the late agent's answer is refused
belongs to a fenced agent          OPEN again, at once
was given back, or failed          OPEN again after a pause that grows with the attempts
was finished                       kept from being offered again until its result is durable, then forgotten
=================================  ==============================================================================

It is soft state of one leader: the sources of jobs find anew what is still to be done.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from metadata.job_model import JobLease

JOBS_PER_KIND_MAX = 256
"""Jobs of one kind on the board; sources offer more when some of them are done."""
PAUSE_MS = (1_000, 60_000)
"""After the first failure of a job, and at most."""


@dataclass(frozen=True, slots=True)
class Job:
    """``target`` tells jobs of a kind apart; ``payload`` is what the agent is told."""

    kind: str
    target: str
    payload: bytes


@dataclass(slots=True)
class _Entry:
    job: Job
    lease_id: int = 0
    """0: nobody has it."""
    agent_epoch: int = -1
    until: int = 0
    """The lease ends then; of an open job: nobody gets it before."""
    attempts: int = 0
    finishing: bool = False


class JobBoard:
    """Jobs by kind and target."""

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._leases: dict[int, _Entry] = {}
        self._next_lease = 1

    def jobs(self, kind: str) -> list[Job]:
        """Those of a kind that are on the board, in whatever state."""
        return [entry.job for entry in self._entries.values() if entry.job.kind == kind]

    def holders(self, kind: str) -> set[int]:
        """Agent epochs that have a lease on a job of a kind."""
        return {entry.agent_epoch for entry in self._leases.values() if entry.job.kind == kind}

    def counts(self, kind: str) -> tuple[int, int]:
        """(open, leased) jobs of a kind."""
        entries = [entry for entry in self._entries.values() if entry.job.kind == kind]
        leased = sum(entry.lease_id != 0 for entry in entries)
        return len(entries) - leased, leased

    def offer(self, jobs: Iterable[Job]) -> None:
        """To be done; those that are here already, or that are too many, are left out."""
        room: dict[str, int] = {}
        for job in jobs:
            left = room.get(job.kind)
            if left is None:
                left = JOBS_PER_KIND_MAX - len(self.jobs(job.kind))
            if left > 0 and (job.kind, job.target) not in self._entries:
                self._entries[job.kind, job.target] = _Entry(job)
                left -= 1
            room[job.kind] = left

    def lease(self, agent_epoch: int, kinds: Container[str], count_max: int, now: int) -> list[JobLease]:
        """Up to ``count_max`` open jobs of ``kinds``, which are the agent's from now on."""
        self._expire(now)
        leases: list[JobLease] = []
        for entry in self._entries.values():
            if len(leases) >= count_max:
                break
            job = entry.job
            if job.kind not in kinds or entry.lease_id or entry.finishing or entry.until > now:
                continue
            entry.lease_id = self._next_lease
            entry.agent_epoch = agent_epoch
            entry.until = now + self._lease_ms
            self._next_lease += 1
            self._leases[entry.lease_id] = entry
            leases.append(JobLease(entry.lease_id, job.kind, job.target, job.payload, self._lease_ms))
        return leases

    def renew(self, agent_epoch: int, lease_ids: Iterable[int], now: int) -> list[int]:
        """Those of ``lease_ids`` that are still the agent's, for another lease."""
        self._expire(now)
        held = []
        for lease_id in lease_ids:
            entry = self._leases.get(lease_id)
            if entry is not None and entry.agent_epoch == agent_epoch:
                entry.until = now + self._lease_ms
                held.append(lease_id)
        return held

    def finish(self, agent_epoch: int, lease_id: int, now: int) -> Job | None:
        """The job is done; until :meth:`settle` it is not offered anew. None: the lease is lost."""
        self._expire(now)
        entry = self._leases.get(lease_id)
        if entry is None or entry.agent_epoch != agent_epoch:
            return None
        self._release(entry)
        entry.finishing = True
        return entry.job

    def settle(self, job: Job, succeeded: bool, now: int) -> None:
        """What a finished job brought is durable: it goes. Or not: then it is open again."""
        entry = self._entries[job.kind, job.target]
        entry.finishing = False
        if succeeded:
            del self._entries[job.kind, job.target]
        else:
            self._pause(entry, now)

    def give_back(self, agent_epoch: int, lease_id: int, now: int) -> Job | None:
        """It failed, or its agent goes: open again after a pause. None: the lease is lost."""
        job = self.finish(agent_epoch, lease_id, now)
        if job is not None:
            self.settle(job, succeeded=False, now=now)
        return job

    def keep(self, living: Container[int]) -> None:
        """Agents that are not among the ``living`` epochs have lost their leases."""
        for entry in list(self._leases.values()):
            if entry.agent_epoch not in living:
                self._release(entry)

    def _expire(self, now: int) -> None:
        for entry in list(self._leases.values()):
            if entry.until <= now:
                self._release(entry)

    def _release(self, entry: _Entry) -> None:
        del self._leases[entry.lease_id]
        entry.lease_id, entry.agent_epoch, entry.until = 0, -1, 0

    def _pause(self, entry: _Entry, now: int) -> None:
        entry.until = now + min(PAUSE_MS[0] << min(entry.attempts, 20), PAUSE_MS[1])
        entry.attempts += 1
