from __future__ import annotations

from agent.fetch.cache import JOIN_BELOW_BYTES, WriterSegment


def read(segment: WriterSegment, position: int, length: int) -> bytes | None:
    views = segment.read(position, length)
    return None if views is None else b"".join(views)


def test_small_chunks_are_joined_and_large_ones_are_not_copied() -> None:
    small = WriterSegment([(100 + index * 3, b"abc") for index in range(1000)])
    views = small.read(100, 3000)
    assert views is not None and len(views) == 1
    large = [bytes([index]) * JOIN_BELOW_BYTES for index in range(3)]
    segment = WriterSegment([(index * JOIN_BELOW_BYTES, chunk) for index, chunk in enumerate(large)])
    views = segment.read(0, 3 * JOIN_BELOW_BYTES)
    assert views is not None and [view.obj for view in views] == large


def test_any_range_can_be_read_and_nothing_beyond() -> None:
    data = bytes(range(256)) * 100
    for size in (100, 10_000):
        segment = WriterSegment([(1000 + at, data[at : at + size]) for at in range(0, len(data), size)])
        for position, length in ((1000, 25_600), (1000, 1), (1050, 200), (11_000, 10_000), (26_599, 1)):
            assert read(segment, position, length) == data[position - 1000 : position - 1000 + length]
        for position, length in ((999, 5), (1000, 25_601), (26_600, 1)):
            assert read(segment, position, length) is None


def test_gaps_are_not_bridged() -> None:
    segment = WriterSegment([(0, b"a" * 10), (20, b"b" * 10)])
    assert read(segment, 0, 10) == b"a" * 10
    assert read(segment, 20, 10) == b"b" * 10
    assert read(segment, 5, 10) is None
    assert read(segment, 12, 3) is None
