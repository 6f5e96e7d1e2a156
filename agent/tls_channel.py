"""One client's TLS: a protocol to the socket's transport below, a transport to the Kafka connection above.

Neither asyncio's nor uvloop's TLS would do: each connection has a read buffer of 256 KiB there, and an answer is
encrypted whole, into memory that no budget knows of, however slowly its client reads. Here all connections of a loop
share the memory that ciphertext passes through, and answers are encrypted as fast as the socket takes them.

What lies between the two sides at any time, and is counted as "tls" (:meth:`TlsChannel.get_write_buffer_size` tells of
the way out):

=====================  ==========================================================================================
in, on the way         nothing: a read is decrypted record by record, into the buffers of the connection above
in, while not read     the rest of one read, and OpenSSL's record
out                    :data:`CIPHERTEXT_BYTES_MAX` and one piece; the rest stays as it was handed over
OpenSSL's state        :data:`HANDSHAKE_BYTES` until the handshake is done, then :data:`OPEN_BYTES`
=====================  ==========================================================================================

The shared memory BIOs are empty whenever anything else than this module runs: a whole record is fed, and OpenSSL has
taken all of it before its plaintext is handed up; what it has to send is taken out after each call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, cast

from agent.certificates import certificate_names
from runtime.shares import peer_of

if TYPE_CHECKING:
    from agent.connection import Connection
    from agent.tls import TlsListener

CIPHERTEXT_BYTES_MAX: Final = 256 * 1024
"""Beyond it the socket's transport is given no more until its client has taken most of it."""
PIECE_BYTES: Final = 64 * 1024
"""Plaintext encrypted in one call: four full records."""
SPARING_BYTES: Final = 4 * 1024
"""Read at once during a handshake and while memory is short."""
HANDSHAKE_BYTES: Final = 160 * 1024
"""OpenSSL's memory during a handshake: 45 KiB measured, and what it reserves for the longest message it accepts."""
OPEN_BYTES: Final = 20 * 1024
"""OpenSSL's memory for an established connection: 14 KiB measured, 19 KiB with a client's certificate."""
RECORD_BYTES: Final = 17 * 1024
"""OpenSSL's memory for a record that has begun."""
BROKEN_TLS: Final = "tls"
"""Why a connection is closed whose client sent what is not TLS, or too little of it: a metric's label."""

_HEADER_BYTES: Final = 5


