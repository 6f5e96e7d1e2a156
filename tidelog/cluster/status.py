"""``tidelog cluster status``: what a cluster's leader knows, as tables or JSON, once or again and again."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.console import Group as RenderGroup
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.routing import CHUNK_PARTITIONS, Servers, candidates
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo
from metadata.model import TopicId
from runtime.settings import parse_address
from tidelog.client import counted
from tidelog.cluster.page import AgentRow, ClusterPage, ProcessAnswer, ask_all, leader_of
from tidelog.connecting import CommandFailed

WATCH_SECONDS = 1.0
GROUPS_SHOWN = 20
PIPE_WIDTH = 200
_STYLES = {"ready": "green", "starting": "cyan", "draining": "yellow", "sick": "red"}


@dataclass(frozen=True, slots=True)
class Status:
    """One look at a cluster. ``led`` is partitions by node id: what clients of its own zone and group go there for."""

    answers: Sequence[ProcessAnswer]
    page: ClusterPage
    led: dict[int, int]

    @property
    def crossed_bytes(self) -> float:
        return sum(agent.load.cross_zone_bytes_total for agent in self.page.agents)

    @property
    def crossed_bytes_per_second(self) -> float:
        return sum(agent.load.cross_zone_bytes for agent in self.page.agents)


class Looker:
    """Looks at the cluster behind ``urls`` (http://host:port); remembers who leads what between looks."""

    def __init__(self, urls: Sequence[str], secret: str | None) -> None:
        self._urls = urls
        self._secret = secret
        self._servers: dict[tuple[NodeEndpoint, ...], Servers] = {}

    def look(self) -> Status:
        """:raises CommandFailed: nobody leads, or nobody answers; the message says what each said."""
        answers = ask_all(self._urls, self._secret)
        page = leader_of(answers)
        if page is None:
            said = "; ".join(f"{answer.url}: {answer.problem or 'stands by'}" for answer in answers)
            raise CommandFailed(f"no metadata process leads: {said}")
        return Status(answers, page, self._led(page))

    def _led(self, page: ClusterPage) -> dict[int, int]:
        """By the same rule as agents answer Metadata requests."""
        led = {agent.node_id: 0 for agent in page.agents}
        for group in {agent.group for agent in page.agents}:
            infos = [_info(agent) for agent in page.agents if agent.group == group]
            for zone in {info.zone for info in infos}:
                chosen, is_foreign = candidates(infos, zone)
                if not chosen or is_foreign:
                    continue
                servers = self._shared([NodeEndpoint(info.node_id, info.host, info.port) for info in chosen])
                for topic in page.topics:
                    for chunk in range(-(-topic.partitions // CHUNK_PARTITIONS)):
                        topic_id = TopicId(bytes.fromhex(topic.id))
                        for node_id in servers.leaders(topic_id, topic.partitions, chunk):
                            led[node_id] += 1
        return led

    def _shared(self, endpoints: Sequence[NodeEndpoint]) -> Servers:
        key = tuple(sorted(endpoints))
        if key not in self._servers:
            if len(self._servers) > 100:
                self._servers.clear()
            self._servers[key] = Servers(endpoints, is_foreign=False)
        return self._servers[key]


def show(urls: Sequence[str], secret: str | None, *, as_json: bool, watch: bool) -> None:
    """Print the cluster's status; with ``watch`` every second until Ctrl-C, also while nobody leads.

    :raises CommandFailed: see :meth:`Looker.look`.
    """
    looker = Looker(urls, secret)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)
    if not watch:
        status = looker.look()
        if as_json:
            print(json.dumps(as_dict(status), indent=2))
        else:
            console.print(draw(status))
        return
    pause = threading.Event()
    with contextlib.suppress(KeyboardInterrupt), _screen(console, as_json) as screen:
        while True:
            try:
                status = looker.look()
                screen(json.dumps(as_dict(status)) if as_json else draw(status))
            except CommandFailed as failure:
                screen(json.dumps({"problem": str(failure)}) if as_json else Text(str(failure), style="red"))
            pause.wait(WATCH_SECONDS)


@contextlib.contextmanager
def _screen(console: Console, as_json: bool) -> Iterator[Callable[[RenderableType], None]]:
    """Redrawn on a terminal, one after another elsewhere."""
    if as_json or not console.is_terminal:
        yield lambda shown: print(shown, flush=True) if isinstance(shown, str) else console.print(shown, "")
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield lambda shown: live.update(shown, refresh=True)


def as_dict(status: Status) -> dict[str, Any]:
    """For scripts: what the leader said, and what was worked out from it."""
    page = status.page
    return {
        "generation": page.generation,
        "metadata": [
            {
                "url": answer.url,
                "role": role(answer),
                "generation": None if answer.page is None else answer.page.generation,
                "problem": answer.problem,
            }
            for answer in status.answers
        ],
        "agents": [
            {**msgspec.to_builtins(agent), "partitions_led": status.led[agent.node_id]} for agent in page.agents
        ],
        "cross_zone": {"bytes": status.crossed_bytes, "bytes_per_second": status.crossed_bytes_per_second},
        "topics_count": page.topics_count,
        "partitions_count": page.partitions_count,
        "topics": msgspec.to_builtins(page.topics),
        "groups_count": page.groups_count,
        "groups": msgspec.to_builtins(page.groups),
    }


def role(answer: ProcessAnswer) -> str:
    """Of a metadata process, in a word."""
    if answer.page is None:
        return "unknown"
    return "leader" if answer.page.leader else "standby"


def draw(status: Status) -> RenderableType:
    """Everything, for a screen."""
    page = status.page
    parts: list[RenderableType] = [_metadata(status), Text(), _agents(status)]
    for agent in page.agents:
        if agent.reason:
            where = f"{agent.zone}/{agent.group} {agent.kafka}"
            parts.append(Text(f"{where} is {agent.condition}: {agent.reason}", style=_STYLES.get(agent.condition, "")))
    parts += [Text(), _crossed(status)]
    parts.append(
        Text(
            f"{counted(page.topics_count, 'topic')}, {counted(page.partitions_count, 'partition')}, "
            f"{counted(page.groups_count, 'consumer group')}"
        )
    )
    if page.groups:
        parts += [Text(), _groups(page)]
    return RenderGroup(*parts)


def _metadata(status: Status) -> Table:
    table = _table(("metadata", "role", "generation"), right=("generation",))
    for answer in status.answers:
        if answer.page is None:
            table.add_row(answer.url, Text(answer.problem or "", style="red"), "-")
        else:
            style = "green" if answer.page.leader else ""
            generation = str(answer.page.generation) if answer.page.leader else "-"
            table.add_row(answer.url, Text(role(answer), style=style), generation)
    return table


def _agents(status: Status) -> Table:
    left = ("zone", "group", "node", "kafka", "condition")
    right = ("in/s", "out/s", "requests/s", "connections", "CPU", "memory", "loop late", "leads", "crossed/s", "epoch")
    table = _table((*left, *right, "version"), right=("node", *right))
    for agent in sorted(status.page.agents, key=lambda agent: (agent.zone, agent.group, agent.node_id)):
        load = agent.load
        table.add_row(
            agent.zone,
            agent.group,
            str(agent.node_id),
            agent.kafka,
            Text(agent.condition, style=_STYLES.get(agent.condition, "")),
            byte_count(load.bytes_in),
            byte_count(load.bytes_out),
            f"{load.requests:,.0f}",
            f"{load.connections:,}",
            f"{load.cpu_cores:.0%}",
            f"{load.memory_held_bytes / max(load.memory_budget_bytes, 1):.0%}",
            f"{load.loop_lag_ms:,.0f} ms",
            f"{status.led[agent.node_id]:,}",
            Text(byte_count(load.cross_zone_bytes), style="yellow" if load.cross_zone_bytes else ""),
            str(agent.epoch),
            agent.version,
        )
    return table


def _crossed(status: Status) -> Text:
    crossed, rate = status.crossed_bytes, status.crossed_bytes_per_second
    return Text(
        f"crossed zones: {byte_count(rate)}/s, {byte_count(crossed)} since these agents started",
        style="yellow" if rate else "",
    )


def _groups(page: ClusterPage) -> Table:
    table = _table(("consumer group", "state", "lag", "lag seconds"), right=("lag", "lag seconds"))
    furthest = sorted(page.groups, key=lambda group: (-group.lag_seconds, -group.lag_records, group.group))
    for group in furthest[:GROUPS_SHOWN]:
        table.add_row(group.group, group.state, f"{group.lag_records:,}", f"{group.lag_seconds:,.1f}")
    if page.groups_count > GROUPS_SHOWN:
        table.add_row(f"and {page.groups_count - GROUPS_SHOWN:,} more", "", "", "")
    return table


def _table(columns: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def byte_count(count: float) -> str:
    """``0``, ``912 B``, ``1.5 KiB``, ``20.3 MiB``."""
    if count == 0:
        return "0"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _info(agent: AgentRow) -> AgentInfo:
    host, port = parse_address("kafka", agent.kafka)
    return AgentInfo(
        agent.node_id,
        agent.epoch,
        agent.agent,
        agent.zone,
        agent.group,
        host,
        port,
        agent.http,
        agent.version,
        agent.roles,
        AgentCondition(agent.condition),
    )
