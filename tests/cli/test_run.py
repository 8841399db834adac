"""One run as a user starts it; its files and its offline wandb record read back and compared."""

import csv
import json
import math
import os
from dataclasses import fields
from statistics import median

import pytest
from omegaconf import OmegaConf

from ringexp.errors import UserError
from ringexp.hetero.cgroup import own_group
from ringexp.hetero.cpu_quota import quota_groups
from ringexp.tracking.results import RunResult
from support.command import QUICK, ranks_alive, ringexp, run_dirs
from support.wandb_records import records, run_record, summary

PROMISED = [
    "latency_ms_median",
    "latency_ms_iterations",
    "latency_ms_back_to_back",
    "latency_ms_predicted",
    "hop_latency_ms",
    "hop_gbps",
    "tokens",
    "shares",
    "speeds",
    "throttle",
    "slowdown",
    "efficiency",
    "speedup_over_even",
    "capacity_efficiency",
    "busy_ms",
    "linear_ms",
    "attention_ms",
    "wait_ms",
    "comm_ms",
    "idle_ms",
    "tflops",
    "peak_memory_bytes",
    "error_max_abs",
    "environment",
]


REPEATS = 30
"""Long enough for wandb to sample the machine twice."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    what = "partitioner=lut", "hetero=mps_50_100", "model=attention_tiny", "seq_len=1001", *QUICK
    done = ringexp(*what, f"repeats={REPEATS}", root=root)
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(root)
    return done.stdout, run_dir, json.loads((run_dir / "results.json").read_text()), root


def test_the_documented_results_are_there(finished):
    _, _, results, _ = finished
    assert results["status"] == "complete"
    assert set(PROMISED) <= set(results)
    assert [name for name in PROMISED if results[name] is None] == []


def test_the_plan_follows_the_speeds(finished):
    _, _, results, _ = finished
    """By the speeds that this run measured, whatever else the machine did meanwhile."""
    assert sum(results["tokens"]) == 1001
    speeds, tile = results["speeds"], 16
    for share, speed in zip(results["shares"], speeds, strict=True):
        assert abs(share - speed / sum(speeds)) <= tile / 1001 + 1e-9


def test_the_output_is_exact_and_pacing_is_said_to_be_emulated(finished):
    stdout, _, results, _ = finished
    assert results["exact"] is True
    assert (results["throttle"], results["throttle_emulated"]) == ("cpu_pacing", True)
    assert "emulated" in stdout


def test_figures_agree_with_the_iterations_file(finished):
    _, run_dir, results, _ = finished
    with (run_dir / "iterations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == REPEATS * 2
    latencies = [float(row["latency_ms"]) for row in rows if row["rank"] == "0"]
    assert latencies == pytest.approx(results["latency_ms_iterations"], rel=1e-4)
    assert median(latencies) == pytest.approx(results["latency_ms_median"], rel=1e-4)
    for rank in range(2):
        for name in ("busy_ms", "comm_ms", "idle_ms"):
            mine = median(float(row[name]) for row in rows if row["rank"] == str(rank))
            assert mine == pytest.approx(results[name][rank], rel=1e-4)


def test_the_hops_file_has_a_line_a_hop(finished):
    _, run_dir, _, _ = finished
    with (run_dir / "hops.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == REPEATS * 2 * 2
    assert {(row["rank"], row["hop"], row["source"]) for row in rows} == {
        ("0", "0", "0"),
        ("0", "1", "1"),
        ("1", "0", "1"),
        ("1", "1", "0"),
    }


def flattened(records: list[dict], kind: str, field: str) -> list[dict]:
    """The `field` of every record of one kind, in order."""
    return [record[kind][field] for record in records if record["type"] == kind and record[kind].get(field)]


def test_wandb_has_every_figure_of_the_results_file(finished):
    _, run_dir, results, _ = finished
    found = summary(records(run_dir))
    for field in fields(RunResult):
        name, value = field.name, results[field.name]
        if name == "latency_ms_iterations":
            continue
        if not isinstance(value, list):
            assert same(found[name], value), name
            continue
        for rank, entry in enumerate(value):
            parts = (
                {f".{key}": part for key, part in entry.items()} if isinstance(entry, dict) else {"": entry}
            )
            for key, part in parts.items():
                assert same(found[f"rank_{rank}/{name}{key}"], part), name
    assert [name for name, value in found.items() if isinstance(value, list)] == []


def test_wandb_says_with_what_a_run_was_made(finished):
    _, run_dir, results, _ = finished
    config = run_record(records(run_dir))["config"]
    assert config["seq_len"] == 1001
    assert "partitioner=lut" in config["command"]
    assert config["hardware"] == results["environment"]["machine"]
    assert config["versions"]["torch"] == results["environment"]["versions"]["torch"]


def test_wandb_has_every_iteration(finished):
    _, run_dir, results, _ = finished
    history = flattened(records(run_dir), "history", "item")
    assert [row["latency_ms"] for row in history] == pytest.approx(results["latency_ms_iterations"])
    assert all({"rank_0/busy_ms", "rank_1/idle_ms", "rank_1/comm_ms"} <= set(row) for row in history)


def test_wandb_has_system_metrics_of_a_run_of_a_few_seconds(finished):
    """CPU use is the difference of two samples, so there are at least two."""
    _, run_dir, _, _ = finished
    samples = [record["stats"]["item"] for record in records(run_dir) if record["type"] == "stats"]
    assert all(sample["proc.memory.rssMB"] > 0 for sample in samples)
    assert any("cpu" in sample for sample in samples)


def same(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def test_the_next_run_measures_no_reference_and_no_speed_again(finished):
    _, _, _, root = finished
    done = ringexp(
        "partitioner=uneven",
        "hetero=mps_50_100",
        "model=attention_tiny",
        "seq_len=1001",
        "tracker=disabled",
        *QUICK,
        root=root,
    )
    assert done.returncode == 0, done.stderr
    assert "uneven, zigzag, 50_100: 1001 tokens" in done.stdout
    assert "reference" not in done.stdout
    assert "calibrating" not in done.stdout
    last = max(run_dirs(root), key=lambda path: path.stat().st_mtime)
    assert not (last / "wandb").exists()
    assert "speed" in done.stdout


def test_a_rank_that_does_not_pay_is_left_out_and_the_rest_is_exact(finished, tmp_path):
    """The table of an earlier run, in which the 50 % rank now needs a second for anything."""
    *_, root = finished
    with (root / "calibration" / "speeds.csv").open() as file:
        rows = [
            row | {"time_ms": 1000} if row["percentage"] == "50.0" else row for row in csv.DictReader(file)
        ]
    (tmp_path / "calibration").mkdir()
    with (tmp_path / "calibration" / "speeds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = ringexp(
        "partitioner=balanced",
        "hetero=mps_50_100",
        "model=attention_tiny",
        "seq_len=1001",
        "calibration.mode=table",
        "references=false",
        "tracker=disabled",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((run_dirs(tmp_path)[0] / "results.json").read_text())
    assert (results["tokens"], results["exact"]) == ([0, 1001], True)
    assert results["plan"] == ["none", "0:1001"]
    assert results["latency_ms_predicted"] < 1000


def test_nothing_stays_behind(finished):
    *_, root = finished
    assert ranks_alive(root) == []


def test_a_sweep_ends_in_one_table_and_reports_failures(tmp_path):
    done = ringexp(
        "-m",
        "model=attention_tiny",
        "hetero=mps_50_100",
        "partitioner=even,lut",
        "seq_len=512,8",
        "tracker=disabled",
        "check=false",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 2
    assert "2 of 4 runs complete" in done.stdout
    assert "throttle cpu_pacing (emulated by pacing" in done.stdout
    assert done.stderr.count("seq_len=8 is smaller than one tile") == 2
    (report,) = tmp_path.glob("sweeps/*/*/report")
    assert f"Report: {report}/index.html" in done.stdout
    with (report / "runs.csv").open() as file:
        rows = {(row["partitioner"], row["seq_len"]): row["status"] for row in csv.DictReader(file)}
    assert rows == {
        ("even", "512"): "complete",
        ("lut", "512"): "complete",
        ("even", "8"): "failed",
        ("lut", "8"): "failed",
    }
    config = OmegaConf.load(next(report.parent.glob("0_*/config.yaml")))
    assert config.tracker.group == f"{report.parents[1].name} {report.parent.name}"
    page = (report / "index.html").read_text()
    assert "could not be drawn" not in page
    assert page.count('src="data:image/png;base64,') == len(list(report.glob("figures/*.png"))) > 0


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    """The second command adds a partitioner to what is complete: only that is run."""
    sweep = ["-m", "model=attention_tiny", "hetero=mps_50_100", "seq_len=256", "references=false"]
    sweep += ["tracker=disabled", "report=false", *QUICK]
    first = ringexp(*sweep, "partitioner=even", root=tmp_path)
    assert "1 of 1 runs complete; everything" in first.stdout
    assert not list(tmp_path.glob("sweeps/*/*/report"))
    second = ringexp(*sweep, "partitioner=even,uneven", root=tmp_path)
    assert "2 of 2 runs complete (1 taken from earlier ones)" in second.stdout
    assert "even, zigzag" not in second.stdout.replace("uneven, zigzag", "")
    copies = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/*/*/0_*even*/results.json")]
    assert len({copy["latency_ms_median"] for copy in copies}) == 1
    again = ringexp(*sweep, "partitioner=even", "resume=false", root=tmp_path)
    assert "1 of 1 runs complete; everything" in again.stdout


BREAKS_ONE_RUN = """\
import os

