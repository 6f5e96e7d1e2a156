"""The body of a GET, received straight into the memory it is to stay in.

aiohttp cuts a body into ``bytes`` as they arrive, collects and joins them: three copies beyond the kernel's, and the
reader is woken for each piece. For a block of 4 MiB that is more CPU than the rest of its request. So once aiohttp has
read the head of the answer, its connection is lent, for as long as the body takes, to a protocol that receives
into one buffer (``asyncio.BufferedProtocol``, plain and TLS). Then the connection goes back to aiohttp's pool.
"""

from __future__ import annotations

import asyncio
from io import BytesIO

from aiohttp import ClientPayloadError, ClientResponse, StreamReader


async def receive_body(response: ClientResponse, byte_length: int) -> bytes:
    """The body of ``response``, of which nothing has been read; ``byte_length`` is its Content-Length.

    The caller has a deadline: aiohttp's own does not see what arrives here. After an error, or when this is
    cancelled, the connection is of no more use: close ``response``.

    :raises aiohttp.ClientError: the connection broke.
    """
    content = response.content
    arrived: list[bytes] = []
    while piece := content.read_nowait():  # which makes room in aiohttp's buffer, and may bring in more
        arrived.append(piece)
    connection = response.connection
    if connection is None:  # back in the pool already: that was all of it
        body = b"".join(arrived)
        if len(body) != byte_length:
            raise ClientPayloadError(f"{len(body)} of {byte_length} bytes arrived")
        return body
    transport, owner = connection.transport, connection.protocol
    if transport is None or owner is None:
        raise ClientPayloadError("the connection was lost")
    return await _Body(transport, owner, content, byte_length, arrived).receive()


class _Body(asyncio.BufferedProtocol):
    """Has ``owner``'s transport from :meth:`receive` on, until the body is complete, lost or given up."""

    def __init__(
        self,
        transport: asyncio.Transport,
        owner: asyncio.Protocol,
        content: StreamReader,
        byte_length: int,
        arrived: list[bytes],
    ) -> None:
        self._transport = transport
        self._owner = owner
        self._content = content
        self._byte_length = byte_length
        # Not a bytearray, which would have to be copied to become bytes: BytesIO hands its own out.
        self._memory = BytesIO()
        self._memory.seek(byte_length - 1)
        self._memory.write(b"\0")
        self._memory.seek(0)
        self._memory.writelines(arrived)
        self._filled = self._memory.tell()
        self._view = self._memory.getbuffer()
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive(self) -> bytes:
        self._hand_transport_to(self)
        try:
            await self._complete
        except asyncio.CancelledError:
            if self._complete.cancelled():  # else the transport is the pool's, or somebody else's, already
                self._hand_transport_to(self._owner)
            raise
        finally:
            self._view.release()
        return self._memory.getvalue()

    def get_buffer(self, _size_hint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, byte_count: int) -> None:
        self._filled += byte_count
        if self._filled == self._byte_length and not self._complete.done():
            self._hand_transport_to(self._owner)
            self._content.feed_eof()  # as aiohttp's parser would: the connection goes back to the pool
            self._complete.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.connection_lost(error)
        if not self._complete.done():
            why = str(error or "closed by the server")
            self._complete.set_exception(
                ClientPayloadError(f"{self._filled} of {self._byte_length} bytes arrived: {why}")
            )

    def _hand_transport_to(self, protocol: asyncio.BaseProtocol) -> None:
        if self._transport.is_closing():
            self._transport.set_protocol(protocol)
            return
        # Paused and resumed because uvloop looks at the kind of the protocol when reading starts.
        self._transport.pause_reading()
        self._transport.set_protocol(protocol)
        self._transport.resume_reading()
