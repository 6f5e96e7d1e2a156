"""A whole cluster of real processes on this machine: started, watched, restarted, and stopped in order.

Agents come and go with :meth:`LocalCluster.start_agent` and :meth:`LocalCluster.drain_agent`. Nothing outlives this
process: children are killed with it, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from runtime.clock import Clock
from runtime.tasks import Supervisor
from tidelog.child import Child, free_ports
from tidelog.cluster.certificates import local_certificates
from tidelog.cluster.member import Member, Phase
from tidelog.cluster.plan import (
    TLS_GROUP,
    AgentPlan,
    ClusterSpec,
    MetadataPlan,
    Ports,
    ProcessPlan,
    TlsFiles,
    agent_command,
    environment,
    metadata_command,
    plan_agent,
    plan_metadata,
)
from tidelog.cluster.state_file import AgentState, ClusterState, ProcessState, remove_state, write_state

READY_SECONDS = 60.0
"""For all of them together, on a busy machine."""
LOOK_SECONDS = 0.1
PROBE_SECONDS = 2.0
DRAIN_SECONDS = 40.0
"""For agents to end by themselves: their own ``drain_ms`` is shorter."""
STOP_SECONDS = 15.0
DOUBT_CHARACTERS = 500
LOGS_LOOKED_AT_SECONDS = 10.0


class ClusterFailed(Exception):
    """The cluster could not be started; the message has the last words of whoever failed.

    ``is_setting``: because of a wrong setting, so that starting again does not help.
    """

    def __init__(self, message: str, *, is_setting: bool = False) -> None:
        super().__init__(message)
        self.is_setting = is_setting


class LocalCluster:
    """Metadata processes and agents as children of this one; one event loop, in the main thread.

    ``report(line)`` is called with whatever an operator should hear at once.
    """

    def __init__(self, spec: ClusterSpec, clock: Clock, supervisor: Supervisor, report: Callable[[str], None]) -> None:
        """:raises tidelog.cluster.plan.PlanError: ``spec`` cannot be had."""
        spec.check()
        self.spec = spec
        self._clock = clock
        self._supervisor = supervisor
        self._report = report
        self._ports = Ports(spec.kafka_port, lambda: free_ports(1)[0])
        self._tls: TlsFiles | None = None
        self._metadata: list[Member] = []
        self._agents: dict[str, Member] = {}
        self._started_ms = clock.now_ms()
        self._session: aiohttp.ClientSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._logs_looked_at = clock.monotonic()

    @property
    def members(self) -> Sequence[Member]:
        """Metadata processes, then agents in the order they were started."""
        return [*self._metadata, *self._agents.values()]

    @property
    def agents(self) -> Sequence[AgentPlan]:
        return [plan for member in self._agents.values() if isinstance(plan := member.plan, AgentPlan)]

    @property
    def metadata_urls(self) -> list[str]:
        return [f"http://{member.plan.http}" for member in self._metadata]

    @property
    def ca(self) -> TlsFiles | None:
        """Set when there is a TLS group."""
        return self._tls

    async def start(self) -> None:
        """Metadata first, then all agents at once; everything is ready when this returns.

        :raises ClusterFailed: one of them ended or did not become ready. What runs then is for :meth:`stop`.
        :raises tidelog.cluster.plan.PlanError: certificates cannot be made.
        """
        self.spec.logs.mkdir(parents=True, exist_ok=True)
        if TLS_GROUP in self.spec.groups:
            self._tls = await asyncio.to_thread(local_certificates, self.spec.data / "tls")
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PROBE_SECONDS))
        for metadata in plan_metadata(self._ports):
            self._metadata.append(self._launched(metadata, metadata_command(metadata, self.spec)))
        self._watch = self._supervisor.start("cluster-watch", self._run())
        await self._all_ready(self._metadata)
        for zone in self.spec.zones:
            for group in self.spec.groups:
                for _ in range(self.spec.agents_per_zone):
                    self._add_agent(zone, group)
        await self._all_ready(self._agents.values())

    async def start_agent(self, zone: str, group: str) -> AgentPlan:
        """One more agent; it serves clients when this returns. Cancelled: it stays, and becomes ready later.

        :raises ClusterFailed: it ended, or did not become ready; it is gone again then.
        """
        member = self._add_agent(zone, group)
        try:
            await self._all_ready([member])
        except ClusterFailed:
            await self._end([member], DRAIN_SECONDS)
            self._forget(member)
            raise
        plan = member.plan
        assert isinstance(plan, AgentPlan)
        return plan

    async def drain_agent(self, name: str) -> None:
        """SIGTERM, and wait until it has moved its clients and ended; then it is no part of the cluster any more.

        :raises KeyError: there is no such agent.
        :raises ClusterFailed: it did not end well; it is gone all the same.
        """
        member = self._agents[name]
        problems = await self._end([member], DRAIN_SECONDS)
        self._forget(member)
        if problems:
            raise ClusterFailed("\n".join(problems))

    async def stop(self) -> list[str]:
        """Drain the agents, then stop the metadata processes; what did not end well. Idempotent."""
        problems = await self._end(self._agents.values(), DRAIN_SECONDS)
        problems += await self._end(self._metadata, STOP_SECONDS)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait((self._watch,))
            self._watch = None
        if self._session is not None:
            await self._session.close()
            self._session = None
        remove_state(self.spec.data)
        return problems

    def kill(self) -> None:
        """End everything at once."""
        for member in self.members:
            member.phase = Phase.STOPPING
            member.child.kill()

    def state(self) -> ClusterState:
        """As it is written to the state file."""
        spec = self.spec
        agents = []
        for member in self._agents.values():
            plan = member.plan
            assert isinstance(plan, AgentPlan)
            agents.append(AgentState(*_facts(member), zone=plan.zone, group=plan.group, kafka=plan.kafka))
        return ClusterState(
            version=version("tidelog"),
            pid=os.getpid(),
            started_ms=self._started_ms,
            zones=list(spec.zones),
            groups=list(spec.groups),
            storage=spec.storage_url(),
            metadata_store=without_password(spec.metadata_store_url()),
            ca=None if self._tls is None else str(self._tls.ca),
            metadata=[ProcessState(*_facts(member)) for member in self._metadata],
            agents=agents,
        )

    def _add_agent(self, zone: str, group: str) -> Member:
        plan = plan_agent(zone, group, self.agents, self._ports)
        metadata = [member.plan for member in self._metadata if isinstance(member.plan, MetadataPlan)]
        member = self._launched(plan, agent_command(plan, self.spec, metadata))
        self._agents[plan.name] = member
        self._write()
        return member

    def _launched(self, plan: ProcessPlan, command: list[str]) -> Member:
        variables = environment(plan, self.spec, os.environ, self._tls)
        member = Member(plan, Child(plan.name, command, self.spec.logs / f"{plan.name}.log", variables))
        try:
            member.start(self._clock.monotonic())
        except OSError as error:
            raise ClusterFailed(f"{plan.name} cannot be started: {error}") from error
        return member

    def _forget(self, member: Member) -> None:
        del self._agents[member.name]
        self._write()

    async def _all_ready(self, members: Iterable[Member]) -> None:
        waited_for = list(members)
        deadline = self._clock.monotonic() + READY_SECONDS
        while waiting := [member for member in waited_for if not member.was_ready]:
            for member in waiting:
                if member.phase is Phase.WAITING:
                    raise ClusterFailed(
                        member.child.problem() or f"{member.name} ended", is_setting=member.child.exit_code == 2
                    )
            if self._clock.monotonic() > deadline:
                first = waiting[0]
                raise ClusterFailed(
                    f"{first.name} is not ready after {READY_SECONDS:g} s: {first.doubt}\n{first.child.log_tail()}"
                )
            await self._clock.sleep(LOOK_SECONDS)

    async def _end(self, members: Iterable[Member], within_seconds: float) -> list[str]:
        """SIGTERM to all, wait, kill the rest; what did not end well."""
        ending = list(members)
        running = [member for member in ending if member.child.pid is not None]
        starting = [member for member in running if member.phase is Phase.STARTING]  # too early to drain, maybe
        for member in ending:
            member.phase = Phase.STOPPING
            member.child.terminate()
        deadline = self._clock.monotonic() + within_seconds
        while any(member.child.pid is not None for member in running) and self._clock.monotonic() < deadline:
            await self._clock.sleep(LOOK_SECONDS / 2)
        problems = []
        for member in running:
            if member.child.pid is not None:
                member.child.kill()
                problems.append(
                    f"{member.name} did not end within {within_seconds:g} s and was killed:\n{member.child.log_tail()}"
                )
            elif member.child.exit_code != 0 and not (member in starting and member.child.exit_code == -signal.SIGTERM):
                problems.append(member.child.problem() or "")
        return problems

    async def _run(self) -> None:
        """Look at everybody, several times a second."""
        while True:
            before = [_facts(member) for member in self.members]
            await self._look()
            if before != [_facts(member) for member in self.members]:
                self._write()
            await self._clock.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        now = self._clock.monotonic()
        for member in self.members:
            self._look_at(member, now)
        starting = [member for member in self.members if member.phase is Phase.STARTING]
        answers = await asyncio.gather(*(self._is_ready(member) for member in starting))
        for member, ready in zip(starting, answers, strict=True):
            if ready and member.phase is Phase.STARTING and member.child.pid is not None:
                member.phase = Phase.READY
                if member.was_ready:
                    self._report(f"{member.name} is ready again")
                member.was_ready = True
        if now - self._logs_looked_at >= LOGS_LOOKED_AT_SECONDS:
            self._logs_looked_at = now
            for member in self.members:
                await asyncio.to_thread(member.bound_log)

    def _look_at(self, member: Member, now: float) -> None:
        if member.phase in (Phase.STARTING, Phase.READY) and member.child.exit_code is not None:
            wait = member.died(now)
            if member.was_ready:  # else the start fails, and says so
                self._report(f"{member.child.problem()}\n{member.name} is started again in {wait:g} s")
        elif member.phase is Phase.WAITING and member.was_ready and now >= member.restart_at:
            try:
                member.restart(now)
            except OSError as error:
                self._report(f"{member.name} cannot be started: {error}; again in {member.died(now):g} s")

    async def _is_ready(self, member: Member) -> bool:
        assert self._session is not None, "look after start"
        try:
            async with self._session.get(f"http://{member.plan.http}/readyz") as response:
                if response.status == 200:
                    return True
                member.doubt = (await response.text())[:DOUBT_CHARACTERS]
        except (aiohttp.ClientError, OSError) as error:
            member.doubt = str(error) or repr(error)
        return False

    def _write(self) -> None:
        write_state(self.spec.data, self.state())


def without_password(url: str) -> str:
    """``url`` as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    _, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{parts.username}:...@{host}"))


def _facts(member: Member) -> tuple[str, int | None, str, str, int]:
    """What is written of every process."""
    return member.name, member.child.pid, member.plan.http, str(member.child.log_path), member.restarts
