"""Keep a random sample of the mutants in a session of cosmic-ray and mark all others as skipped.

The sample first draws places in the source and then one mutant for each place. Otherwise an addition, which
has eleven mutants, would be drawn far more often than a condition, which has one.

    python scripts/mutation/sample.py SESSION --count 100 --seed 0
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict

from cosmic_ray.tools.filters.filter_app import FilterApp
from cosmic_ray.work_item import WorkerOutcome, WorkResult


class Sample(FilterApp):
    """A filter of work items, as cosmic-ray's own filters are."""

    def add_args(self, parser: argparse.ArgumentParser) -> None:
        """Add the size and the seed of the sample to the command line."""
        parser.add_argument("--count", type=int, required=True, help="places to keep")
        parser.add_argument("--seed", type=int, default=0)

    def filter(self, work_db, args: argparse.Namespace) -> None:
        """Mark every pending work item outside the sample as skipped."""
        places = defaultdict(list)
        for item in work_db.pending_work_items:
            (mutation,) = item.mutations
            operator = mutation.operator_name.split("_")[0]
            mutant = (mutation.operator_name, mutation.occurrence, item.job_id)
            places[str(mutation.module_path), mutation.start_pos, operator].append(mutant)
        draw = random.Random(args.seed)
        kept = draw.sample(sorted(places), min(args.count, len(places)))
        jobs = {draw.choice(sorted(places[place]))[-1] for place in kept}
        skipped = [job for mutants in places.values() for *_, job in mutants if job not in jobs]
        work_db.set_multiple_results(skipped, WorkResult(WorkerOutcome.SKIPPED, output="outside the sample"))


if __name__ == "__main__":
    Sample().main()
