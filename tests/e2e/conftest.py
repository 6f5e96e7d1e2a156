"""A seed for everything random, printed when a test fails."""

from __future__ import annotations

import os
import random
import time

import pytest


@pytest.fixture
def rng() -> random.Random:
    """Set TIDELOG_TEST_SEED to repeat a run's decisions (not its timing)."""
    seed = int(os.environ.get("TIDELOG_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"TIDELOG_TEST_SEED={seed}")
    return random.Random(seed)
