from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringexp.errors import UserError
from ringexp.hetero.drift import DriftConfig, drift_label
from ringexp.hetero.profiles import co_tenants, label, named_profiles, validate_percentages

valid = st.lists(st.floats(min_value=0, max_value=100, exclude_min=True), min_size=1, max_size=6)


def test_named_profiles_are_the_grid_of_a_sweep():
    grid = [f"mps_{low}_100" for low in range(10, 100, 10)] + [f"mps_100_{low}" for low in range(10, 100, 10)]
    assert list(named_profiles()) == ["none", *grid, "mps_100_100", "mps_100_50_25"]


def test_every_named_profile_is_valid_and_named_after_its_percentages():
    for name, percentages in named_profiles().items():
        assert validate_percentages(percentages) == percentages
        assert name in ("none", f"mps_{label(percentages)}")


def test_a_caller_cannot_change_the_named_profiles():
    named_profiles()["none"].append(1.0)
    assert named_profiles()["none"] == [100.0, 100.0]


@pytest.mark.parametrize(
    ("percentages", "text"),
    [
        ([50, 100], "50_100"),
        ([100.0], "100"),
        ([12.5, 100], "12.5_100"),
        ([100, 50, 25], "100_50_25"),
        ([100] * 40 + [50] * 12, "100x40_50x12"),
        ([100] * 999 + [50], "100x999_50"),
    ],
)
def test_label(percentages, text):
    assert label(percentages) == text


@given(valid.filter(lambda percentages: len("_".join(map(repr, percentages))) <= 60))
def test_a_short_label_reads_back_as_its_percentages(percentages):
    assert [float(part) for part in label(percentages).split("_")] == percentages


@pytest.mark.parametrize("world_size", [2, 17, 52, 1000])
@pytest.mark.parametrize("drift", [None, "recovery"])
def test_labels_of_many_ranks_are_short_and_differ(world_size, drift):
    """Profiles of one, two and many different percentages, and each one's mirror image."""
    profiles = [
        [100.0] * world_size,
        [100.0] * (world_size - 1) + [50.0],
        [100 - rank * 99 / world_size for rank in range(world_size)],
    ]
    profiles += [percentages[::-1] for percentages in profiles[1:]]
    to = [DriftConfig(drift, to=percentages) if drift else None for percentages in profiles]
    names = [
        drift_label(profiles[0], each) if each else label(p) for p, each in zip(profiles, to, strict=True)
    ]
    assert len(set(names)) == len(profiles)
    assert all(len(name) <= 60 for name in names)  # wandb takes tags of 64 characters


@given(valid)
def test_numbers_above_0_up_to_100_are_valid(percentages):
    assert validate_percentages(percentages) == percentages


@given(
    valid,
    st.one_of(
        st.floats(max_value=0),
        st.floats(min_value=100, exclude_min=True),
        st.just(math.nan),
        st.text(),
        st.booleans(),
        st.none(),
    ),
    st.data(),
)
def test_any_other_entry_is_refused_by_its_rank(percentages, bad, data):
    rank = data.draw(st.integers(0, len(percentages)))
    with pytest.raises(UserError, match=rf"^hetero.percentages=.*rank {rank} is") as caught:
        validate_percentages([*percentages[:rank], bad, *percentages[rank:]])
    assert "above 0 and at most 100" in str(caught.value)


@pytest.mark.parametrize("percentages", [[], "50,100", 50, None, {50: 100}])
def test_what_is_not_a_list_of_ranks_is_refused(percentages):
    with pytest.raises(UserError, match=r"give one number per rank") as caught:
        validate_percentages(percentages)
    assert re.match(r"hetero\.percentages=", str(caught.value))


def test_ranks_know_what_they_share_a_device_with():
    percentages, devices = [50, 50, 12.5, 10, 20], [0, 1, 0, 1, 0]
    texts = [co_tenants(percentages, devices, rank) for rank in range(5)]
    assert texts == ["20+12.5", "10", "50+20", "50", "50+12.5"]
    assert co_tenants([100, 50], ["a", "b"], 1) == ""


def test_the_host_side_does_not_import_torch():
    modules = ["profiles", "throttle", "mps", "mps_control", "green_context", "pacing", "sm_count"]
    code = "import sys; " + "; ".join(f"import ringexp.hetero.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
