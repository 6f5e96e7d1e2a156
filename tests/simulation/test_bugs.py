"""Each planted bug is found within 200 seeds: a checker that never fails checks nothing."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.runner import run_seeds

SEEDS_MAX = 200
KINDS = {
    "acknowledge_before_commit": "acknowledged early",
    "advance_sequence_before_data": "acknowledged early",
    "move_high_watermark_early": "high watermark early",
    "retry_without_id": "copied",
    "ignore_fence": "fenced",
    "answer_with_first_offset": "lost",
    "forget_sequences": "duplicated",
    "execute_late_copies": "went back",
    "believe_old_generations": "went back",
    "delete_the_winner": "deleted",
    "delete_before_the_grace": "deleted early",
    "sweep_a_live_epoch": "missing object",
}
"""What each bug is: found as something else, the simulation would have broken something of its own."""


def test_every_bug_has_its_kind() -> None:
    assert KINDS.keys() == BUGS.keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", sorted(BUGS))
def test_the_bug_is_found(bug: str) -> None:
    for outcome in run_seeds(range(SEEDS_MAX), bug):
        if KINDS[bug] in {violation.kind for violation in outcome.violations}:
            return
    pytest.fail(f"{bug} was not found in {SEEDS_MAX} seeds")
