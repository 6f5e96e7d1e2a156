"""What a local cluster is made of: every process with its addresses and its command line. Pure.

Ports follow from the base: agents' Kafka listeners from it upwards, the metadata processes from 400 above it, agents'
HTTP from 500 above it. With base 0 every port is one that nobody has now.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from runtime.configuration import environment_name

METADATA_PROCESSES = 2
METADATA_PORTS = 400
HTTP_PORTS = 500
AGENTS_MAX = 400
HOST = "127.0.0.1"
TLS_GROUP = "tls"
MODEST: Mapping[str, str] = {"memory.budget_bytes": str(128 * 1024 * 1024)}
"""Settings for agents that share one machine with all others."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}")


class PlanError(Exception):
    """The cluster cannot be as it was asked for; the message names the option."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: ``ca`` for clients, the others for agents."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class MetadataPlan:
    """One metadata process. ``listen`` is host:port of its calls, health and metrics."""

    name: str
    listen: str

    @property
    def http(self) -> str:
        return self.listen


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent. Addresses are host:port; ``number`` counts within its zone and group, from 1."""

    name: str
    zone: str
    group: str
    number: int
    kafka: str
    http: str


ProcessPlan = MetadataPlan | AgentPlan


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """What was asked for. ``settings`` are Tidelog's, by dotted name, for every process."""

    zones: tuple[str, ...]
    groups: tuple[str, ...]
    data: Path
    agents_per_zone: int = 1
    storage: str | None = None
    metadata_store: str | None = None
    kafka_port: int = 9092
    settings: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """:raises PlanError:"""
        for option, names in (("--zones", self.zones), ("--groups", self.groups)):
            for name in names:
                if not _NAME.fullmatch(name):
                    raise PlanError(f"{option}: {name!r} is not a name of letters, digits, _ and -, at most 31")
            if not names or len(set(names)) < len(names):
                raise PlanError(f"{option}: names, each once, separated by commas")
        if len(self.zones) * len(self.groups) * self.agents_per_zone > AGENTS_MAX:
            raise PlanError(f"--agents-per-zone: a local cluster has at most {AGENTS_MAX} agents")
        if self.kafka_port > 65_535 - HTTP_PORTS - AGENTS_MAX:
            raise PlanError(f"--kafka-port: at most {65_535 - HTTP_PORTS - AGENTS_MAX}, other ports lie above it")
        if self.storage is not None and self.storage.startswith("memory:"):
            raise PlanError("--storage: memory:// is one process's own; agents share file:///dir or s3://bucket")
        if self.metadata_store is not None and not self.metadata_store.startswith(("postgresql://", "sqlite:///")):
            raise PlanError("--metadata-store: not postgresql://user@host/database or sqlite:///file")

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def storage_url(self) -> str:
        return self.storage or f"file://{quote(str(self.data.absolute()))}/objects"

    def metadata_store_url(self) -> str:
        return self.metadata_store or f"sqlite:///{quote(str(self.data.absolute()))}/metadata.sqlite"


class Ports:
    """Hands out addresses. ``free_port()`` is asked when the base is 0."""

    def __init__(self, base: int, free_port: Callable[[], int]) -> None:
        self._base = base
        self._free_port = free_port
        self._taken: set[int] = set()

    def metadata(self) -> str:
        return self._next(METADATA_PORTS)

    def kafka(self) -> str:
        return self._next(0)

    def http(self) -> str:
        return self._next(HTTP_PORTS)

    def _next(self, above: int) -> str:
        if self._base == 0:
            port = self._free_port()
            while port in self._taken:
                port = self._free_port()
        else:
            port = next(port for port in range(self._base + above, 65_536) if port not in self._taken)
        self._taken.add(port)
        return f"{HOST}:{port}"


def plan_metadata(ports: Ports) -> list[MetadataPlan]:
    """The pair: one leads, the other stands by."""
    return [MetadataPlan(f"metadata-{number + 1}", ports.metadata()) for number in range(METADATA_PROCESSES)]


def plan_agent(zone: str, group: str, others: Sequence[AgentPlan], ports: Ports) -> AgentPlan:
    """One more agent beside ``others``."""
    numbers = {other.number for other in others if (other.zone, other.group) == (zone, group)}
    number = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
    return AgentPlan(f"agent-{zone}-{group}-{number}", zone, group, number, ports.kafka(), ports.http())


def metadata_command(plan: MetadataPlan, spec: ClusterSpec) -> list[str]:
    """As an operator would type it."""
    command = [*_tidelog("metadata"), "--listen", plan.listen, "--store", spec.metadata_store_url()]
    return [*command, "--storage", spec.storage_url()]


def agent_command(plan: AgentPlan, spec: ClusterSpec, metadata: Sequence[MetadataPlan]) -> list[str]:
    """As an operator would type it."""
    urls = ",".join(f"http://{process.listen}" for process in metadata)
    command = [*_tidelog("agent"), "--metadata", urls, "--storage", spec.storage_url()]
    command += ["--zone", plan.zone, "--group", plan.group]
    return [*command, "--kafka", plan.kafka, "--advertise", plan.kafka, "--http", plan.http]


def environment(
    plan: ProcessPlan, spec: ClusterSpec, inherited: Mapping[str, str], tls: TlsFiles | None
) -> dict[str, str]:
    """``inherited`` with the process's settings: those asked for come first, then inherited ones, then modest ones."""
    modest = MODEST if isinstance(plan, AgentPlan) else {}
    given = dict(spec.settings)
    if isinstance(plan, AgentPlan) and plan.group == TLS_GROUP and tls is not None:
        given |= {"tls.certificate": str(tls.certificate), "tls.key": str(tls.key)}
    found = {environment_name(name): value for name, value in modest.items()} | dict(inherited)
    return found | {environment_name(name): value for name, value in given.items()}


def _tidelog(command: str) -> list[str]:
    return [sys.executable, "-m", "tidelog", command]
