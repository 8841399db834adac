import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.hetero.drift import PARTS, DriftConfig, drift_label, levels, percentages_at, validate_drift
from ringexp.hetero.throttle import resolve_throttle

percents = st.integers(1, 100)
KINDS = [kind for kind in PARTS if kind != "none"]


def series(kind, prompts=12, at=3, over=4):
    drift = DriftConfig(kind, [100, 50], at, over)
    return [percentages_at(drift, [100, 100], prompt)[1] for prompt in range(prompts)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("step", [100] * 3 + [50] * 9),
        ("ramp", [100] * 3 + [88, 75, 62] + [50] * 6),
        ("flapping", [100] * 3 + [50] * 4 + [100] * 4 + [50]),
        ("recovery", [100] * 3 + [50] * 4 + [100] * 5),
        ("none", [100] * 12),
    ],
)
def test_every_kind_has_its_course(kind, expected):
    assert series(kind) == expected


@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(percents, percents), min_size=1, max_size=5),
    st.integers(0, 20),
    st.integers(1, 10),
    st.integers(-3, 60),
)
def test_percentages_stay_between_the_two_ends_and_begin_at_the_first(kind, ends, at, over, prompt):
    start, to = zip(*ends, strict=True)
    drift = DriftConfig(kind, list(to), at, over)
    now = percentages_at(drift, start, prompt)
    assert all(min(a, b) <= value <= max(a, b) for a, b, value in zip(start, to, now, strict=True))
    if prompt < at:
        assert now == list(start)
    if prompt >= 0:
        assert now in levels(drift, start, prompt + 1)


@given(st.sampled_from(KINDS), st.integers(0, 30), st.integers(1, 10))
def test_levels_are_those_of_the_schedule_each_once(kind, at, over):
    drift = DriftConfig(kind, [100, 50], at, over)
    found = levels(drift, [100, 100], 40)
    assert found[0] == ([100, 100] if at else percentages_at(drift, [100, 100], 0))
    assert len({tuple(level) for level in found}) == len(found)
    assert {tuple(level) for level in found} == {
        tuple(percentages_at(drift, [100, 100], prompt)) for prompt in range(40)
    }


def test_a_label_names_the_drift():
    assert drift_label([100, 100]) == "100_100"
    assert drift_label([100, 100], DriftConfig("step", [100, 50])) == "100_100_step_100_50"


@pytest.mark.parametrize(
    ("drift", "throttle", "message"),
    [
        (
            DriftConfig("steps", [100, 50]),
            "auto",
            r"hetero.drift.kind=steps is unknown; choose one of none, step",
        ),
        (DriftConfig("step", [100]), "auto", r"hetero.drift.to=\[100\] must have one percentage per rank"),
        (DriftConfig("step", [100, 0]), "auto", r"hetero.drift.to=\[100, 0\]: the entry of rank 1"),
        (DriftConfig("step", [100, 50], at=-1), "auto", r"hetero.drift.at=-1 must be at least 0"),
        (DriftConfig("ramp", [100, 50], over=0), "auto", r"hetero.drift.over=0 must be at least 1"),
        (
            DriftConfig("step", [100, 50]),
            "mps",
            r"throttle=mps cannot drift .* use green_context, cpu_pacing",
        ),
        (DriftConfig("step", [100, 50]), "measured", r"throttle=measured cannot drift \(it slows nothing\)"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(drift, throttle, message):
    with pytest.raises(UserError, match=message) as caught:
        validate_drift(drift, [100, 100], throttle)
    assert "\n" not in str(caught.value)


def test_auto_is_a_throttle_that_can_change(monkeypatch):
    monkeypatch.setattr("ringexp.hetero.throttle.is_available", lambda spec: True)
    assert resolve_throttle("auto", "cuda", [100, 100], drifting=True) == "green_context"
    assert resolve_throttle("auto", "cpu", [100, 100], drifting=True) == "cpu_pacing"
    assert resolve_throttle("auto", "cuda", [100, 50]) == "mps"
