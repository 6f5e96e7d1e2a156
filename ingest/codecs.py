"""Kafka's four compression codecs over plain bytes, as real clients write and read them, with bounded output.

What differs from the textbook formats:

- **snappy**: Java, kafka-python, aiokafka and sarama write "xerial" framing (16-byte header, then big-endian
  length and raw block, blocks of 32 KiB); librdkafka and franz-go write one raw block. Both are read; xerial
  is written.
- **lz4**: an LZ4 frame; Java's reader (KafkaLZ4BlockInputStream, KIP-57) takes only independent blocks, so those
  are written. Linked ones are read.

No output is produced beyond the limit: each codec's own length fields are checked before it is trusted with memory.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator

import cramjam
import zstandard

from ingest.batch_header import ExpansionLimit, MalformedRecords
from storage.store import Chunk


class Codec(enum.IntEnum):
    """The number in the three lowest attribute bits of a batch."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


XERIAL_MAGIC = b"\x82SNAPPY\0"
XERIAL_HEADER = XERIAL_MAGIC + struct.pack(">ii", 1, 1)
XERIAL_BLOCK_BYTES = 32 * 1024

_GZIP_WBITS = 31
_GZIP_LEVEL = 6
_LZ4_MAGIC = 0x184D2204
_LZ4_BLOCK_BYTES = {4: 64 << 10, 5: 256 << 10, 6: 1 << 20, 7: 4 << 20}
_LZ4_UNCOMPRESSED_BIT = 0x8000_0000
_LZ4_EXPANSION_MAX = 255
"""An LZ4 sequence adds at most 255 bytes of output per byte of input."""
_LZ4_LEVEL = 9
_ZSTD_LEVEL = 3
_ZSTD_PIECE_BYTES = 1 << 20
_ZSTD_WINDOW_BYTES_MAX = 32 << 20


def decompress(codec: Codec, data: Chunk, bytes_max: int) -> bytes:
    """The plain bytes of ``data``, at most ``bytes_max`` of them.

    :raises ExpansionLimit: there would be more.
    :raises MalformedRecords: ``data`` is not in this codec's format.
    """
    try:
        match codec:
            case Codec.NONE:
                plain = bytes(data)
            case Codec.GZIP:
                plain = _gunzip(data, bytes_max)
            case Codec.SNAPPY:
                plain = _unsnappy(memoryview(data), bytes_max)
            case Codec.LZ4:
                plain = _unlz4(memoryview(data), bytes_max)
            case Codec.ZSTD:
                plain = _unzstd(data, bytes_max)
    except (zlib.error, cramjam.DecompressionError, zstandard.ZstdError, struct.error) as error:
        raise MalformedRecords(f"not {codec.name.lower()} data: {error}") from None
    _limit(len(plain), bytes_max)
    return plain


def compress(codec: Codec, plain: Chunk) -> bytes:
    """``plain`` as Java and librdkafka read it."""
    match codec:
        case Codec.NONE:
            return bytes(plain)
        case Codec.GZIP:
            return bytes(cramjam.gzip.compress(plain, level=_GZIP_LEVEL))
        case Codec.SNAPPY:
            return _xerial(memoryview(plain))
        case Codec.LZ4:
            compressor = cramjam.lz4.Compressor(level=_LZ4_LEVEL, content_checksum=False, block_linked=False)
            compressor.compress(plain)
            return bytes(compressor.finish())
        case Codec.ZSTD:
            return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plain)


def _limit(length: int, bytes_max: int) -> None:
    if length > bytes_max:
        raise ExpansionLimit(f"records take more than {bytes_max} bytes uncompressed")


def _gunzip(data: Chunk, bytes_max: int) -> bytes:
    members = []
    rest: Chunk = data
    length = 0
    while rest:
        decompressor = zlib.decompressobj(_GZIP_WBITS)
        # One byte more than allowed tells "exactly the limit" from "beyond it".
        plain = decompressor.decompress(rest, bytes_max - length + 1)
        length += len(plain)
        _limit(length, bytes_max)
        if not decompressor.eof:
            raise MalformedRecords("gzip data ends early")
        members.append(plain)
        rest = decompressor.unused_data
    if not members:
        raise MalformedRecords("no gzip data")
    return b"".join(members)


