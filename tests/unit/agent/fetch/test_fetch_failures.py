"""Fetches that fail again and again: the log says so, but does not grow with them."""

from __future__ import annotations

import structlog

from agent.failure_log import LINES_MAX
from storage.store import ObjectNotFound
from tests.unit.agent.fetch.world import World, evict, make_batch


async def test_a_missing_object_fills_no_disk() -> None:
    world = World()
    world.create()
    await world.write([(0, [make_batch([b"a"])])], tail=False)
    evict(world.fetcher)

    async def missing(key: str) -> None:
        raise ObjectNotFound(key)

    world.store.before_get = missing
    with structlog.testing.capture_logs() as lines:
        for _ in range(LINES_MAX * 3):
            (await world.fetch([(0, 0)])).release()
    events = [line["event"] for line in lines]
    assert events.count("extent_missing") == events.count("fetch_failed") == LINES_MAX
    assert len(events) == 2 * LINES_MAX
    await world.settle()
