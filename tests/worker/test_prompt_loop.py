"""Plans and percentages that change between prompts: real processes, outputs compared with a single one."""

import csv
import json
from itertools import pairwise
from statistics import median

import pytest

from ringexp.config import FmsModelConfig
from ringexp.hetero.drift import DriftConfig
from support import sessions
from support.command import QUICK, ringexp, run_dirs
from support.model_ranks import LLAMA
from support.sessions import attention_config

TURNS = [[128, 64, 64], [16, 112, 128], [128, 0, 128], [64, 128, 64], [0, 0, 256], [128, 64, 64]]


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("model", ["attention", "llama"])
def test_every_prompt_is_right_whatever_the_plan_before_was(pools, tmp_path, layout, model):
    config = attention_config(tmp_path, "cpu_pacing", 3, seq_len=256)
    config.layout.name = layout
    if model == "llama":
        config.model = FmsModelConfig(name="llama_tiny", dtype="float32", overrides=LLAMA)
    for seen in pools[3].run(sessions.course, config, TURNS):
        assert max(error for error, *_ in seen) < 2e-5
        assert seen[0][1] == 0
        assert all(replan_ms > 0 for _, replan_ms, *_ in seen[1:])


def test_a_rank_runs_at_the_percentage_of_the_prompt(pools, tmp_path):
    config = attention_config(tmp_path, "cpu_pacing", 2, seq_len=1024)
    config.hetero.drift = DriftConfig("step", [100, 10], at=4)
    plans = [[512, 512]] * 8
    _, slowed = pools[2].run(sessions.course, config, plans)
    assert [percentage for *_, percentage in slowed] == [100.0] * 4 + [10.0] * 4
    busy = [ms for _, _, ms, _ in slowed]
    assert min(busy[4:]) > 2 * min(busy[:4])


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    drift = ("hetero=drift_step", "hetero.drift.to=[100,10]", "hetero.drift.at=4")
    settings = ("model=attention_tiny", "seq_len=1001", "tracker=disabled")
    done = ringexp(*settings, *QUICK, *drift, "partitioner=adaptive", "repeats=14", root=root)
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(root)
    return run_dir, json.loads((run_dir / "results.json").read_text())


def test_a_run_follows_a_rank_that_slows_down(adapted):
    _, results = adapted
    prompts = results["adaptation"]["prompts"]
    assert [prompt["percentages"][1] for prompt in prompts] == [100.0] * 4 + [10.0] * 10
    assert prompts[-1]["tokens"][1] < prompts[3]["tokens"][1] / 2
    assert (results["exact"], results["throttle"]) == (True, "cpu_pacing")
    assert results["tokens"] == prompts[-1]["tokens"]
    assert results["settled_iterations"] == len(prompts)
    assert results["adaptation"]["replans"] == sum(prompt["replan_ms"] > 0 for prompt in prompts) >= 1


def test_only_another_plan_counts_as_a_new_one(tmp_path):
    settings = ("model=attention_tiny", "seq_len=1001", "tracker=disabled", "references=false", "check=false")
    run = ("partitioner=adaptive", "hetero=none", "hetero.percentages=[100,100]", "warmup=0", "repeats=4")
    done = ringexp(*settings, *QUICK, *run, root=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    prompts = results["adaptation"]["prompts"]
    changed = [after["tokens"] != before["tokens"] for before, after in pairwise(prompts)]
    assert [prompt["replan_ms"] > 0 for prompt in prompts] == [False, *changed]
    settled = results["settled_iterations"]
    assert all(prompt["tokens"] == results["tokens"] for prompt in prompts[-settled:])
    assert settled == 4 or prompts[-settled - 1]["tokens"] != results["tokens"]
    assert results["latency_ms_median"] == pytest.approx(median(results["latency_ms_iterations"][-settled:]))


def test_each_prompt_is_held_against_the_speeds_of_its_own_percentages(adapted):
    _, results = adapted
    references = results["references"]
    before, after = (results["adaptation"]["prompts"][index] for index in (3, 4))
    assert after["calibrated_speeds"][1] < 0.5 * before["calibrated_speeds"][1]
    for index, prompt in ((3, before), (4, after)):
        ideal = references["single_ms"] * references["single_speed_tflops"] / sum(prompt["calibrated_speeds"])
        efficiency = ideal / results["latency_ms_iterations"][index]
        assert prompt["capacity_efficiency"] == pytest.approx(efficiency)
    total = results["adaptation"]["replan_ms"] + sum(results["latency_ms_iterations"])
    assert results["adaptation"]["total_ms"] == pytest.approx(total)


def test_the_iterations_file_has_the_same_series(adapted):
    run_dir, results = adapted
    with (run_dir / "iterations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    prompts = results["adaptation"]["prompts"]
    assert [int(row["tokens"]) for row in rows] == [prompt["tokens"][1] for prompt in prompts]
    assert [float(row["percentage"]) for row in rows] == [prompt["percentages"][1] for prompt in prompts]
    for name in ("capacity_efficiency", "replan_ms"):
        expected = [prompt[name] for prompt in prompts]
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=1e-4)
