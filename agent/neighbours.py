"""Whether another agent can be connected to: asked for the clients of a zone that has only that one.

A client that asks an agent of another zone is told of its own zone's agents alone, so that nothing crosses zones. When
that is a single agent, which has died and is not suspected yet, the client would know nobody who lives: librdkafka asks
its bootstrap addresses once more, and then not for minutes. Whoever cannot reach that agent names itself as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from agent.wire.endpoints import NodeEndpoint
from runtime.clock import Clock

CONNECT_SECONDS_MAX: Final = 0.5
HELD_SECONDS: Final = 0.05
KNOWN_SECONDS: Final = 1.0
"""What was found is believed for so long."""
NEIGHBOURS_MAX: Final = 1_000


@dataclass(slots=True)
class _Found:
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    reachable: bool = True
    at: float = float("-inf")


class Neighbours:
    """Remembers the latest look at each address. One event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[NodeEndpoint, _Found] = {}

    async def is_reachable(self, endpoint: NodeEndpoint) -> bool:
        """Whether a connection was made of late, or is now; looks once for everybody who asks meanwhile."""
        found = self._found.get(endpoint)
        if found is None:
            if len(self._found) >= NEIGHBOURS_MAX:
                self._found.clear()
            found = self._found[endpoint] = _Found()
        async with found.looking:
            if self._clock.monotonic() - found.at >= KNOWN_SECONDS:
                found.reachable = await _connects(endpoint)
                found.at = self._clock.monotonic()
            return found.reachable


async def _connects(endpoint: NodeEndpoint) -> bool:
    """Agents keep a connection on which nothing comes; a balancer before a dead one accepts it, and ends it."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:  # TimeoutError is one
        return False
    try:
        async with asyncio.timeout(HELD_SECONDS):
            await reader.read(1)
        return False
    except TimeoutError:
        return True
    except OSError:
        return False
    finally:
        writer.transport.abort()