if os.environ.get("RANK") == "1":
    from ringexp.models.attention import workload as attention_workload

    right = attention_workload.AttentionWorkload.inputs

    def inputs(self, seq_len, seed):
        if self._config.batch_size == 3:
            raise RuntimeError("batch of 3")
        return right(self, seq_len, seed)

    attention_workload.AttentionWorkload.inputs = inputs
"""
"""A sitecustomize.py: Python imports it as each process starts, the ranks too."""


def test_runs_of_a_sweep_share_ranks_and_a_failed_one_does_not_stop_the_rest(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BREAKS_ONE_RUN)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = ringexp(
        "-m",
        "model=attention_tiny",
        "hetero=mps_50_100",
        "partitioner=lut",
        "references=false",
        "model.batch_size=1,3,2",  # the second fails in mid-run
        "kernel=sdpa,reference",
        "seq_len=128",
        "tracker=disabled",
        "report=false",
        *QUICK,
        root=tmp_path,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 1
    assert "4 of 6 runs complete" in done.stdout
    assert done.stderr.count("RuntimeError: batch of 3") == 2
    sets = {path.parent.parent.name for path in tmp_path.glob("sweeps/*/*/*/ranks/*/*/rank_set.json")}
    assert len(sets) == 3  # one a model


def test_a_quota_slows_a_rank_from_outside(tmp_path):
    try:
        with quota_groups([50], cores=1):
            pass
    except UserError as error:
        pytest.skip(str(error))
    before = set(own_group().folder.glob("ringexp-*-rank0"))
    done = ringexp(
        "hetero=mps_50_100",
        "hetero.throttle=cpu_quota",
        "seq_len=512",
        "tracker=disabled",
        "references=false",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((run_dirs(tmp_path)[0] / "results.json").read_text())
    assert (results["throttle"], results["throttle_emulated"]) == ("cpu_quota", False)
    assert 0 < results["throttle_achieved"][0] < 0.65
    assert set(own_group().folder.glob("ringexp-*-rank0")) <= before


LIMITED = ["seq_len=512", "tracker=disabled", "references=false", "memory_limit_gib=[1,0.0025]", *QUICK]


def test_balanced_gives_a_rank_no_more_than_its_memory_holds(tmp_path):
    done = ringexp("partitioner=balanced", *LIMITED, root=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((run_dirs(tmp_path)[0] / "results.json").read_text())
    assert 0 < results["tokens"][1] <= 128
    assert results["exact"] is True
    refused = ringexp("partitioner=even", "calibration.mode=table", *LIMITED, root=tmp_path)
    assert refused.returncode == 2
    assert "rank 1 gets 256 tokens, and its memory holds" in refused.stderr


@pytest.mark.parametrize("causal", ["true", "false"])
def test_the_ring_alone_is_exact(tmp_path, causal):
    done = ringexp(
        "model.projections=false",
        f"model.causal={causal}",
        "seq_len=300",
        "tracker=disabled",
        "references=false",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(tmp_path)
    assert json.loads((run_dir / "results.json").read_text())["exact"] is True


def test_a_whole_model_runs(tmp_path):
    done = ringexp(
        "model=llama_micro",
        "hetero=mps_100_50",
        "seq_len=300",
        "tracker=disabled",
        "references=false",
        "+model.overrides.nlayers=2",
        "decode_tokens=6",
        "model.chunk_tokens=80",
        "memory_limit_gib=1",
        *QUICK,
        root=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert results["exact"] is True
    assert results["capacity_efficiency"] is None
    decode = results["decode"]
    assert (decode["tokens"], decode["agreeing"], sum(decode["kept"])) == (6, 6, 5)
    assert sum(decode["cache_bytes"]) == 305 * 2 * 2 * 192 * 4  # slots, layers, keys and values, elements
    assert 300 < decode["longest_context_single"] < decode["longest_context"]
    assert "6 as one process would choose" in done.stdout
    assert results["time_to_first_token_ms"] == results["latency_ms_median"]
    with (run_dir / "layers.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rank"] == "1"]
    passes = 4 * 2  # chunks, layers: each an attention
    assert [row["layer"] for row in rows] == list(map(str, range(passes + 1))) * 3
    for name in ("linear_ms", "attention_ms", "wait_ms"):
        sums = [
            sum(float(row[name]) for row in rows[i : i + passes + 1]) for i in range(0, len(rows), passes + 1)
        ]
        assert median(sums) == pytest.approx(results[name][1], rel=1e-4)


def test_triton_runs_in_the_interpreter(tmp_path):
    done = ringexp(
        "kernel=triton",
        "seq_len=64",
        "hetero.percentages=[100,60,30]",
        "tracker=disabled",
        "references=false",
        *QUICK,
        root=tmp_path,
        env={"TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(tmp_path)
    results = json.loads((run_dir / "results.json").read_text())
    assert (results["kernel"], results["exact"]) == ("triton", True)
