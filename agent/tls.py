"""The TLS side of the Kafka listener: handshakes, as many at a time as memory allows, without disturbing anybody.

A socket is *silent* until its client has sent something, and costs next to nothing. Then its handshake waits for its
turn: a handshake is a millisecond of arithmetic, and thousands of clients come at once when an agent restarts, so they
get :data:`TURN_SECONDS` of each turn of the loop, and everybody else the rest. A handshake that has begun holds memory,
so only so many are under way, of which one address may have four fifths; addresses take turns to begin. When there is
no room for another of an address, one of its own whose client has taken its time goes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from agent.certificates import Certificates
from agent.connection import Connection
from agent.tls_channel import HANDSHAKE_BYTES, TlsChannel
from runtime.shares import FairShare, Turns

if TYPE_CHECKING:
    from agent.server import KafkaServer

SCRATCH_BYTES: Final = 128 * 1024
"""Ciphertext read at once, into memory that all connections share."""
TURN_SECONDS: Final = 0.002
"""Of one turn of the event loop, for handshakes."""
STALLED_SECONDS: Final = 2.0
"""How long a client may be silent before its handshake may be ended to make room for another's."""
TLS_SHARE: Final = 0.5
"""Of the memory budget, for TLS: beyond it nobody new is let in."""
PURPOSE: Final = "tls"

# Why handshakes fail: the values of a metric's label.
NEVER_SPOKE: Final = "never_spoke"
CLOSED: Final = "closed"
TIMEOUT: Final = "timeout"
NO_ROOM: Final = "no_room"
NOT_TLS: Final = "not_tls"
VERSION: Final = "version"
CIPHER: Final = "cipher"
NO_CERTIFICATE: Final = "no_certificate"
BAD_CERTIFICATE: Final = "bad_certificate"
REFUSED_BY_CLIENT: Final = "refused_by_client"
PROTOCOL: Final = "protocol"
NOT_ADMITTED: Final = "not_admitted"
SHUTDOWN: Final = "shutdown"

_REASONS: Final = (
    ("HTTP_REQUEST", NOT_TLS),
    ("HTTPS_PROXY_REQUEST", NOT_TLS),
    ("WRONG_VERSION_NUMBER", NOT_TLS),
    ("UNSUPPORTED_PROTOCOL", VERSION),
    ("VERSION_TOO_LOW", VERSION),
    ("NO_SHARED_CIPHER", CIPHER),
    ("NO_SUITABLE_KEY_SHARE", CIPHER),
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", NO_CERTIFICATE),
    ("CERTIFICATE_VERIFY_FAILED", BAD_CERTIFICATE),
    ("ALERT", REFUSED_BY_CLIENT),
)
"""OpenSSL's reasons, the first that is contained in the error's."""
_UNREMARKABLE: Final = frozenset({NEVER_SPOKE, SHUTDOWN})
"""Counted without a line: probes of a load balancer open a connection and close it, every few seconds."""


