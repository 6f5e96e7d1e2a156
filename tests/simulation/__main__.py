"""``python -m tests.simulation``: soak seeds, or see one again, line by line."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.bugs import BUGS, planted
from tests.simulation.runner import cores, soak
from tests.simulation.world import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, and print everything that happens")
    parser.add_argument("--seeds", type=int, default=300, help="how many (default 300)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: one for each core)")
    parser.add_argument("--bug", choices=sorted(BUGS), help="with this bug planted")
    parser.add_argument(
        "--quiet", action="store_true", help="with --seed: print only the verdict and the trace's digest"
    )
    options = parser.parse_args()
    if options.seed is not None:
        with planted(options.bug):
            outcome = run_seed(options.seed, echo=not options.quiet)
        print(f"seed {outcome.seed}: {outcome.virtual_seconds:.1f} virtual seconds, trace {outcome.digest}")
        for violation in outcome.violations:
            print(f"  {violation}")
        return 1 if outcome.violations else 0
    seeds = range(options.first, options.first + options.seeds)
    totals = soak(seeds, options.jobs, options.bug, lambda line: print(line, flush=True))
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
