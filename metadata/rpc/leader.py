"""Finds the active one among the metadata processes, and remembers it.

All addresses are asked at once, each at its own pace, so that one that has frozen holds up nothing; the first to say
that it leads, under a generation not below the highest seen, is taken. Nobody is asked while all goes well. A leader of
another cluster is none: agent epochs, topic ids and offsets mean something else there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import msgspec
import structlog

from metadata.model import MetadataUnavailable
from metadata.rpc.metrics import RpcClientMetrics
from metadata.rpc.wire import Presence, authorization
from runtime.clock import Clock, Entropy
from runtime.tasks import Supervisor

PROBE_SECONDS = 1.0
"""An address that does not answer within this is asked again."""
PROBE_PAUSE_SECONDS = (0.05, 0.3)
"""First and longest pause between two questions to an address."""
CONNECT_SECONDS = 1.0
CALL_CONNECTIONS_MAX = 64
"""Connections of ordinary calls to one process; a call over it waits for one. Parked calls have their own."""
KEEPALIVE_SECONDS = 30.0
"""An idle connection is closed after this, before the server does it (:data:`runtime.http.IDLE_SECONDS`)."""
LOG_SECONDS = 30.0

_presence_decoder = msgspec.json.Decoder(Presence)
_log = structlog.get_logger("tidelog.metadata.client")


class Server:
    """One metadata process, and the connections to it."""

    def __init__(self, url: str, secret: str | None) -> None:
        self.url = url.rstrip("/")
        self._headers = {} if secret is None else {"Authorization": authorization(secret)}
        self._calls: aiohttp.ClientSession | None = None
        self._waits: aiohttp.ClientSession | None = None

    @property
    def calls(self) -> aiohttp.ClientSession:
        """For what is answered at once."""
        if self._calls is None:
            self._calls = self._session(CALL_CONNECTIONS_MAX)
        return self._calls

    @property
    def waits(self) -> aiohttp.ClientSession:
        """For parked calls, watches and questions who leads: they hold up no call."""
        if self._waits is None:
            self._waits = self._session(0)
        return self._waits

    async def disconnect(self) -> None:
        """Break all connections; calls under way fail at once. New calls make new connections."""
        sessions = [session for session in (self._calls, self._waits) if session is not None]
        self._calls = self._waits = None
        for session in sessions:
            await session.close()

    def _session(self, limit: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )


class LeaderFinder:
    """Knows which of ``servers`` leads; one event loop."""

    def __init__(
        self,
        servers: Sequence[Server],
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        metrics: RpcClientMetrics,
    ) -> None:
        self._servers = tuple(servers)
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._metrics = metrics
        self._leader: Server | None = None
        self._previous: Server | None = None
        self._search: asyncio.Task[None] | None = None
        self._found: asyncio.Future[Server] | None = None
        self._closed = False
        self._logged_at: dict[str, float] = {}
        self.problem = "it has not been asked yet"
        """Why the latest attempt failed, for people."""
        self.generation = -1
        """The highest seen; answers of a lower one come from a leader that was replaced."""
        self.cluster_id: str | None = None
        """The cluster that is meant; None as long as any will do."""

    async def leader(self, deadline: float) -> Server:
        """The active one, once there is one. ``deadline`` is on ``clock.monotonic``.

        :raises MetadataUnavailable: none was found by then.
        """
        while self._leader is None:
            remaining = deadline - self._clock.monotonic()
            if self._closed:
                raise MetadataUnavailable("the metadata client is closed")
            if remaining <= 0:
                raise MetadataUnavailable(f"no metadata process leads: {self.problem}")
            if self._found is None:
                self._found = asyncio.get_running_loop().create_future()
                self._search = self._supervisor.start("metadata-leader-search", self._find(self._found))
            await asyncio.wait((self._found,), timeout=remaining)
        return self._leader

    def lost(self, server: Server, problem: str) -> None:
        """``server`` did not answer, or does not lead: look again."""
        if self._leader is server:
            self._leader = None
            self.problem = f"{server.url}: {problem}"

    def heard(self, generation: int) -> bool:
        """Whether something said under ``generation`` is to be believed."""
        if generation > self.generation:
            if self.generation != -1:
                _log.info("metadata_leader_changed", generation=generation, before=self.generation)
                self._metrics.leader_changes.inc()
            self.generation = generation
        return generation == self.generation

    def log_now_and_then(self, event: str, **fields: object) -> None:
        """One line for what may happen with every attempt."""
        now = self._clock.monotonic()
        if now - self._logged_at.get(event, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[event] = now
            _log.error(event, **fields)

    def unauthorized(self, server: Server) -> None:
        """``server`` said 401."""
        self.problem = f"{server.url} refused the secret"
        self.log_now_and_then(
            "metadata_secret_refused", url=server.url, hint="give every process of the cluster the same `secret`"
        )

    async def close(self) -> None:
        """Fail everybody who waits, and close all connections. Idempotent."""
        self._closed = True
        self._leader = None
        if self._search is not None:
            self._search.cancel()
            await asyncio.wait((self._search,))
        for server in self._servers:
            await server.disconnect()

    async def _find(self, found: asyncio.Future[Server]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                asking = [
                    group.create_task(self._ask(server, found), name=f"metadata-probe-{number}")
                    for number, server in enumerate(self._servers)
                ]
                await asyncio.wait((found,))
                for task in asking:
                    task.cancel()
            leader = found.result()
            if self._previous is not None and self._previous is not leader:
                await self._previous.disconnect()  # what still waits there would wait in vain
            self._previous = leader
        finally:
            self._found = self._search = None
            if not found.done():
                found.cancel()

    async def _ask(self, server: Server, found: asyncio.Future[Server]) -> None:
        pause, pause_max = PROBE_PAUSE_SECONDS
        while not found.done():
            presence = await self._presence(server)
            if presence is not None and presence.leader and self.heard(presence.generation) and not found.done():
                self._leader = server
                found.set_result(server)
                return
            await self._clock.sleep(self._entropy.uniform(pause / 2, pause))
            pause = min(pause * 2, pause_max)

    async def _presence(self, server: Server) -> Presence | None:
        """None when it cannot be had; ``problem`` says why."""
        try:
            async with (
                asyncio.timeout(PROBE_SECONDS),
                server.waits.get(f"{server.url}/rpc") as response,
            ):
                if response.status == 401:
                    self.unauthorized(server)
                    return None
                presence = _presence_decoder.decode(await response.read())
        except TimeoutError:
            self.problem = f"{server.url} did not answer for {PROBE_SECONDS:g} s"
            return None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.problem = f"{server.url}: {error!r}"
            return None
        if not presence.leader:
            self.problem = f"{server.url} does not lead"
        elif self.cluster_id is not None and presence.cluster_id not in ("", self.cluster_id):
            self.problem = f"{server.url} leads the cluster {presence.cluster_id}, and not {self.cluster_id}"
            self.log_now_and_then(
                "metadata_of_another_cluster",
                url=server.url,
                cluster_id=presence.cluster_id,
                expected=self.cluster_id,
                hint="give the agent the metadata processes of its own cluster, or start it anew",
            )
            return None
        return presence