class TlsChannel(asyncio.BufferedProtocol, asyncio.Transport):
    """See the module's text. One per accepted socket; ``listener`` is what all of them share. One event loop."""

    __slots__ = (
        "_backlog",
        "_backlog_bytes",
        "_charged_bytes",
        "_closing",
        "_connection",
        "_header",
        "_listener",
        "_lost",
        "_raw",
        "_raw_paused",
        "_reading",
        "_record_left",
        "_rest",
        "_ssl",
        "_state_bytes",
        "began_at",
        "begun",
        "failure",
        "peer",
    )

    def __init__(self, listener: TlsListener) -> None:
        self._listener = listener
        self._raw = cast(asyncio.Transport, None)  # until connection_made
        self._ssl = cast(ssl.SSLObject, None)  # until begin
        self._connection: Connection | None = None
        self._rest = b""
        """Ciphertext received and not yet fed."""
        self._header = b""
        self._record_left = 0
        """Of the record being fed: its header as far as it is here, then the bytes still to come."""
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._state_bytes = 0
        self._charged_bytes = 0
        self._reading = True
        self._raw_paused = False
        self._closing = False
        self._lost = False
        self.began_at = listener.now()
        """Monotonic seconds: when the socket was accepted, then when the handshake began."""
        self.begun = False
        """Whether OpenSSL's side of it has been made."""
        self.peer = ""
        """Whom this client counts as."""
        self.failure: str | None = None
        """The listener's word for why the handshake failed, once it has."""

    # --- the handshake, driven by the listener ------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether the socket is closed or about to be."""
        return self._lost or self._closing

    def begin(self) -> None:
        """Make OpenSSL's side of the connection."""
        listener = self._listener
        self._ssl = listener.context.wrap_bio(listener.incoming, listener.outgoing, server_side=True)
        self.begun = True
        self._state_bytes = HANDSHAKE_BYTES
        self.began_at = listener.now()
        self._settle()

    def advance(self) -> bool:
        """Take the handshake as far as the bytes received allow; whether it is done.

        :raises ssl.SSLError: it failed. What OpenSSL has to say to the client has been written.
        """
        listener = self._listener
        view = memoryview(self._rest)
        position, done = 0, False
        try:
            while position < len(view) and not done:
                position = self._feed(view, position)
                try:
                    self._ssl.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    pass
        finally:
            self._rest = bytes(view[position:])
            listener.incoming.read()
            self._send()
        if not done:
            self._settle()
            self._read_on()
        return done

    def names(self) -> tuple[str, ...]:
        """The names in the client's certificate."""
        return certificate_names(self._ssl.getpeercert())

    def open(self, connection: Connection) -> None:
        """The handshake is done: from now on this is ``connection``'s transport."""
        self._state_bytes = OPEN_BYTES
        self._connection = connection
        connection.connection_made(self)
        self._resume()

    def fail(self, failure: str) -> None:
        """Close a socket whose handshake failed, after what has been written."""
        self.failure = failure
        self._closing = True
        self._raw.close()

    # --- the socket's side --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._raw.set_write_buffer_limits(high=CIPHERTEXT_BYTES_MAX)
        address = transport.get_extra_info("peername")
        self.peer = peer_of(address[0] if address else None)
        self._listener.accepted(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._backlog.clear()
        self._backlog_bytes = 0
        self._state_bytes = 0
        self._rest = b""
        self._listener.charge(-self._charged_bytes)
        self._charged_bytes = 0
        connection, self._connection = self._connection, None
        self._ssl = cast(ssl.SSLObject, None)  # no cycle for the collector to find
        if connection is not None:
            connection.connection_lost(error)
        else:
            self._listener.lost(self)

    def eof_received(self) -> bool:
        """As in the connection above. An end without TLS's own is no reason for a complaint: many clients do it."""
        return False

    def get_buffer(self, _sizehint: int) -> memoryview:
        listener = self._listener
        if self._connection is None or listener.budget.exhausted:
            return listener.scratch[:SPARING_BYTES]
        return listener.scratch

    def buffer_updated(self, count: int) -> None:
        view = self._listener.scratch[:count]
        if self._connection is not None:
            self._take_in(view)
        elif not self._closing:
            self._rest = bytes(view)
            self._raw.pause_reading()
            self._listener.spoke(self)

    def pause_writing(self) -> None:
        self._raw_paused = True
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._raw_paused = False
        if self._lost:
            return
        self._encrypt()
        if not self._raw_paused and self._connection is not None and not self._lost:
            self._connection.resume_writing()

    # --- in -----------------------------------------------------------------------------------------------

    def _feed(self, view: memoryview, position: int) -> int:
        """Give OpenSSL what there is of one record, from ``position`` on; where the next begins."""
        end = position
        if self._record_left == 0:
            end += min(_HEADER_BYTES - len(self._header), len(view) - position)
            self._header += view[position:end]
            if len(self._header) == _HEADER_BYTES:
                self._record_left = self._header[3] << 8 | self._header[4]
                self._header = b""
        here = min(self._record_left, len(view) - end)
        self._record_left -= here
        end += here
        self._listener.incoming.write(view[position:end])
        return end

    def _take_in(self, view: memoryview) -> None:
        """Decrypt ``view`` and hand it up, as far as the connection wants it; the rest waits until it does."""
        position = 0
        try:
            while position < len(view):
                position = self._feed(view, position)
                if not self._hand_up():
                    break
        except ssl.SSLError as error:
            self._broken(error)
        if not self._lost:
            self._rest = bytes(view[position:])
            self._settle()

    def _hand_up(self) -> bool:
        """Hand up what OpenSSL has decrypted; whether it wants more of the client's bytes."""
        connection, ssl_object, listener = self._connection, self._ssl, self._listener
        assert connection is not None
        while self._reading and not self._closing:
            buffer = connection.get_buffer(-1)
            try:
                count = cast(int, ssl_object.read(len(buffer), cast(bytearray, buffer)))
            except ssl.SSLWantReadError:
                count = -1
            finally:
                if listener.outgoing.pending:
                    self._send()
            if count == -1:
                return True
            assert not listener.incoming.pending, "OpenSSL takes all of a record at once"
            if count == 0:
                self.close()  # the client said that it is done
                return False
            connection.buffer_updated(count)
            if not ssl_object.pending():
                return self._reading and not self._closing
        return False

    def _broken(self, error: ssl.SSLError) -> None:
        listener = self._listener
        listener.incoming.read()
        assert self._connection is not None
        self._connection.broken(BROKEN_TLS, error.reason or str(error))

    def _resume(self) -> None:
        """Hand up what was received before reading was paused, then read on."""
        if self._lost or self._closing or not self._reading:
            return
        try:
            drained = self._hand_up()
        except ssl.SSLError as error:
            self._broken(error)
            return
        if drained:
            rest, self._rest = self._rest, b""
            self._take_in(memoryview(rest))
        if self._reading and not self._rest:
            self._read_on()

    def _read_on(self) -> None:
        if not self.is_closing():
            self._raw.resume_reading()

    # --- out ----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Write what OpenSSL has put out."""
        data = self._listener.outgoing.read()
        if data and not self._lost and not self._raw.is_closing():
            self._raw.write(data)

    def _encrypt(self) -> None:
        """Encrypt as much as the socket's transport takes."""
        while self._backlog and not self._raw_paused and not self._lost:
            piece = self._next_piece()
            self._backlog_bytes -= len(piece)
            self._ssl.write(piece)
            self._send()
        if self._closing and not self._backlog and not self._raw.is_closing():
            self._say_goodbye()
        self._settle()

    def _next_piece(self) -> memoryview | bytes:
        backlog = self._backlog
        first = backlog[0]
        if len(first) > PIECE_BYTES:
            backlog[0] = first[PIECE_BYTES:]
            return first[:PIECE_BYTES]
        backlog.popleft()
        if not backlog:
            return first
        parts, left = [first], PIECE_BYTES - len(first)  # small ones together: each call makes a record
        while backlog and left:
            part = backlog[0][:left]
            parts.append(part)
            left -= len(part)
            if len(part) == len(backlog[0]):
                backlog.popleft()
            else:
                backlog[0] = backlog[0][len(part) :]
        return b"".join(parts)

    def _say_goodbye(self) -> None:
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # the client's own goodbye is not waited for
        finally:
            self._listener.incoming.read()
            self._send()
        self._raw.close()

    def _settle(self) -> None:
        """Count what is held now."""
        if self._lost:
            return
        held = self._state_bytes + len(self._rest) + self._raw.get_write_buffer_size()
        if self._record_left or self._header:
            held += RECORD_BYTES
        if held != self._charged_bytes:
            change, self._charged_bytes = held - self._charged_bytes, held
            self._listener.charge(change)

    # --- the transport of the connection above ------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """The chunks are kept as they are until they are encrypted, not copied."""
        if self.is_closing():
            return
        for chunk in list_of_data:
            if len(chunk):
                self._backlog.append(memoryview(chunk))
                self._backlog_bytes += len(chunk)
        self._encrypt()

    def get_write_buffer_size(self) -> int:
        self._settle()
        return self._backlog_bytes + self._raw.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._closing or self._lost or self._raw.is_closing()

    def pause_reading(self) -> None:
        self._reading = False
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        # Not now: whoever gave memory back has not finished, and what is handed up may need it.
        asyncio.get_running_loop().call_soon(self._resume)

    def close(self) -> None:
        """Close after everything written has left."""
        if self._closing:
            return
        self._closing = True
        if not self._raw.is_closing():
            self._raw.pause_reading()
        self._encrypt()

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()
