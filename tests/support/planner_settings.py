"""Settings of the planner page, and what the Python planner makes of them: the page's golden vectors.

PYTHONPATH=src:tests python -m support.planner_settings    # writes tests/web/golden/plans.json
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ringexp.choices import LAYOUTS
from ringexp.errors import UserError
from ringexp.planning import EqualLinks, Link, Mask, PlanRequest, RankCost, plan_for, predicted_ms

GOLDEN = Path(__file__).parents[1] / "web" / "golden" / "plans.json"
VECTORS = 40


@dataclass(frozen=True)
class Setting:
    """A setting of the page, which is a SpeedSource for the Python planner too."""

    split: str
    layout: str
    seq_len: int
    tile: int
    speeds: Sequence[float]
    rank_costs: Sequence[RankCost]
    hop: EqualLinks
    causal: bool = True

    @property
    def percentages(self):
        return self.speeds

    def lut(self):
        return self.speeds

    formula = lut

    def costs(self, mask):
        return self.rank_costs

    def planned(self):
        """Return token counts and predicted ms; None for too few tokens."""
        mask = Mask.of(self.causal)
        request = PlanRequest(self.seq_len, self.tile, self.layout, mask, partitioner=self.split)
        try:
            plan = plan_for(request, self, links=self.hop)
        except UserError:
            return None
        return plan.tokens, predicted_ms(plan, self.rank_costs, self.hop)

    def for_the_page(self):
        """Return the setting as planning.js takes it."""
        given = asdict(self) | {"seqLen": self.seq_len, "costs": [asdict(cost) for cost in self.rank_costs]}
        link = self.hop.link
        given["hop"] = {"latency_ms": link.latency_ms, "token_ms": link.unit_ms, "direct": self.hop.direct}
        names = ("split", "layout", "seqLen", "tile", "speeds", "costs", "hop", "causal")
        return {name: given[name] for name in names}


def some_setting(rng):
    """Return ranks with any speeds, or with round ones, so that shares and times tie."""
    count, scale = rng.randint(1, 8), 10 ** rng.uniform(-2, 2)
    if rng.random() < 0.3:
        speeds = [rng.choice((5, 10, 20, 25, 50, 75, 100)) for _ in range(count)]
        fixed_ms = rng.choice((0.0, 0.15))
        costs = [RankCost(fixed_ms, 0.1 * scale / speed, 1e-5 * scale / speed) for speed in speeds]
        per_hop = [(rng.choice((0.0, 0.25)), 0.0)] * count
    else:
        speeds = [rng.uniform(1, 600) for _ in range(count)]
        fixed = [10 ** rng.uniform(-3, 2) for _ in range(count)]
        rest = [[scale * x * rng.uniform(0.5, 2) / speed for x in (1, 1e-4, 1e-5)] for speed in speeds]
        costs = [RankCost(fixed_ms, *parts) for fixed_ms, parts in zip(fixed, rest, strict=True)]
        per_hop = [(10 ** rng.uniform(-3, 2), scale * 10 ** rng.uniform(-5, -2)) for _ in speeds]
    if rng.random() < 0.5:
        costs = [
            replace(cost, hop_ms=once, hop_token_ms=each)
            for cost, (once, each) in zip(costs, per_hop, strict=True)
        ]
    tile = rng.choice((1, 16, 128))
    return Setting(
        split=rng.choice(("even", "lut", "balanced", "balanced")),
        layout=rng.choice(sorted(LAYOUTS.names)),
        seq_len=rng.choice((tile * rng.randint(1, 300), rng.randint(1, 3000), 2 ** rng.randint(10, 20))),
        tile=tile,
        speeds=speeds,
        rank_costs=costs,
        hop=EqualLinks(
            Link(rng.choice((0.0, 10 ** rng.uniform(-3, 2))), scale * 10 ** rng.uniform(-7, 1)),
            direct=rng.random() < 0.4,
        ),
        causal=rng.random() < 0.7,
    )


def golden_vectors():
    """Return settings with the plan that the Python planner makes of each; null for too few tokens."""
    rng = random.Random(1)
    settings = [some_setting(rng) for _ in range(VECTORS)]
    return [{"setting": setting.for_the_page(), "plan": _plan(setting)} for setting in settings]


def _plan(setting):
    planned = setting.planned()
    return None if planned is None else {"tokens": planned[0], "latency_ms": planned[1]}


def main():
    lines = ",\n".join(json.dumps(vector) for vector in golden_vectors())
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
