"""Asking other agents of the ring for bytes. What they cannot give, or not in time, is read from the object store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import aiohttp
import structlog

from agent.fetch.metrics import FetchMetrics
from agent.fetch.peer_wire import BYTES_MAX, PATH, RANGES_MAX, PeerRange, decode_answer, encode_read
from metadata.agent_model import AgentInfo
from metadata.rpc.wire import authorization
from runtime.budget import Budget
from runtime.clock import Clock
from runtime.tasks import Supervisor

MEMORY_SECONDS = 0.5
"""How long an answer from a peer's memory may take. A tailing consumer waits for it, and then for the object store."""
STORE_SECONDS = 5.0
"""The same when the peer may have to read the object store first."""
AVOIDED_SECONDS = 2.0
"""A peer that failed is not asked for so long: a frozen one must not cost every fetch a timeout."""
CONNECTIONS_PER_PEER = 8

_log = structlog.get_logger("tidelog.peers")


@dataclass(slots=True)
class _Pending:
    """Ranges of one peer gathered in one turn of the loop."""

    peer: AgentInfo
    ranges: list[PeerRange] = field(default_factory=list)
    answers: list[asyncio.Future[bytes | None]] = field(default_factory=list)
    byte_length: int = 0


class PeerReader:
    """One agent's requests to its peers. One event loop."""

    def __init__(
        self, clock: Clock, supervisor: Supervisor, budget: Budget, metrics: FetchMetrics, secret: str | None = None
    ) -> None:
        self._clock = clock
        self._supervisor = supervisor
        self._budget = budget
        self._metrics = metrics
        self._headers = {} if secret is None else {"Authorization": authorization(secret)}
        self._session: aiohttp.ClientSession | None = None
        self._pending: dict[tuple[int, bool], _Pending] = {}
        self._avoided: dict[int, float] = {}

    async def close(self) -> None:
        """Drop the connections; reads under way end with None."""
        if self._session is not None:
            await self._session.close()

    async def read(self, peer: AgentInfo, wanted: PeerRange) -> bytes | None:
        """The bytes, or None: the peer does not have them, or does not answer. Never raises but for cancellation.

        What is asked of one peer in one turn of the loop travels together.
        """
        if wanted.length > BYTES_MAX or self._avoided.get(peer.agent_epoch, 0.0) > self._clock.monotonic():
            return None
        key = (peer.agent_epoch, wanted.memory_only)
        pending = self._pending.get(key)
        if pending is not None and (
            len(pending.ranges) == RANGES_MAX or pending.byte_length + wanted.length > BYTES_MAX
        ):
            self._flush(key)
            pending = None
        if pending is None:
            pending = self._pending[key] = _Pending(peer)
            asyncio.get_running_loop().call_soon(self._flush_if, key, pending)
        answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        pending.ranges.append(wanted)
        pending.answers.append(answer)
        pending.byte_length += wanted.length
        return await answer

    def _flush_if(self, key: tuple[int, bool], pending: _Pending) -> None:
        if self._pending.get(key) is pending:
            self._flush(key)

    def _flush(self, key: tuple[int, bool]) -> None:
        pending = self._pending.pop(key)
        self._supervisor.start(f"peer-read-{pending.peer.node_id}", self._ask(pending))

    async def _ask(self, pending: _Pending) -> None:
        found: list[bytes | None] = [None] * len(pending.ranges)
        self._budget.take("cache", pending.byte_length)
        try:
            found = await self._post(pending.peer, tuple(pending.ranges))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._avoid(pending.peer, repr(error))
        finally:
            self._budget.give("cache", pending.byte_length)
            for answer, data in zip(pending.answers, found, strict=True):
                if not answer.done():
                    answer.set_result(data)

    async def _post(self, peer: AgentInfo, ranges: tuple[PeerRange, ...]) -> list[bytes | None]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS_PER_PEER)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        seconds = MEMORY_SECONDS if ranges[0].memory_only else STORE_SECONDS
        self._metrics.peer_requests += 1
        async with (
            asyncio.timeout(seconds),
            self._session.post(f"http://{peer.http_address}{PATH}", data=encode_read(ranges)) as response,
        ):
            if response.status != 200:
                raise ValueError(f"status {response.status}: {(await response.text())[:200]}")
            body = await response.read()
        self._metrics.peer_bytes_in += len(body)
        # Copies, so that one small range that is kept does not keep the whole answer.
        return [None if view is None else bytes(view) for view in decode_answer(ranges, body)]

    def _avoid(self, peer: AgentInfo, reason: str) -> None:
        now = self._clock.monotonic()
        self._metrics.peer_failures += 1
        self._avoided = {epoch: until for epoch, until in self._avoided.items() if until > now}
        if peer.agent_epoch not in self._avoided:
            _log.warning("peer_read_failed", peer=peer.http_address, node_id=peer.node_id, reason=reason)
        self._avoided[peer.agent_epoch] = now + AVOIDED_SECONDS