class TlsListener:
    """What the channels of one listener share. One event loop.

    Made by the server when TLS is configured. :raises SettingsError: a certificate file is wrong.
    """

    def __init__(self, server: KafkaServer, open_connections: Callable[[], int]) -> None:
        settings = server.agent.settings
        self._server = server
        self._open_connections = open_connections
        self._handshake_seconds = settings.tls.handshake_ms / 1000
        self._admitted = frozenset(settings.routing.principals)
        self._metrics = server.metrics
        self.budget = server.agent.budget
        self.now = server.clock.monotonic
        self.certificates = Certificates(settings.tls, server.clock, server.metrics)
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._held_bytes = 0
        self._begun = FairShare(settings.tls.handshakes_max)
        # A pending channel is in one of these. Dicts are in the order in which clients were last waited for.
        self._silent: dict[TlsChannel, None] = {}
        self._unbegun: Turns[TlsChannel] = Turns()
        self._ready: deque[TlsChannel] = deque()
        self._waiting: dict[TlsChannel, float] = {}
        """Has begun and waits for its client since then."""
        self._turn_is_due = False

    @property
    def context(self) -> ssl.SSLContext:
        """For a handshake that begins now."""
        return self.certificates.context

    def make_channel(self) -> TlsChannel:
        """The protocol of a socket just accepted."""
        return TlsChannel(self)

    def charge(self, count: int) -> None:
        """Count so many bytes more (or less) as held."""
        self._held_bytes += count
        if count > 0:
            self.budget.take(PURPOSE, count)
        elif count < 0:
            self.budget.give(PURPOSE, -count)

    # --- what channels call -------------------------------------------------------------------------------

    def accepted(self, channel: TlsChannel) -> None:
        """A socket is there. At the limit of connections, one whose client is waited for makes room."""
        self._metrics.tls_handshakes_pending += 1
        pending = self._metrics.tls_handshakes_pending
        if pending + self._open_connections() > self._server.limits.connections_max:
            idlest = next(iter(self._silent), None) or next(iter(self._waiting), channel)
            self._fail(idlest, NO_ROOM, "connection.connections_max is reached, and this client had not said enough")
        if not channel.gone:
            self._silent[channel] = None

    def spoke(self, channel: TlsChannel) -> None:
        """More of the handshake's bytes are here."""
        if channel.begun:
            del self._waiting[channel]
            self._ready.append(channel)
        else:
            del self._silent[channel]
            self._unbegun.append(channel, channel.peer)
        self._take_turn_soon()

    def lost(self, channel: TlsChannel) -> None:
        """The socket of a channel without a connection is closed."""
        if channel.failure is None:
            silent = channel in self._silent
            self._forget(channel)
            self._report(channel, NEVER_SPOKE if silent else CLOSED, "closed before the handshake was done")

    # --- time ---------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """End handshakes that take too long. Called about once a second."""
        for channel in [*self._silent, *self._waiting]:
            if now - channel.began_at > self._handshake_seconds:
                self._fail(channel, TIMEOUT, f"not done within {self._handshake_seconds:g} s")
        for channel in self._unbegun.pop_those(lambda each: now - each.began_at > self._handshake_seconds):
            if not channel.gone:
                self._fail(channel, NO_ROOM, "tls.handshakes_max or half of memory.budget_bytes is taken")
        if self._unbegun:
            self._take_turn_soon()

    def close(self) -> None:
        """Close every socket whose handshake is not done."""
        for channel in [*self._silent, *self._waiting, *self._unbegun, *self._ready]:
            if not channel.gone:
                self._fail(channel, SHUTDOWN, "the agent is leaving")

    def _take_turn_soon(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Some handshakes' next steps; those that have begun come first, so that their memory is free soon."""
        self._turn_is_due = False
        until = self.now() + TURN_SECONDS
        while self._ready or self._unbegun:
            channel = self._ready.popleft() if self._ready else self._unbegun.pop(self._may_begin)
            if channel is None:
                return  # until one ends, or the next sweep
            if not channel.gone:
                self._advance(channel)
            if self.now() >= until:
                self._take_turn_soon()
                return

    def _may_begin(self, peer: str) -> bool:
        """Whether there is room for one more handshake of ``peer``; makes room if a client has taken its time."""
        if not self._fits(HANDSHAKE_BYTES):
            return self._make_room(self._waiting) and self._may_begin(peer)
        if not self._begun.has_room(peer):
            return self._make_room(each for each in self._waiting if each.peer == peer) and self._may_begin(peer)
        return True

    def _make_room(self, waiting: Iterable[TlsChannel]) -> bool:
        longest = next(iter(waiting), None)
        if longest is None or self.now() - self._waiting[longest] < STALLED_SECONDS:
            return False
        self._fail(longest, NO_ROOM, "others wait for this one's place, and its client for nothing")
        return True

    def _fits(self, count: int) -> bool:
        return self._held_bytes + count <= self.budget.limit_bytes * TLS_SHARE

    # --- one handshake ------------------------------------------------------------------------------------

    def _advance(self, channel: TlsChannel) -> None:
        if not channel.begun:
            channel.begin()
            taken = self._begun.take(channel.peer)
            assert taken, "it was asked whether it may"
        try:
            done = channel.advance()
        except ssl.SSLError as error:
            self._fail(channel, _reason(error), _words(error))
            return
        if not done:
            self._waiting[channel] = self.now()
            return
        names = channel.names()
        if self._admitted and self._admitted.isdisjoint(names):
            self._fail(channel, NOT_ADMITTED, f"routing.principals has none of {', '.join(names) or '(no names)'}")
            return
        self._forget(channel)
        self._metrics.tls_handshakes += 1
        channel.open(Connection(self._server, names))

    def _forget(self, channel: TlsChannel) -> None:
        """The channel's handshake is over, one way or the other. Queues find out by themselves."""
        self._silent.pop(channel, None)
        self._waiting.pop(channel, None)
        self._metrics.tls_handshakes_pending -= 1
        if channel.begun:
            self._begun.give(channel.peer)
            if self._unbegun:
                self._take_turn_soon()

    def _fail(self, channel: TlsChannel, reason: str, detail: str) -> None:
        self._forget(channel)
        self._report(channel, reason, detail)
        channel.fail(reason)

    def _report(self, channel: TlsChannel, reason: str, detail: str) -> None:
        self._metrics.tls_handshakes_failed[reason] += 1
        if reason not in _UNREMARKABLE:
            peer = channel.get_extra_info("peername")
            client = f"/{peer[0]}" if peer else "/unknown"
            self._server.failures.report(f"tls_handshake_failed_{reason}", client=client, reason=detail)


def _reason(error: ssl.SSLError) -> str:
    for part, reason in _REASONS:
        if part in (error.reason or ""):
            return reason
    return PROTOCOL


def _words(error: ssl.SSLError) -> str:
    verify_message = getattr(error, "verify_message", None)
    return verify_message or (error.reason or str(error)).replace("_", " ").lower()
