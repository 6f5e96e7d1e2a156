"""Each planted bug is found within 200 seeds: a checker that never fails checks nothing."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.runner import run_seeds

SEEDS_MAX = 200
KINDS = {
    "acknowledge_before_commit": ("acknowledged early", 0),
    "advance_sequence_before_data": ("acknowledged early", 24),
    "move_high_watermark_early": ("high watermark early", 0),
    "retry_without_id": ("copied", 62),
    "ignore_fence": ("fenced", 39),
    "answer_with_first_offset": ("lost", 0),
    "forget_sequences": ("duplicated", 3),
    "execute_late_copies": ("went back", 56),
    "believe_old_generations": ("went back", 25),
    "delete_the_winner": ("deleted", 0),
    "delete_before_the_grace": ("deleted early", 0),
    "sweep_a_live_epoch": ("missing object", 0),
    "swap_without_compare": ("swap", 17),
}
"""What each bug is (found as something else, the simulation would have broken something of its own), and a seed that
has found it: where the search begins."""


def test_every_bug_has_its_kind() -> None:
    assert KINDS.keys() == BUGS.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_the_bug_is_found(bug: str) -> None:
    kind, likely = KINDS[bug]
    seeds = [likely, *(seed for seed in range(SEEDS_MAX) if seed != likely)]
    for outcome in run_seeds(seeds, bug):
        if kind in {violation.kind for violation in outcome.violations}:
            return
    pytest.fail(f"{bug} was not found in {SEEDS_MAX} seeds")
