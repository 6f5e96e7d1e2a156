"""Agents as a roster holds them, and whole ones beside a real metadata service, without sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from prometheus_client import CollectorRegistry

from agent.context import Agent, AgentIdentity
from agent.membership import Membership
from agent.metrics import AgentMetrics
from agent.roster import Roster
from agent.topics import TopicDirectory
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo, AgentRegistration
from metadata.model import Extent, Fenced, MetadataUnavailable, TopicsChanged
from metadata.service import MetadataService
from runtime.budget import Budget
from runtime.clock import SeededEntropy
from runtime.settings import RoutingSettings, Settings
from runtime.tasks import Supervisor
from storage.store import StorageError
from tests.support.virtual_time import VirtualClock


def agent_info(
    node_id: int,
    zone: str = "a",
    *,
    group: str = "default",
    condition: AgentCondition = AgentCondition.READY,
    roles: tuple[str, ...] = ("proxy", "jobs"),
) -> AgentInfo:
    """An agent at ``agent-N:9092`` with the epoch 100 + N."""
    host = f"agent-{node_id}"
    return AgentInfo(
        node_id, 100 + node_id, f"{zone}/{group}/{host}:9092", zone, group, host, 9092, "", "0", roles, condition
    )


def roster(zone: str = "a", group: str = "default", settings: RoutingSettings | None = None) -> Roster:
    """An empty one."""
    return Roster(zone, group, settings or RoutingSettings(), AgentMetrics(CollectorRegistry(), Budget(1 << 20)))


def lone_roster(identity: AgentIdentity) -> Roster:
    """What an agent knows that is alone and READY."""
    alone = roster(identity.zone, identity.group)
    alone.is_now(NodeEndpoint(identity.node_id, identity.host, identity.port), AgentCondition.READY)
    return alone


class CutOff:
    """The metadata service as an agent sees it over a network that a test can cut."""

    def __init__(self, service: MetadataService) -> None:
        self._service = service
        self.is_cut = False
        self.answers_lost = 0
        """So many calls take effect and are not answered."""
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if self.is_cut:
                raise MetadataUnavailable("cut off")
            answer = await getattr(self._service, name)(*arguments)
            if self.answers_lost and name != "subscribe":
                self.answers_lost -= 1
                raise MetadataUnavailable("the answer was lost")
            return answer

        return call


class Epochs:
    """Stands for the writer: which epochs it ran under, and what it says of its neighbours."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.fences = 0
        self.running = False
        self.uploads_fail: str | None = None
        self.commits_fail: str | None = None

    def start(self, agent_epoch: int) -> None:
        assert not self.running
        self.running = True
        self.started.append(agent_epoch)

    async def fence(self) -> None:
        self.fences += 1
        self.running = False

    def upload_problem(self) -> str | None:
        return self.uploads_fail

    def commit_problem(self) -> str | None:
        return self.commits_fail


class ProbedStore:
    """An object store that is only ever checked."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        if self.problem is not None:
            raise StorageError(self.problem)


class MemberAgent:
    """One agent's membership, between a real metadata service and stand-ins for the rest. Virtual time."""

    def __init__(self, service: MetadataService, number: int, zone: str = "a", group: str = "default") -> None:
        self.clock = VirtualClock()
        self.metadata = CutOff(service)
        self.writer = Epochs()
        self.store = ProbedStore()
        self.replaced: list[Fenced] = []
        self.failures: list[BaseException] = []
        self.supervisor = Supervisor(lambda _name, error: self.failures.append(error))
        budget = Budget(1 << 20)
        self.metrics = AgentMetrics(CollectorRegistry(), budget)
        self.registration = AgentRegistration(f"{zone}/{group}/{number}", zone, group, f"agent-{number}", 9092, "0")
        self.roster = Roster(zone, group, RoutingSettings(), self.metrics)
        self.agent = Agent(
            Settings(zone=zone, group=group),
            self.clock,
            SeededEntropy(number),
            AgentIdentity("", 0, 0, "", 0, zone, group),
            cast(Any, self.metadata),
            TopicDirectory(),
            cast(Any, self.writer),
            cast(Any, None),
            budget,
            self.metrics,
            self.roster,
        )
        self.membership = Membership(
            self.agent, self.registration, cast(Any, self.store), self.supervisor, self.replaced.append
        )

    async def join(self) -> None:
        """As the process does at its start."""
        await self.membership.register()
        subscription = await self.metadata.subscribe(self)
        self.roster.heard(subscription.agents)
        self.writer.start(self.agent.identity.agent_epoch)
        self.membership.start()

    async def stop(self) -> None:
        await self.supervisor.stop()
        assert not self.failures, self.failures

    # --- the listener's part

    def topics_changed(self, change: TopicsChanged) -> None: ...

    def extents_committed(self, extents: Sequence[Extent]) -> None: ...

    def resynchronize(self) -> None: ...

    def log_starts_moved(self, moved: object) -> None: ...

    def agents_changed(self, agents: Sequence[AgentInfo]) -> None:
        if not self.metadata.is_cut:
            self.roster.heard(agents)
