"""Rendezvous hashing: who of several agents something belongs to, the same answer on every agent. Pure.

Each (thing, agent) pair has a score; the highest wins. When an agent comes or goes, only what it wins or had moves
(Thaler and Ravishankar, 1998). Scores mix the CRC32C of the thing with the agent's node id; a CRC alone would not do,
for CRCs of two agents differ by the same bits for every thing.

Thousands of things in a row (the partitions of a topic) are shared out four times as fast by :func:`highest_of_many`,
whose scores are the bits of an extendable hash: an agent's for all of them come from one call.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from hashlib import shake_128

from crc32c import crc32c

_MASK = 0xFFFF_FFFF


def seed(node_id: int) -> int:
    """An agent's share of every score; worth keeping when many things are asked about."""
    return _mixed(node_id * 0x9E37_79B1 & _MASK)


def highest(thing: bytes, seeds: Sequence[int]) -> int:
    """The index of the agent in ``seeds`` that ``thing`` belongs to; the first of equals."""
    return highest_of(crc32c(thing), seeds)


def highest_of(crc: int, seeds: Sequence[int]) -> int:
    """As :func:`highest`, for a thing whose CRC32C is known."""
    best, best_score = 0, -1
    for index, each in enumerate(seeds):
        score = (crc ^ each) * 0x85EB_CA6B & _MASK  # the first half of MurmurHash3's finalizer, inlined: hot
        score = (score ^ score >> 13) * 0xC2B2_AE35 & _MASK
        if score > best_score:
            best, best_score = index, score
    return best


def ranked(thing: bytes, seeds: Sequence[int]) -> list[int]:
    """Indexes of all agents: the one :func:`highest` names first, then who would follow it."""
    crc = crc32c(thing)
    scores = [_mixed_further(crc ^ each) for each in seeds]
    return sorted(range(len(seeds)), key=lambda index: (-scores[index], index))


def highest_of_many(things: bytes, count: int, seeds: Sequence[int]) -> list[int]:
    """For each of ``count`` things that ``things`` names together, the index of its agent; the first of equals.

    The first of them are the same for any ``count``. About 1 + n / 10 microseconds each with n agents.
    """
    if len(seeds) == 1:
        return [0] * count
    columns = []
    for each in seeds:
        scores = array("I", shake_128(each.to_bytes(4, "big") + things).digest(4 * count))
        if sys.byteorder == "big":
            scores.byteswap()
        columns.append(scores)
    return [row.index(max(row)) for row in zip(*columns, strict=True)]


def _mixed_further(value: int) -> int:
    value = value * 0x85EB_CA6B & _MASK
    return (value ^ value >> 13) * 0xC2B2_AE35 & _MASK


def _mixed(value: int) -> int:
    value = (value ^ value >> 16) * 0x85EB_CA6B & _MASK
    value = (value ^ value >> 13) * 0xC2B2_AE35 & _MASK
    return value ^ value >> 16
