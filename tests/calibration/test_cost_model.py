"""Costs fitted to calibration rows: what made the rows comes out again."""

import dataclasses
import random
from statistics import median

import pytest

from ringexp.calibration.cost_model import cost_points, fit_cost
from ringexp.errors import UserError
from ringexp.planning import Mask, RankCost, make_plan
from support.calibration_rows import cost_rows

TRUE = RankCost(0.4, 2e-4, 3e-8, 1e-8)


@pytest.mark.parametrize("mask", [Mask.causal(), Mask.full()], ids=str)
@pytest.mark.parametrize("lengths", [[4096], [16384, 32768]])
def test_the_costs_that_made_the_rows_are_found(lengths, mask):
    found = fit_cost(cost_rows(TRUE, lengths, mask), mask)
    fields = ("fixed_ms", "token_ms", "pair_ms", *(("diagonal_ms",) if mask.is_causal else ()))
    for field in fields:
        assert getattr(found, field) == pytest.approx(getattr(TRUE, field), rel=1e-6)


@pytest.mark.parametrize("others", [2, 3, 7])
def test_what_every_further_shard_costs_is_told_from_linear_layers(others):
    true = dataclasses.replace(TRUE, hop_token_ms=5e-5)
    found = fit_cost(cost_rows(true, [4096], Mask.causal(), others), Mask.causal())
    for field in ("fixed_ms", "token_ms", "pair_ms", "diagonal_ms", "hop_token_ms"):
        assert getattr(found, field) == pytest.approx(getattr(true, field), rel=1e-6)
    # Rings of two know of one shard of others only; what it costs is in the other parts.
    of_two, work = (
        fit_cost(cost_rows(true, [4096], Mask.causal()), Mask.causal()),
        make_plan(4096, [2048] * 2),
    )
    work = 2048, work.pairs(0), work.causal_pairs(0)
    assert of_two.hop_token_ms == 0
    assert of_two.time_ms(*work) == pytest.approx(true.with_hops(1).time_ms(*work), rel=0.01)


def test_no_part_is_negative_when_the_rows_are_noisy():
    rows = cost_rows(RankCost(0.0, 1e-4, 1e-8), [4096], Mask.causal())
    noisy = [
        dataclasses.replace(row, time_ms=row.time_ms * (1.1 if i % 2 else 0.9)) for i, row in enumerate(rows)
    ]
    found = fit_cost(noisy, Mask.causal())
    assert min(found.fixed_ms, found.token_ms, found.pair_ms) >= 0
    for row in noisy:
        pairs = row.tokens * row.length / 2
        assert found.time_ms(row.tokens, pairs, row.tokens**2 / 2) == pytest.approx(row.time_ms, rel=0.3)


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="rows at four lengths or shares"):
        fit_cost(cost_rows(TRUE, [4096], Mask.causal())[:2], Mask.causal())


def test_points_tell_tokens_from_pairs():
    points = [(4096, 2048), *cost_points([4096])]
    assert points == [(4096, 2048), (1024, 1024), (2048, 2048), (4096, 512), (4096, 3584)]


@pytest.mark.parametrize("lengths", [[4096], [65536], [4096, 8192]])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("others", [1, 3])
def test_noise_of_one_percent_stays_so_in_what_is_predicted(lengths, share, others):
    noise, errors = random.Random(0), []
    tokens = int(share * lengths[0])
    plan = make_plan(lengths[0], [tokens, lengths[0] - tokens])
    work = (tokens, plan.pairs(0), plan.causal_pairs(0))
    true = dataclasses.replace(TRUE, hop_token_ms=2e-5 if others > 1 else 0.0)
    exact, exact_ms = cost_rows(true, lengths, Mask.causal(), others), true.with_hops(others).time_ms(*work)
    for _ in range(100):
        rows = [dataclasses.replace(row, time_ms=row.time_ms * noise.gauss(1, 0.01)) for row in exact]
        errors.append(abs(fit_cost(rows, Mask.causal()).with_hops(others).time_ms(*work) / exact_ms - 1))
    assert median(errors) < (0.012 if others == 1 else 0.015)
