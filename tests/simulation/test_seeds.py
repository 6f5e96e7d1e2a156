"""Three hundred seeds: whole clusters broken in every way we know, and judged. Both cores work on them."""

from __future__ import annotations

import os

import pytest

from tests.simulation.runner import Totals, cores, replay_command, run_parallel

SEEDS = range(int(os.environ.get("TIDELOG_TEST_SEEDS", "300")))


@pytest.mark.timeout(900)
def test_no_seed_breaks_an_invariant() -> None:
    totals = Totals()
    problems: list[str] = []
    for outcome in run_parallel(SEEDS, cores()):
        totals.add(outcome)
        if outcome.violations:
            problems += [f"seed {outcome.seed}: {violation}" for violation in outcome.violations[:5]]
            problems.append(f"  replay: {replay_command(outcome.seed)}")
    print(totals.line())
    assert not problems, "\n".join(problems)
    # A world in which nothing happens proves nothing.
    count = len(SEEDS)
    assert totals.acknowledged > 60 * count and totals.reads > 300 * count
    assert totals.commits > 15 * count and totals.faults > 5 * count
