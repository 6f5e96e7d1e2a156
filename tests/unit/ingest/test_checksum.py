from __future__ import annotations

import random

import crc32c
import pytest

from ingest.checksum import combine


@pytest.mark.parametrize("length", [0, 1, 2, 255, 256, 257, 65_535, 65_536, 1_000_003, 1 << 24, (1 << 24) + 12_345])
def test_combined_checksums_are_those_of_the_whole(length: int) -> None:
    generator = random.Random(length)
    for head in (b"", b"x", generator.randbytes(1000)):
        tail = generator.randbytes(length)
        assert combine(crc32c.crc32c(head), crc32c.crc32c(tail), length) == crc32c.crc32c(head + tail)
