"""The body of a PUT, sent from the caller's chunks without joining them.

botocore accepts what has ``read``; aiohttp streams what can be iterated asynchronously. This has both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from storage.store import Chunk

PIECE_BYTES = 128 * 1024
"""Chunks smaller than this are gathered: one copy costs less than the writes it saves."""


class ChunkedBody:
    """``chunks``, borrowed; may be sent any number of times."""

    def __init__(self, chunks: Sequence[Chunk], byte_length: int) -> None:
        self._chunks = chunks
        self._byte_length = byte_length

    def __len__(self) -> int:
        return self._byte_length

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._stream()

    def read(self, size: int = -1) -> bytes:
        """botocore asks whether this exists; it would call it only to sign the payload, which is turned off."""
        raise RuntimeError("the body is streamed; payload signing must be off")

    def seek(self, position: int) -> None:
        """Before the body is sent again (a redirect): every iteration starts at the beginning anyhow."""
        assert position == 0

    async def _stream(self) -> AsyncIterator[Chunk]:
        for piece in pieces(self._chunks):
            yield piece


def pieces(chunks: Sequence[Chunk]) -> Iterator[Chunk]:
    """The same bytes in the same order, small chunks gathered to about ``PIECE_BYTES``, large ones as they are."""
    small: list[Chunk] = []
    small_bytes = 0
    for chunk in chunks:
        if small and small_bytes + len(chunk) > PIECE_BYTES:
            yield b"".join(small)
            small, small_bytes = [], 0
        if len(chunk) >= PIECE_BYTES:
            yield chunk
        elif chunk:
            small.append(chunk)
            small_bytes += len(chunk)
    if small:
        yield b"".join(small)
