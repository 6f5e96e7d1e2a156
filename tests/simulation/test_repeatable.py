"""The simulation itself: a seed is one world and no other, whatever process and hash seed it runs under."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.loop import SimLoop, SimProcess, Stuck
from tests.simulation.runner import run_seeds

SEEDS = (1, 12, 23)


def _digests(hash_seed: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.simulation.world import run_seed\nfor seed in {SEEDS}: print(run_seed(seed).digest)",
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_two_processes_with_different_hash_seeds_write_the_same_traces() -> None:
    first, second = _digests("1"), _digests("4242")
    assert len(set(first.split())) == len(SEEDS)
    assert first == second


def test_a_seed_is_the_same_whatever_ran_before_it() -> None:
    (alone,) = run_seeds([SEEDS[0]])
    *_, later = run_seeds([SEEDS[1], SEEDS[0]])
    assert later.trace.lines == alone.trace.lines


def test_a_dead_process_runs_no_finally_and_a_frozen_one_catches_up() -> None:
    loop = SimLoop()
    seen: list[str] = []

    async def work(name: str) -> None:
        try:
            for _ in range(3):
                await asyncio.sleep(1.0)
                seen.append(f"{name} {loop.time():g}")
        finally:
            seen.append(f"{name} ends")

    async def world() -> None:
        dies, freezes = SimProcess("dies", "1", "a"), SimProcess("freezes", "2", "a")
        loop.start_in(dies, "dies", work("dies"))
        loop.start_in(freezes, "freezes", work("freezes"))
        await asyncio.sleep(1.5)
        loop.kill(dies)
        loop.freeze(freezes)
        await asyncio.sleep(5.0)
        loop.thaw(freezes)
        await asyncio.sleep(5.0)

    loop.run_until_complete(world())
    assert seen == ["dies 1", "freezes 1", "freezes 6.5", "freezes 7.5", "freezes ends"]


def test_a_world_in_which_nothing_can_happen_any_more_says_so() -> None:
    loop = SimLoop()

    async def wait_for_ever() -> None:
        await loop.create_future()

    with pytest.raises(Stuck, match="nothing can ever run"):
        loop.run_until_complete(wait_for_ever())

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="without waiting"):
        SimLoop().run_until_complete(spin())
