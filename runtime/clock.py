"""Time and randomness, as ports: the only place that may ask the machine for either.

A component takes a :class:`Clock` and an :class:`Entropy`; the simulation passes its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from typing import Protocol


class Clock(Protocol):
    """Where a component learns what time it is."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since the Unix epoch (what Kafka timestamps use). May jump."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back. For durations and deadlines."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; cancellation ends the wait at once."""


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Entropy(Protocol):
    """Where a component gets ids and random numbers."""

    def uuid_bytes(self) -> bytes:
        """16 bytes of a version 4 UUID; never all zero and never Kafka's reserved id 1."""

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high], for jitter."""


class SystemEntropy:
    """The machine's randomness."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))

    def uuid_bytes(self) -> bytes:
        return uuid.uuid4().bytes

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class SeededEntropy:
    """Repeatable randomness for tests and the simulation."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def uuid_bytes(self) -> bytes:
        return uuid.UUID(int=self._random.getrandbits(128), version=4).bytes

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)