def _unsnappy(data: memoryview, bytes_max: int) -> bytes:
    if bytes(data[: len(XERIAL_MAGIC)]) != XERIAL_MAGIC:
        return _unsnappy_block(data, bytes_max)
    if len(data) < len(XERIAL_HEADER):
        raise MalformedRecords("snappy framing ends early")
    blocks = []
    length = 0
    position = len(XERIAL_HEADER)
    while position < len(data):
        (block_bytes,) = struct.unpack_from(">i", data, position)
        position += 4
        if not 0 < block_bytes <= len(data) - position:
            raise MalformedRecords(f"snappy block of {block_bytes} bytes in {len(data) - position}")
        block = _unsnappy_block(data[position : position + block_bytes], bytes_max - length)
        length += len(block)
        blocks.append(block)
        position += block_bytes
    return b"".join(blocks)


def _unsnappy_block(block: memoryview, bytes_max: int) -> bytes:
    _limit(cramjam.snappy.decompress_raw_len(block), bytes_max)
    return bytes(cramjam.snappy.decompress_raw(block))


def _xerial(plain: memoryview) -> bytes:
    out = bytearray(XERIAL_HEADER)
    for start in range(0, len(plain), XERIAL_BLOCK_BYTES):
        block = cramjam.snappy.compress_raw(plain[start : start + XERIAL_BLOCK_BYTES])
        out += struct.pack(">i", len(block))
        out += block
    return bytes(out)


def _unlz4(data: memoryview, bytes_max: int) -> bytes:
    _limit_lz4(data, bytes_max)
    return bytes(cramjam.lz4.decompress(data))


def _limit_lz4(data: memoryview, bytes_max: int) -> None:
    """Bound the output by walking the frame's block headers: no block yields more than its frame's block size, nor
    more than 255 bytes per byte. The last block of an honest frame is seldom full, so one more passes here.
    See the LZ4 frame format description, "Frame descriptor" and "Data blocks"."""
    magic, flags, descriptor = struct.unpack_from("<IBB", data, 0)
    block_bytes_max = _LZ4_BLOCK_BYTES.get(descriptor >> 4 & 7)
    if magic != _LZ4_MAGIC or flags >> 6 != 1 or block_bytes_max is None:
        raise MalformedRecords("not an lz4 frame")
    block_checksum_bytes = 4 if flags & 0x10 else 0
    position = 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    length = 0
    while True:
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == 0:
            break
        stored = size & ~_LZ4_UNCOMPRESSED_BIT
        if size & _LZ4_UNCOMPRESSED_BIT:
            length += stored
        else:
            length += min(block_bytes_max, stored * _LZ4_EXPANSION_MAX)
        position += stored + block_checksum_bytes
        _limit(length - block_bytes_max, bytes_max)
    if position + (4 if flags & 0x04 else 0) != len(data):
        raise MalformedRecords("bytes after the lz4 frame")


def _unzstd(data: Chunk, bytes_max: int) -> bytes:
    """One frame, as every producer writes it. The streaming reader would take a truncated frame for a short one."""
    _limit(max(0, zstandard.frame_content_size(data)), bytes_max)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    try:
        return decompressor.decompress(data, max_output_size=bytes_max, allow_extra_data=False)
    except zstandard.ZstdError:
        with decompressor.stream_reader(data) as reader:
            _limit(sum(len(piece) for piece in _pieces(reader, bytes_max + 1)), bytes_max)
        raise


def _pieces(reader: zstandard.ZstdDecompressionReader, bytes_max: int) -> Iterator[bytes]:
    left = bytes_max
    while left > 0 and (piece := reader.read(min(_ZSTD_PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
