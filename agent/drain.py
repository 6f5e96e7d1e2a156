"""Leaving without anybody noticing: clients are moved to other agents, what was taken in is stored and answered.

======================  ==========================================================================================
step                    what happens
======================  ==========================================================================================
DRAINING                everybody hears it; Metadata and FindCoordinator name the other agents
moving                  produces, fetches and group calls are answered with where to go (:mod:`agent.handlers.moved`);
                        what was taken in before is sealed, uploaded, committed and answered
moved                   connections whose clients have gone are closed; the rest when the time is over
closing                 no new connections; what is in flight is answered
goodbye                 the epoch is given up: nothing of it can be committed any more
======================  ==========================================================================================

Without another agent of the group there is nowhere to go: moving is skipped, and clients wait for this one's successor.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from agent.context import Agent
from agent.membership import Membership
from agent.server import KafkaServer
from runtime.tasks import Supervisor

CLOSING_SHARE: Final = 0.1
"""Of the time for a drain, kept for the answers in flight when clients have not moved by then."""

_log = structlog.get_logger("tidelog.agent.drain")


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of an agent's clients and of what they had sent."""

    seconds: float
    connections_moved: int
    """Their clients were told where to go, and went."""
    connections_idle: int
    """They asked for nothing meanwhile; their clients look where to go when they find them closed."""
    connections_left: int
    """Closed with their clients still here: they did not move in time, or had nowhere to go."""
    records_flushed: int
    records_failed: int
    """Could not be stored; their producers were told so."""
    records_cut_off: int
    """Given up, unanswered."""

    def sentence(self) -> str:
        """For people."""
        parts = [f"{_counted(self.connections_moved, 'connection')} moved"]
        if self.connections_idle:
            parts.append(f"{self.connections_idle} idle")
        if self.connections_left:
            parts.append(f"{self.connections_left} closed without having moved")
        stored = [f"{_counted(self.records_flushed, 'record')} flushed"]
        if self.records_failed:
            stored.append(f"{self.records_failed} not stored, as their producers were told")
        if self.records_cut_off:
            end = f"cut off: {_counted(self.records_cut_off, 'record')} not acknowledged, which producers send again"
        else:
            end = "nothing was lost"
        return f"Drained in {self.seconds:.1f} s: {', '.join(parts)}; {', '.join(stored)}; {end}."


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


async def drain(
    agent: Agent, server: KafkaServer, membership: Membership, supervisor: Supervisor, seconds_max: float
) -> DrainReport:
    """Leave within ``seconds_max``, give or take the goodbye. Cancelled, everything is left as it is, to be stopped."""
    clock, writer = agent.clock, agent.writer
    began = clock.monotonic()
    deadline = began + seconds_max
    before = writer.settled_records()
    await membership.begin_drain()
    if agent.roster.has_others():
        server.begin_moving()
        # Those who wait for acknowledgements will not move before they have them.
        supervisor.start("drain-flush", writer.drain())
        await server.all_moved(deadline - seconds_max * CLOSING_SHARE)
    connections_left = server.open_connections
    try:
        async with asyncio.timeout(max(0.0, deadline - clock.monotonic())):
            async with asyncio.TaskGroup() as group:
                group.create_task(writer.drain(), name="drain-writer")
                group.create_task(server.drain(), name="drain-connections")
    except TimeoutError:
        _log.warning("drain_incomplete", seconds=round(seconds_max, 3))
    settled = writer.settled_records()
    cut_off = writer.pending_records()
    await membership.leave()
    committed = settled.get("committed", 0) - before.get("committed", 0)
    report = DrainReport(
        seconds=clock.monotonic() - began,
        connections_moved=server.moved_connections,
        connections_idle=server.untold_connections,
        connections_left=connections_left,
        records_flushed=committed,
        records_failed=sum(settled.values()) - sum(before.values()) - committed,
        records_cut_off=cut_off,
    )
    _log.info(
        "drained",
        seconds=round(report.seconds, 3),
        connections_moved=report.connections_moved,
        connections_idle=report.connections_idle,
        connections_left=report.connections_left,
        records_flushed=report.records_flushed,
        records_failed=report.records_failed,
        records_cut_off=report.records_cut_off,
    )
    return report
