"""Splitting a stream of bytes into frames, however it is cut."""

from __future__ import annotations

import gc
import struct
from pathlib import Path

import pytest

from agent.wire.frames import LAZY_BYTES_MIN, PROBE_BYTES, SCRATCH_BYTES, Block, FrameSplitter, Scratch

LIMIT = 100 * 1024 * 1024


def frame(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload


def feed(splitter: FrameSplitter, data: bytes, *, sparing: bool = False, piece: int = 1 << 30) -> list[bytes]:
    """What comes out when a transport reads ``data``, at most ``piece`` bytes at a time."""
    found: list[bytes] = []
    position = 0
    while position < len(data):
        if splitter.wanted_bytes:
            splitter.begin_frame()
        buffer = splitter.read_buffer(sparing)
        assert len(buffer) > 0
        count = min(len(buffer), len(data) - position, piece)
        buffer[:count] = data[position : position + count]
        position += count
        block = splitter.received(count)
        if block is not None:
            found += contents(block)
    return found


def contents(block: Block) -> list[bytes]:
    return [bytes(block.buffer[slice(*block.take())]) for _ in range(block.pending)]


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 1000, 1 << 30])
@pytest.mark.parametrize("sparing", [False, True])
def test_frames_come_out_whole_and_in_order_however_they_arrive(piece: int, sparing: bool) -> None:
    payloads = [bytes([number]) * length for number, length in enumerate((8, 9, 500, 8, 5000, 70, 8))]
    splitter = FrameSplitter(Scratch(), LIMIT)
    assert feed(splitter, b"".join(map(frame, payloads)), piece=piece, sparing=sparing) == payloads
    assert not splitter.mid_frame


def test_large_frames_follow_each_other_without_being_copied_twice() -> None:
    splitter = FrameSplitter(Scratch(), LIMIT)
    payloads = [bytes([number]) * (SCRATCH_BYTES * 2 + number) for number in range(3)]
    assert feed(splitter, b"".join(map(frame, payloads))) == payloads
    assert len(splitter.read_buffer(False)) == PROBE_BYTES, "the next large frame is only probed before it is received"


def test_small_frames_of_one_read_share_one_block() -> None:
    splitter = FrameSplitter(Scratch(), LIMIT)
    data = frame(b"x" * 20) * 100
    splitter.read_buffer(False)[: len(data)] = data
    block = splitter.received(len(data))
    assert block is not None
    assert block.pending == block.open_requests == 100
    assert block.byte_length == len(data) == len(block.buffer)


@pytest.mark.parametrize("length", [-1, -(2**31), 0, 7, LIMIT + 1, 2**31 - 1])
def test_an_impossible_length_ends_the_stream(length: int) -> None:
    splitter = FrameSplitter(Scratch(), LIMIT)
    data = frame(b"12345678") + struct.pack(">i", length) + b"more"
    splitter.read_buffer(False)[: len(data)] = data
    block = splitter.received(len(data))
    assert block is not None and contents(block) == [b"12345678"], "what came before it is whole"
    assert splitter.failure == f"a frame of {length} bytes"
    assert not splitter.mid_frame


def test_a_very_large_frame_costs_nothing_before_its_bytes_come() -> None:
    """Announcing 100 MiB must not make us touch 100 MiB."""
    splitter = FrameSplitter(Scratch(), LIMIT)
    before = resident_bytes()
    splitter.read_buffer(False)[:4] = struct.pack(">i", LIMIT)
    assert splitter.received(4) is None
    assert splitter.wanted_bytes == LIMIT + 4
    splitter.begin_frame()
    assert splitter.frame_bytes == LIMIT + 4
    assert resident_bytes() - before < LIMIT // 10


def test_a_lazily_mapped_frame_comes_out_whole() -> None:
    payload = bytes(range(256)) * (LAZY_BYTES_MIN // 256 + 1)
    assert feed(FrameSplitter(Scratch(), LIMIT), frame(payload) + frame(b"y" * 10), piece=1 << 20) == [
        payload,
        b"y" * 10,
    ]


def test_idle_connections_share_the_read_buffer() -> None:
    scratch = Scratch()
    splitters = [FrameSplitter(scratch, LIMIT) for _ in range(1000)]
    gc.collect()
    for number, splitter in enumerate(splitters):
        data = frame(b"%08d" % number)
        splitter.read_buffer(False)[: len(data)] = data
        block = splitter.received(len(data))
        assert block is not None and contents(block) == [b"%08d" % number]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
