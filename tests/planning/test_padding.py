"""Batches that are padded on the left: what counts as work is what no padding takes part in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.choices import LAYOUTS
from ringexp.planning import RankCost, make_plan, predicted_ms

counts = st.lists(st.integers(3, 12), min_size=1, max_size=5)
starts = st.lists(st.integers(0, 14), min_size=1, max_size=4)


@given(counts, starts, st.sampled_from(sorted(LAYOUTS.names)), st.sampled_from([1, 3]))
def test_work_is_that_of_the_prompts_alone(tokens, starts, layout, chunks):
    seq_len = sum(tokens)
    starts = [min(start, seq_len - 1) for start in starts]
    plan = make_plan(seq_len, tokens, layout, chunks=chunks, starts=starts)
    lengths = [seq_len - start for start in starts]
    everyone = range(plan.world_size)
    assert sum(plan.real_tokens(rank) for rank in everyone) == pytest.approx(sum(lengths) / len(lengths))
    pairs = sum(length * (length + 1) / 2 for length in lengths) / len(lengths)
    assert sum(plan.pairs(rank) for rank in everyone) == pytest.approx(pairs)


@given(counts, st.integers(0, 14), st.sampled_from(sorted(LAYOUTS.names)))
def test_what_is_computed_of_padding_is_linear_layers(tokens, start, layout):
    padded = make_plan(sum(tokens), tokens, layout, starts=[start % sum(tokens)])
    alone = make_plan(sum(tokens), tokens, layout)
    linear, attention = [RankCost(1.0, 1.0, 0.0)] * len(tokens), [RankCost(0.0, 0.0, 1.0, 0.5)] * len(tokens)
    assert predicted_ms(padded, linear) == predicted_ms(alone, linear)
    assert predicted_ms(padded, attention) <= predicted_ms(alone, attention)
