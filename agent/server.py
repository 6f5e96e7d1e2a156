"""The Kafka listener: accepts connections, sweeps them, and lets go of them in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Final

from agent.connection import MOVED, SHUTDOWN, Connection
from agent.context import Agent
from agent.dispatch import HANDLERS, Dispatcher, Handler
from agent.failure_log import FailureLog
from agent.file_limit import raise_file_limit
from agent.intake import STALLED_SECONDS, large_frame_budget
from agent.tls import TlsListener
from agent.wire.frames import Scratch
from runtime.tasks import Supervisor

BACKLOG: Final = 4096
"""Connections the kernel holds for us: a fleet of shippers reconnects at once when an agent restarts."""
SWEEP_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.05
"""Pause between two looks for connections whose clients have moved."""
CALM_SECONDS: Final = 0.5
"""Without a connection before everybody counts as moved: a client that knows this agent alone comes back to ask where
to go, after a reconnect backoff of 50 to 100 ms."""


class KafkaServer:
    """One listener and its connections; also what connections share. One event loop.

    :meth:`bind`, :meth:`start`, then :meth:`stop_accepting`, :meth:`drain`, :meth:`close`.

    :raises SettingsError: TLS is configured and a certificate file is wrong.
    """

    def __init__(self, agent: Agent, supervisor: Supervisor, handlers: Mapping[int, Handler] = HANDLERS) -> None:
        self.agent = agent
        self.supervisor = supervisor
        self.limits = agent.settings.connection
        self.clock = agent.clock
        self.metrics = agent.metrics
        self.failures = FailureLog(agent.clock)
        self.dispatcher = Dispatcher(agent, self.failures, handlers)
        self.scratch = Scratch()
        self.large_frames = large_frame_budget(agent.budget)
        self._frames_short_since: float | None = None
        self.coarse_now = agent.clock.monotonic()
        """Monotonic seconds as of the last sweep: what idle and stall times are measured with."""
        self._connections: set[Connection] = set()
        tls = agent.settings.tls.certificate is not None
        self._tls = TlsListener(self, lambda: len(self._connections)) if tls else None
        self._due: list[Connection] = []
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._draining = False
        self.moved_connections = 0
        """Of clients that were told where to go, and went."""
        self.untold_connections = 0
        """Closed while clients were being moved, by clients that asked for nothing."""
        self._all_gone: asyncio.Event = asyncio.Event()

    # --- life cycle ---------------------------------------------------------------------------------------

    async def bind(self, host: str, port: int) -> int:
        """Take the address, without accepting anybody yet; returns the port (useful when ``port`` is 0).

        :raises OSError: the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        (family, kind, protocol, _, address), *_ = await loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        return int(listener.getsockname()[1])

    async def start(self) -> None:
        """Accept connections from now on."""
        assert self._socket is not None, "bind before start"
        raise_file_limit(self.limits.connections_max)
        loop = asyncio.get_running_loop()
        tls = self._tls
        self._server = await loop.create_server(
            (lambda: Connection(self)) if tls is None else tls.make_channel, sock=self._socket, backlog=BACKLOG
        )
        self._socket = None
        self._sweeper = self.supervisor.start("kafka-sweeper", self._sweep_forever())
        if tls is not None:
            self.supervisor.start("tls-certificates", tls.certificates.watch())

    async def stop_accepting(self) -> None:
        """New clients are refused by the kernel; connections go on. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._server.close()
            self._server = None

    def begin_moving(self) -> None:
        """Send clients to other agents from now on (``agent.moving``): those who wait here are told at once, the others
        when they ask. New connections are still accepted, and told."""
        self.coarse_now = self.clock.monotonic()
        self.agent.moving = True
        for connection in list(self._connections):
            connection.send_away()

    async def all_moved(self, until: float) -> None:
        """Close connections whose clients have gone; return when none is left and none has come for a moment.

        Returns at ``until`` (monotonic seconds) whoever is left, and when there is no other agent to go to any more.
        """
        calm_since: float | None = None
        while self.agent.roster.has_others():
            now = self.coarse_now = self.clock.monotonic()
            if now >= until:
                return
            is_calm = True
            for connection in list(self._connections):
                if connection.has_moved(now):
                    connection.close(MOVED)
                else:
                    is_calm = False
            if not is_calm:
                calm_since = None
            elif calm_since is None:
                calm_since = now
            elif now - calm_since >= CALM_SECONDS:
                return
            await self.clock.sleep(LOOK_SECONDS)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def drain(self) -> None:
        """Read no more requests, answer those in flight, close; returns when every connection is gone.

        Long waits (Fetch, JoinGroup, SyncGroup) are cut off. The caller bounds the time: cancelling leaves what is left
        to :meth:`close`.
        """
        await self.stop_accepting()
        self._draining = True
        if self._tls is not None:
            self._tls.close()
        for connection in list(self._connections):
            connection.leave()
        if self._connections:
            await self._all_gone.wait()

    async def close(self) -> None:
        """Close every connection now. Idempotent."""
        await self.stop_accepting()
        self._draining = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._tls is not None:
            self._tls.close()
        for connection in list(self._connections):
            connection.abort(SHUTDOWN)
        if self._connections:
            await self._all_gone.wait()

    # --- what connections call ----------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Count a new connection in, or say that there are too many."""
        if self._draining or len(self._connections) >= self.limits.connections_max:
            self.metrics.connections_rejected += 1
            self.failures.report("connection_rejected", open=len(self._connections))
            return False
        self._connections.add(connection)
        self._all_gone.clear()
        self.metrics.connections_accepted += 1
        self.metrics.connections_open += 1
        return True

    def gone(self, connection: Connection, reason: str) -> None:
        """A connection's socket is closed."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self.metrics.connections_open -= 1
        self.metrics.connections_closed[reason] += 1
        if self.agent.moving and not self._draining:
            if connection.was_told:
                self.moved_connections += 1
            else:
                self.untold_connections += 1
        if not self._connections:
            self._all_gone.set()

    def soon(self, connection: Connection) -> None:
        """Call ``connection.run_due`` in the loop's next turn: answers that become ready together leave together."""
        self._due.append(connection)
        if len(self._due) == 1:
            asyncio.get_running_loop().call_soon(self._run_due)

    def _run_due(self) -> None:
        due, self._due = self._due, []
        for connection in due:
            connection.run_due()

    # --- time ---------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        """The one timer of all connections."""
        limits = self.limits
        shortest_ms = min(limits.idle_ms, limits.frame_ms, limits.write_stall_ms)
        period = min(SWEEP_SECONDS, shortest_ms / 4000)
        while True:
            await self.clock.sleep(period)
            self.sweep()

    def sweep(self) -> None:
        """Look at every connection's clocks (about half a microsecond each)."""
        self.coarse_now = self.clock.monotonic()
        self.failures.sweep()
        for connection in list(self._connections):
            connection.sweep(self.coarse_now)
        if self._tls is not None:
            self._tls.sweep(self.coarse_now)
        self._make_room_for_frames()

    def _make_room_for_frames(self) -> None:
        """Large frames that only wait for each other, or for a client that takes its time: the largest has to go."""
        now = self.coarse_now
        if not self.large_frames.exhausted:
            self._frames_short_since = None
        elif self._frames_short_since is None:
            self._frames_short_since = now
        elif now - self._frames_short_since >= STALLED_SECONDS:
            largest = max(self._connections, key=lambda connection: connection.large_frame_bytes(now), default=None)
            if largest is not None and largest.large_frame_bytes(now):
                largest.give_frame_up()
