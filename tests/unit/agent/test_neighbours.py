"""Whether another agent can be connected to, looked at once for everybody and not more than once a second."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent import neighbours
from agent.context import Call
from agent.neighbours import Neighbours
from agent.roster import Roster
from agent.wire.endpoints import NodeEndpoint
from metadata.agent_model import AgentCondition, AgentInfo
from runtime.clock import SystemClock
from tests.support.agents import agent_info, roster


class Listener:
    """An address that counts who connects."""

    def __init__(self, holds: bool = True) -> None:
        self.count = 0
        self.holds = holds

    async def __aenter__(self) -> Listener:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.endpoint = NodeEndpoint(1, "127.0.0.1", self.server.sockets[0].getsockname()[1])
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        if self.holds:
            await reader.read()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()


class Clock(SystemClock):
    """Moves when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


async def test_one_look_serves_everybody_for_a_second() -> None:
    clock = Clock()
    known = Neighbours(clock)
    async with Listener() as listener:
        assert all(await asyncio.gather(*(known.is_reachable(listener.endpoint) for _ in range(50))))
        clock.now += 0.9
        assert await known.is_reachable(listener.endpoint)
        assert listener.count == 1
    clock.now += 0.05
    assert await known.is_reachable(listener.endpoint), "what was found is believed for a second"
    clock.now += 0.1
    assert not await known.is_reachable(listener.endpoint)


async def test_nobody_there_and_nobody_who_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Neighbours(SystemClock())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert not await known.is_reachable(NodeEndpoint(1, "127.0.0.1", port))
    assert not await known.is_reachable(NodeEndpoint(2, "no-such-host.invalid", 9092))
    async with Listener(holds=False) as balancer:
        assert not await known.is_reachable(balancer.endpoint), "it is before nobody"

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(neighbours, "CONNECT_SECONDS_MAX", 0.05)
    monkeypatch.setattr(asyncio, "open_connection", never)
    assert not await known.is_reachable(NodeEndpoint(3, "127.0.0.1", port))


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "NEIGHBOURS_MAX", 3)
    known = Neighbours(SystemClock())
    async with Listener() as listener:
        for number in range(10):
            await known.is_reachable(NodeEndpoint(number, listener.endpoint.host, listener.endpoint.port))
    assert len(known._found) <= 3


def _of_agent_1(*others: AgentInfo, condition: AgentCondition = AgentCondition.READY) -> Roster:
    known = roster("a")
    known.is_now(NodeEndpoint(1, "agent-1", 9092), condition)
    known.heard([agent_info(1, "a"), *others])
    return known


def _lone(known: Roster, zone: str) -> int | None:
    call = Call(3, 13, 1, "test", "/127.0.0.1", zone)
    found = known.lone_neighbour(call, known.route_for(call))
    return None if found is None else found.node_id


def test_only_a_single_agent_of_another_zone_is_a_lone_neighbour() -> None:
    known = _of_agent_1(agent_info(2, "b"), agent_info(3, "c"), agent_info(4, "c"))
    assert _lone(known, "b") == 2
    assert _lone(known, "c") is None, "there are two"
    assert _lone(known, "a") is None, "the client is where it belongs"
    assert _lone(known, "") is None
    assert _lone(known, "d") is None, "nobody is there: others are named anyway"
    sick = _of_agent_1(agent_info(2, "b"), condition=AgentCondition.SICK)
    assert _lone(sick, "b") is None, "whom this one is no help to"
