"""Rendezvous hashing: who of several agents something belongs to, the same answer on every agent. Pure.

Each (thing, agent) pair has a score; the highest wins. When an agent comes or goes, only what it wins or had moves
(Thaler and Ravishankar, 1998). Scores mix the CRC32C of the thing with the agent's node id; a CRC alone would not do,
for CRCs of two agents differ by the same bits for every thing.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def _mixed(value: int) -> int:
    value = (value ^ value >> 16) * 0x85EB_CA6B & _MASK
    value = (value ^ value >> 13) * 0xC2B2_AE35 & _MASK
    return value ^ value >> 16
