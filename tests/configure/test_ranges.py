"""Every setting that is a number has a range, and text that cannot be is refused."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from ringexp.config import (
    AdaptiveConfig,
    AttentionModelConfig,
    Config,
    DriftConfig,
    FmsModelConfig,
    PartitionerConfig,
)
from ringexp.configure.ranges import RANGES, values
from ringexp.configure.validate import validate
from ringexp.errors import UserError

ATTENTION = Config(model=AttentionModelConfig(name="attention_tiny"))
WHOLE = Config(model=FmsModelConfig(name="llama_micro"))


def with_value(config: Any, key: str, value: object) -> Any:
    first, _, rest = key.partition(".")
    return replace(config, **{first: with_value(getattr(config, first), rest, value) if rest else value})


def keys_of(config: Any, wanted: tuple[str, ...], prefix: str = "") -> list[str]:
    """Return the names of the dataclass's settings whose annotation names one of the types."""
    found = []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found += keys_of(value, wanted, f"{prefix}{item.name}.")
        elif str(item.type).removesuffix(" | None") in wanted:
            found.append(prefix + item.name)
    return found


@pytest.mark.parametrize("config", [ATTENTION, WHOLE], ids=["attention", "whole"])
def test_every_number_has_a_range(config):
    assert set(keys_of(config, ("int", "float"))) <= set(RANGES)


@pytest.mark.parametrize("value", [-1, 0, 10**23, float("nan"), float("inf"), -float("inf"), 1.5], ids=str)
@pytest.mark.parametrize("key", [*RANGES, "memory_limit_gib"])
def test_a_number_is_taken_or_refused_in_one_line(key, value):
    config = WHOLE if key == "model.chunk_tokens" else ATTENTION
    refusal = ""
    try:
        validate(with_value(config, key, value))
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert key.split(".")[0] in refusal
        assert "\n" not in refusal
    else:
        assert abs(value) <= 1.5


@pytest.mark.parametrize("key", [*RANGES, "memory_limit_gib"])
@pytest.mark.parametrize("value", [10**23, float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_or_far_too_much_is_refused(key, value):
    with pytest.raises(UserError):
        validate(with_value(WHOLE if key == "model.chunk_tokens" else ATTENTION, key, value))


@pytest.mark.parametrize("value", [[0], [-1, 5], [10**23], [float("nan")]], ids=str)
def test_prompt_lengths_have_a_range(value):
    with pytest.raises(UserError, match="prompt_lengths"):
        validate(replace(WHOLE, prompt_lengths=value))


@pytest.mark.parametrize(
    "override",
    [{"nlayers": 10**23}, {"nlayers": 0}, {"emb_dim": 10**23}, {"rope_theta": float("nan")}],
    ids=str,
)
def test_overrides_that_no_model_has_are_refused(override):
    with pytest.raises(UserError, match=r"model\.overrides\."):
        validate(replace(WHOLE, model=replace(WHOLE.model, overrides=override)))


def test_the_defaults_and_a_drift_are_in_range():
    validate(ATTENTION)
    drifting = replace(WHOLE.hetero, drift=DriftConfig("step", to=[100, 50]))
    validate(replace(WHOLE, repeats=20, hetero=drifting))


def test_more_ranks_than_can_be_are_refused():
    with pytest.raises(UserError, match="names 5000 ranks, and at most 4096"):
        validate(replace(ATTENTION, hetero=replace(ATTENTION.hetero, percentages=[100.0] * 5000)))


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "\x1b[31m", "a\udcff"], ids=repr)
@pytest.mark.parametrize("key", keys_of(WHOLE, ("str",)))
def test_text_that_is_none_is_refused(key, text):
    if key == "prompt_text" and text == "a\nb":
        validate(with_value(WHOLE, key, text))  # a prompt may have lines
        return
    with pytest.raises(UserError):
        validate(with_value(WHOLE, key, text))


def test_text_within_lists_is_seen():
    tracker = replace(ATTENTION.tracker, tags=["a\0"])
    assert ("tracker.tags[0]", "a\0") in list(values(replace(ATTENTION, tracker=tracker)))


@pytest.mark.parametrize(
    "wrong", [{"min_gain": -1}, {"tolerance": -0.1}, {"horizon": 0}, {"memory": 3}, {"probe_after": -1}]
)
def test_settings_that_cannot_work_are_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=rf"^partitioner\.adaptive\.{name}=.* must be at least"):
        validate(replace(ATTENTION, partitioner=PartitionerConfig(adaptive=AdaptiveConfig(**wrong))))
