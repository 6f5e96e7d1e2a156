"""A whole cluster of real processes with a faulty network between any two kinds of them.

Links, by name: ``clients>AGENT`` (what an agent tells clients to connect to), ``AGENT>METADATA`` (calls and watches),
``AGENT>objects`` (the object store), ``METADATA>postgres``. Processes are named as in a local cluster:
``agent-a-vip-1``, ``metadata-1``.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.peers.processes import free_port
from runtime.configuration import environment_name
from tests.support.fault_proxy import FaultProxy, Link
from tests.support.server_process import ServerProcess
from tidelog.cluster.plan import (
    AgentPlan,
    ClusterSpec,
    MetadataPlan,
    Ports,
    agent_command,
    environment,
    metadata_command,
    plan_agent,
    plan_metadata,
)

QUICK: Mapping[str, str] = {
    "ingest.linger_ms": "50",
    "groups.initial_rebalance_delay_ms": "300",
    "log.form": "json",
}


class Agent(ServerProcess):
    """``plan.kafka`` is where it listens; clients are told ``address``: its link, when there is one."""

    def __init__(
        self, plan: AgentPlan, command: Sequence[str], log: Path, variables: Mapping[str, str], address: str
    ) -> None:
        super().__init__(plan.name, command, plan.http, log, variables)
        self.plan = plan
        self.address = address


class ClusterWorld:
    """Two metadata processes and agents in zones and groups: ``with ClusterWorld(folder) as world``.

    ``metadata_store`` is a URL of PostgreSQL (None: SQLite in ``folder``); ``storage`` one of S3 (None: files in it).
    ``settings`` are by dotted name, for everybody; ``variables`` are environment variables such as credentials. Without
    ``proxied`` there are no links.
    """

    def __init__(
        self,
        folder: Path,
        *,
        zones: Sequence[str] = ("a", "b", "c"),
        groups: Sequence[str] = ("plaintext",),
        agents_per_zone: int = 1,
        metadata_store: str | None = None,
        storage: str | None = None,
        settings: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        proxied: bool = True,
    ) -> None:
        self.folder = folder
        self._proxied = proxied
        self.network = FaultProxy()
        self.metadata: list[ServerProcess] = []
        self.agents: list[Agent] = []
        self._variables = dict(variables or {})
        self._ports = Ports(0, free_port)
        self._metadata_plans: list[MetadataPlan] = []
        self._agents_per_zone = agents_per_zone
        self.spec = ClusterSpec(
            tuple(zones),
            tuple(groups),
            folder,
            storage=storage,
            metadata_store=metadata_store,
            kafka_port=0,
            settings={**QUICK, **(settings or {})},
        )
        self.spec.logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        for plan in plan_metadata(self._ports):
            spec = self.spec
            if spec.metadata_store is not None and spec.metadata_store.startswith("postgresql:"):
                spec = replace(spec, metadata_store=self._through(f"{plan.name}>postgres", spec.metadata_store))
            self._metadata_plans.append(plan)
            log = spec.logs / f"{plan.name}.log"
            self.metadata.append(
                ServerProcess(plan.name, metadata_command(plan, spec), plan.http, log, self._environment(plan))
            )
        for metadata in self.metadata:
            metadata.spawn()
        for metadata in self.metadata:
            metadata.wait_ready()
        for zone in self.spec.zones:
            for group in self.spec.groups:
                for _ in range(self._agents_per_zone):
                    self._add_agent(zone, group).spawn()
        for agent in self.agents:
            agent.wait_ready()

    def _add_agent(self, zone: str, group: str) -> Agent:
        plan = plan_agent(zone, group, [agent.plan for agent in self.agents], self._ports)
        address = self._link(f"clients>{plan.name}", plan.kafka)
        spec = self.spec
        if spec.storage is not None and spec.storage.startswith("s3:"):
            spec = replace(spec, storage=self._through(f"{plan.name}>objects", spec.storage))
        metadata = [
            replace(one, listen=self._link(f"{plan.name}>{one.name}", one.listen)) for one in self._metadata_plans
        ]
        command = agent_command(plan, spec, metadata)
        command[command.index("--advertise") + 1] = address
        agent = Agent(plan, command, spec.logs / f"{plan.name}.log", self._environment(plan), address)
        self.agents.append(agent)
        return agent

    def _link(self, name: str, target: str) -> str:
        return self.network.link(name, target).address if self._proxied else target

    def _through(self, name: str, url: str) -> str:
        """``url`` with a new link in place of its server: the host, or the ``endpoint`` of an S3 URL."""
        parts = urlsplit(url)
        if parts.scheme == "s3":
            before, mark, after = parts.query.partition("endpoint=")
            endpoint, *rest = after.split("&", 1)
            query = "&".join([f"{before}{mark}http://{self._link(name, urlsplit(endpoint).netloc)}", *rest])
            return urlunsplit(parts._replace(query=query))
        user, at, server = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self._link(name, server)}"))

    def _environment(self, plan: MetadataPlan | AgentPlan) -> dict[str, str]:
        found = environment(plan, self.spec, self._variables, None)
        return found | {environment_name("data"): str(self.folder / plan.name)}

    def start_agent(self, zone: str, group: str) -> Agent:
        """One more agent, ready when this returns."""
        agent = self._add_agent(zone, group)
        agent.start()
        return agent

    def agents_of(self, zone: str, group: str | None = None) -> list[Agent]:
        return [agent for agent in self.agents if agent.plan.zone == zone and group in (None, agent.plan.group)]

    def bootstrap(self, zone: str | None = None, group: str | None = None) -> str:
        """Addresses of running and other agents, through their links; all that match."""
        return ",".join(
            agent.address
            for agent in self.agents
            if zone in (None, agent.plan.zone) and group in (None, agent.plan.group)
        )

    def links(self, *parts: str) -> list[Link]:
        """Links whose names have all of ``parts`` in them."""
        found = [link for name, link in self.network.links.items() if all(part in name for part in parts)]
        assert found, f"no link has {parts}: {sorted(self.network.links)}"
        return found

    def page(self, timeout_s: float = 3) -> dict[str, Any]:
        """``/cluster`` of the process that leads. :raises AssertionError: none does."""
        for metadata in self.metadata:
            page = self.page_of(metadata, timeout_s)
            if page is not None and page["leader"]:
                return page
        raise AssertionError("no metadata process leads")

    def leader(self, within_s: float = 20) -> ServerProcess:
        """The metadata process that leads."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            pages = {metadata.name: self.page_of(metadata, 1) for metadata in self.metadata if metadata.running()}
            leading = [
                (page["generation"], name) for name, page in pages.items() if page is not None and page["leader"]
            ]
            if leading:
                return next(one for one in self.metadata if one.name == max(leading)[1])
            time.sleep(0.1)
        raise AssertionError(f"no metadata process leads after {within_s} s\n{self.logs_tail()}")

    def page_of(self, metadata: ServerProcess, timeout_s: float) -> dict[str, Any] | None:
        """``/cluster`` of one process, which may not lead; None: it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{metadata.http}/cluster", timeout=timeout_s) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except OSError:
            return None

    def create_topic(self, topic: str, partitions: int) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap(), "log_level": 0})
        admin.create_topics([NewTopic(topic, partitions)])[topic].result(20)

    def read_log(self, topic: str, partitions: int, within_s: float = 60) -> dict[tuple[int, int], bytes]:
        """Everything that is in the topic, by (partition, offset)."""
        return read_log(self.bootstrap(), topic, partitions, within_s)

    def logs_tail(self, lines: int = 12) -> str:
        """The last lines of everybody, for a failed assertion."""
        return "\n".join(
            f"--- {one.name}\n" + "\n".join(one.log_tail().splitlines()[-lines:])
            for one in (*self.metadata, *self.agents)
        )

    def close(self) -> None:
        """End everything, in whatever state it is. Idempotent."""
        self.network.heal()
        for agent in self.agents:
            if agent.running():
                agent.thaw()
                assert agent.process is not None
                agent.process.terminate()
        for server in (*self.agents, *self.metadata):
            server.stop()
        self.network.close()


def read_log(
    bootstrap: str, topic: str, partitions: int, within_s: float = 60, config: Mapping[str, str] | None = None
) -> dict[tuple[int, int], bytes]:
    """One read of the whole topic from the first offset to the end, by (partition, offset)."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "client.id": "reader",
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "log_level": 0,
            **(config or {}),
        }
    )
    found: dict[tuple[int, int], bytes] = {}
    try:
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, one), timeout=15)[1] for one in range(partitions)]
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        deadline = time.monotonic() + within_s
        while len(found) < sum(ends):
            assert time.monotonic() < deadline, f"read {len(found)} of {sum(ends)} records within {within_s} s"
            for message in consumer.consume(1_000, 0.5):
                assert message.error() is None, message.error()
                partition, offset, value = message.partition(), message.offset(), message.value()
                assert partition is not None and offset is not None and value is not None
                found[partition, offset] = value.rstrip()
    finally:
        consumer.close()
    return found
