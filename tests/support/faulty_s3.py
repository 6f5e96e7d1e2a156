"""A real S3 server behind a proxy that fails at random: before effect, after effect, by throttling, by silence."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from collections.abc import Mapping

from tests.integration.s3_proxy import Act, Seen, run_proxy

FLAKY: Mapping[Act, float] = {
    Act.INTERNAL_ERROR: 0.08,
    Act.ERROR_AFTER: 0.08,
    Act.LOSE_ANSWER: 0.08,
    Act.SLOW_DOWN: 0.08,
    Act.HANG: 0.02,
}
"""A third of all requests goes wrong."""


class FaultyS3:
    """A proxy on a thread of its own. Each request draws its fate; :meth:`set_faults` changes the odds at any time."""

    def __init__(self, upstream: str, rng: random.Random) -> None:
        self.endpoint = ""
        self.counts: Counter[Act] = Counter()
        self._upstream = upstream
        self._rng = rng
        self._faults: dict[Act, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="faulty-s3", daemon=True)

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        assert self._listening.wait(20), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def set_faults(self, faults: Mapping[Act, float]) -> None:
        """From now on each act happens with its probability; what is left of 1 passes."""
        assert sum(faults.values()) <= 1.0 + 1e-9
        self._faults = dict(faults)

    def draw(self) -> Act:
        """The fate of one request."""
        number = self._rng.random()
        for act, probability in self._faults.items():
            if number < probability:
                return act
            number -= probability
        return Act.PASS

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with run_proxy(self._upstream) as proxy:
            proxy.script = _Draws(self)
            proxy.seen = _Forgetful()
            self.endpoint = proxy.endpoint
            self._listening.set()
            await self._stop.wait()


class _Draws(deque[Act]):
    """A script without end, written as it is read."""

    def __init__(self, owner: FaultyS3) -> None:
        super().__init__()
        self._owner = owner

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Act:
        act = self._owner.draw()
        self._owner.counts[act] += 1
        return act


class _Forgetful(list[Seen]):
    """Keeps no bodies: a load test sends gigabytes."""

    def append(self, _: Seen) -> None:
        return
