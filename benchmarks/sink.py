"""The limit: an asyncio+uvloop server that reads length-prefixed frames and answers each with a fixed Produce 7 answer.

It parses nothing but the length. No Python server on one core can take bytes in faster than this.
"""

from __future__ import annotations

import asyncio
import struct
import sys

import uvloop

READ_BYTES = 256 * 1024


class Sink(asyncio.BufferedProtocol):
    """Large frames are received straight into one reused buffer; only the lengths are looked at."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._skip = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, _hint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, count: int) -> None:
        answers = 0
        if self._skip:
            taken = min(self._skip, count)
            self._skip -= taken
            answers += self._skip == 0
            position, end = taken, count
        else:
            position, end = 0, self._filled + count
        while end - position >= 4:
            (length,) = struct.unpack_from(">i", self._buffer, position)
            if end - position < 4 + length:
                if length > READ_BYTES // 2:
                    self._skip = 4 + length - (end - position)
                    position = end
                break
            position += 4 + length
            answers += 1
        self._filled = end - position
        if self._filled:
            self._buffer[: self._filled] = self._buffer[position:end]
        if answers:
            self._transport.write(ANSWER * answers)


ANSWER = struct.pack(">ii", 4, 1)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(serve(int(sys.argv[1])))
