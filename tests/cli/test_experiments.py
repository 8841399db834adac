"""The grids in conf/experiment: exactly the runs they promise, whatever axis the command line gives."""

from itertools import product

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate

from ringexp.cli.run import CONF_DIR
from ringexp.configure.compose import from_hydra
from ringexp.configure.register import register
from support.command import ringexp

PARTITIONERS = ("even", "uneven", "lut", "formula", "balanced")
LAYOUTS = ("contiguous", "zigzag")
LENGTHS = ("4096", "8192", "16384", "32768", "65536")
SLOW = tuple(f"[100,{percent}]" for percent in range(10, 100, 10))


@pytest.fixture(scope="module", autouse=True)
def hydra():
    register()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def jobs(experiment: str, *overrides: str) -> list[dict[str, str]]:
    """Return the runs of the sweeper, as dicts of overrides."""
    cfg = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    sweeper = instantiate(cfg.hydra.sweeper)
    parsed = OverridesParser.create().parse_overrides([*sweeper._parse_config(), *overrides])
    batches = sweeper.split_arguments(parsed, None)
    return [dict(override.split("=", 1) for override in job) for batch in batches for job in batch]


def rows(found: list[dict[str, str]]) -> set[tuple[str, ...]]:
    keys = ("hetero.percentages", "seq_len", "layout", "partitioner", "split")
    assert all(set(job) >= set(keys) for job in found)
    unique = {tuple(job[key] for key in keys) for job in found}
    assert len(unique) == len(found)
    return unique


def test_the_source_study_is_exactly_this_grid():
    every = set(product(SLOW, LENGTHS, LAYOUTS, PARTITIONERS, ["tokens"]))
    kv = set(product(SLOW, ("4096", "16384", "65536"), ["zigzag"], ["lut"], ["kv"]))
    equal = set(product(["[100,100]"], LENGTHS, LAYOUTS, ("even", "balanced"), ["tokens"]))
    assert rows(jobs("source_study")) == every | kv | equal
    assert len(every | kv | equal) == 497


def test_an_axis_on_the_command_line_takes_the_place_of_the_one_in_the_file():
    found = rows(jobs("source_study", "hetero.percentages=[50,5],[50.0,50]", "seq_len=1024"))
    slow = {("[50,5]", "1024", *rest) for rest in product(LAYOUTS, PARTITIONERS, ["tokens"])}
    equal = {("[50.0,50]", "1024", *rest) for rest in product(LAYOUTS, ("even", "balanced"), ["tokens"])}
    assert found == slow | equal | {("[50,5]", "1024", "zigzag", "lut", "kv")}


def test_the_extremes_are_one_profile_at_one_length():
    every = set(product(["[100,10]"], ["65536"], LAYOUTS, PARTITIONERS, ["tokens"]))
    assert rows(jobs("extremes")) == every | {("[100,10]", "65536", "zigzag", "lut", "kv")}


def test_lengths_are_one_profile_at_many():
    found = jobs("lengths")
    assert {job["seq_len"] for job in found} == {str(1024 << exponent) for exponent in range(8)}
    assert len(found) == 8 * 2 * 3


def test_drift_is_every_profile_with_plans_that_stay_and_one_that_adapts():
    kinds = ("step", "ramp", "flapping", "recovery")
    found = {(job["hetero"], job["partitioner"]) for job in jobs("drift")}
    assert found == set(product([f"drift_{kind}" for kind in kinds], ("even", "balanced", "adaptive")))
    for kind in kinds:
        config = from_hydra(compose("config", ["experiment=drift", f"hetero=drift_{kind}"]))
        assert (config.hetero.drift.kind, config.hetero.throttle) == (kind, "auto")
        assert config.hetero.drift.at + config.hetero.drift.over < config.repeats
        assert kind in config.label


def test_many_ranks_run_in_lock_step_only_where_it_shows_something():
    found = jobs("many_ranks")
    lock_step = [job for job in found if job["transport.prefetch_hops"] == "1"]
    assert {(job["layout"], job["partitioner"]) for job in lock_step} == {("zigzag", "balanced")}
    assert len(found) == 4 * 3 * (10 + 1)


@pytest.mark.parametrize("experiment", ["source_study", "extremes", "lengths", "many_ranks"])
def test_every_value_of_a_grid_composes_to_what_it_says(experiment):
    """One job for each override that no earlier job has."""
    seen: set[tuple[str, str]] = set()
    for job in jobs(experiment):
        if seen.issuperset(job.items()):
            continue
        seen.update(job.items())
        overrides = [f"experiment={experiment}", *(f"{key}={value}" for key, value in job.items())]
        config = from_hydra(compose("config", overrides))
        assert config.hetero.percentages == [
            float(p) for p in job["hetero.percentages"].strip("[]").split(",")
        ]
        assert (config.seq_len, config.layout.name) == (int(job["seq_len"]), job["layout"])
        assert (config.partitioner.name, config.split) == (job["partitioner"], job.get("split", "tokens"))
        assert config.tracker.group == experiment


def test_a_grid_with_everything_left_out_is_empty():
    assert jobs("source_study", "split=kv", "layout=contiguous") == []


def test_a_study_is_a_sweep_also_without_saying_so(tmp_path):
    done = ringexp("experiment=extremes", "partitioner=even", "seq_len=1024", "dry_run=true", root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Plan: partitioner even, layout") == 2
    assert not list(tmp_path.glob("sweeps/*/*/report"))
