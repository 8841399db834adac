"""Runs become rows: figures, ranks, ratios between runs; failed, damaged and older runs among them."""

import json

import pytest
from omegaconf import OmegaConf

from ringexp.errors import UserError
from ringexp.report.frame import complete, contexts, csv_text, load_runs, ranks_of
from support.run_folders import write_run


def test_scalars_keep_their_names_and_lists_get_a_column_a_rank(tmp_path):
    write_run(tmp_path, percentages=(100, 50, 25), busy_ms=[3.0, 2.0, 1.0], latency_ms=4.0)
    (run,) = load_runs([tmp_path]).to_dict("records")
    assert (run["latency_ms_median"], run["references.homogeneous_ms"], run["kernel"]) == (4.0, 5.0, "triton")
    assert [run[f"busy_ms.{rank}"] for rank in range(3)] == [3.0, 2.0, 1.0]
    assert (run["profile"], run["slow_percent"], run["pattern"]) == ("100/50/25", 25.0, "100/50/*")
    assert (run["hardware"], run["environment.commit"]) == ("2 x NVIDIA H200", "abc")
    assert run["environment.command"] == "python -m ringexp"
    assert not [name for name in run if name.startswith("latency_ms_iterations")]


def test_percentages_of_a_shared_gpu_are_relative_to_the_fastest_rank(tmp_path):
    write_run(tmp_path, percentages=(50, 5))
    assert load_runs([tmp_path]).slow_percent.tolist() == [10.0]


def test_runs_in_chunks_are_kept_apart(tmp_path):
    write_run(tmp_path, 0)
    path = write_run(tmp_path, 1, latency_ms=20.0) / "config.yaml"
    config = OmegaConf.load(path)
    config.model = {"name": "attention_mha_4096", "kind": "fms", "chunk_tokens": 1024}
    OmegaConf.save(config, path)
    runs = load_runs([tmp_path])
    assert runs.settings.tolist() == ["", "chunk_tokens=1024"]
    assert [len(group) for _, group in contexts(runs)] == [1, 1]


def test_speedup_is_over_contiguous_even_of_the_same_profile_and_length(tmp_path):
    write_run(tmp_path, 0, layout="contiguous", partitioner="even", latency_ms=12.0)
    write_run(tmp_path, 1, layout="contiguous", partitioner="even", latency_ms=40.0, seq_len=8192)
    write_run(tmp_path, 2, latency_ms=4.0)
    write_run(tmp_path, 3, latency_ms=10.0, seq_len=8192)
    write_run(tmp_path, 4, latency_ms=10.0, percentages=(100, 10))
    wrong = {"percentages": (100, 10), "exact": False}
    write_run(tmp_path, 5, layout="contiguous", partitioner="even", latency_ms=90.0, **wrong)
    speedups = load_runs([tmp_path]).speedup_over_contiguous_even
    assert speedups.tolist()[:4] == [1.0, 1.0, 3.0, 4.0]
    assert speedups.isna().tolist() == [False] * 4 + [True, True]


def test_figures_that_need_two_others_are_their_ratios(tmp_path):
    write_run(
        tmp_path,
        latency_ms=10.0,
        latency_ms_predicted=9.0,
        latency_ms_back_to_back=16.0,
        capacity_efficiency=0.8,
        references={"single_ms": 25.0},
    )
    run = load_runs([tmp_path]).iloc[0]
    assert run.prediction_error == pytest.approx(-0.1)
    assert run.capacity_efficiency_back_to_back == pytest.approx(0.5)
    assert run.speedup_over_single == 2.5


def test_iterations_in_a_row_are_held_against_one_device_in_a_row(tmp_path):
    references = {"single_ms": 25.0, "single_back_to_back_ms": 30.0}
    more = {"latency_ms_back_to_back": 16.0, "capacity_efficiency": 0.8, "references": references}
    write_run(tmp_path, latency_ms=10.0, **more)
    assert load_runs([tmp_path]).iloc[0].capacity_efficiency_back_to_back == pytest.approx(0.6)


def test_a_run_says_why_it_is_not_complete(tmp_path):
    write_run(tmp_path, 0)
    write_run(tmp_path, 1, status="failed", reason="out of memory")
    write_run(tmp_path, 2, status="planned")
    write_run(tmp_path, 3, exact=False, error_max_abs=0.5)
    damaged = write_run(tmp_path, 4)
    (damaged / "results.json").write_text('{"status": "comp')
    composed = tmp_path / "5_never" / ".hydra"
    composed.mkdir(parents=True)
    (composed / "overrides.yaml").write_text("[]\n")
    runs = load_runs([tmp_path])
    assert runs.status.tolist() == ["complete", "failed", "failed", "failed", "failed", "not run"]
    assert runs.reason.tolist()[:3] == ["", "out of memory", "it did not finish"]
    assert "wrong by 0.5" in runs.reason[3]
    assert runs.reason[4].startswith("damaged (results.json is no JSON")
    assert runs.reason[5] == "it was not begun"
    assert len(complete(runs)) == 1


def test_a_run_that_was_composed_but_never_begun_has_its_settings_and_no_figures(tmp_path):
    run_dir = write_run(tmp_path, 0)
    composed = OmegaConf.load(run_dir / "config.yaml")
    composed.seq_len = "${model.default_seq_len}"
    composed.label = "${ringexp.profile:${hetero.percentages}}"
    for file in ("config.yaml", "results.json"):
        (run_dir / file).unlink()
    (run_dir / ".hydra").mkdir()
    OmegaConf.save(composed, run_dir / ".hydra" / "config.yaml")
    (run_dir / ".hydra" / "overrides.yaml").write_text("[]\n")
    runs = load_runs([tmp_path])
    assert runs.status.tolist() == ["not run"]
    assert (runs.seq_len[0], runs.profile[0]) == (4096, "100/50")
    assert ranks_of(runs.iloc[0], "tokens") == []


def test_results_of_an_older_version_have_empty_columns(tmp_path):
    write_run(
        tmp_path, without=("latency_ms_predicted", "latency_ms_back_to_back", "references", "environment")
    )
    run = load_runs([tmp_path]).iloc[0]
    assert run.isna()[["latency_ms_predicted", "prediction_error", "speedup_over_single"]].all()
    assert (run.latency_ms_median, run.hardware) == (10.0, "")


def test_a_failed_run_alone_is_a_table_too(tmp_path):
    (tmp_path / "0_x").mkdir()
    (tmp_path / "0_x" / "results.json").write_text(json.dumps({"status": "failed", "reason": "no"}))
    runs = load_runs([tmp_path])
    assert runs.reason.tolist() == ["no"]
    assert contexts(runs) == []


def test_runs_are_in_the_order_of_the_sweep_and_count_once(tmp_path):
    for number in (10, 9, 2):
        write_run(tmp_path / "sweep", number)
    first = write_run(tmp_path / "earlier", 0)
    write_run(tmp_path / "sweep", 11, resumed_from=str(first))
    both = load_runs([tmp_path / "sweep", tmp_path])
    assert [name.split("_")[0] for name in both.run] == ["2", "9", "10", "0"]
    alone = load_runs([tmp_path / "sweep"])
    assert [name.split("_")[0] for name in alone.run] == ["2", "9", "10", "11"]


def test_ranks_of_a_missing_figure_are_none(tmp_path):
    write_run(tmp_path, 0, tokens=[3000, 1096])
    write_run(tmp_path, 1, status="failed", without=("tokens",))
    runs = load_runs([tmp_path])
    assert [ranks_of(run, "tokens") for _, run in runs.iterrows()] == [[3000.0, 1096.0], []]


def test_equal_ranks_belong_to_every_group_and_other_hardware_to_none(tmp_path):
    write_run(tmp_path, 0, percentages=(100, 50))
    write_run(tmp_path, 1, percentages=(50, 100))
    write_run(tmp_path, 2, percentages=(100, 100), throttle="none")
    write_run(tmp_path, 3, percentages=(100, 50), kernel="cudnn")
    groups = contexts(load_runs([tmp_path]))
    assert [(name, sorted(int(run.split("_")[0]) for run in group.run)) for name, group in groups] == [
        ("kernel auto, ranks at 100/* %", [0, 2]),
        ("kernel auto, ranks at */100 %", [1, 2]),
        ("kernel cudnn, ranks at 100/* %", [3]),
    ]


def test_of_two_runs_of_one_thing_figures_show_the_later(tmp_path):
    write_run(tmp_path, 0, latency_ms=1.0, environment={"time": "2026-03-02T00:00:00+00:00"})
    write_run(tmp_path, 1, latency_ms=2.0, environment={"time": "2026-03-01T00:00:00+00:00"})
    ((_, group),) = contexts(load_runs([tmp_path]))
    assert group.latency_ms_median.tolist() == [1.0]


def test_the_csv_has_every_run_and_every_scalar(tmp_path):
    write_run(tmp_path, 0, tokens=[3000, 1096])
    write_run(tmp_path, 1, status="failed", reason="a, b")
    header, *rows = csv_text(load_runs([tmp_path])).splitlines()
    assert header.startswith("run,status,model,profile,seq_len,layout,partitioner,split")
    wanted = {
        "tokens.0",
        "tokens.1",
        "capacity_efficiency",
        "references.single_ms",
        "environment.host",
        "reason",
    }
    assert wanted <= set(header.split(","))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "does not exist"),
        (lambda path: (path / "file").touch() or path / "file", "is not a folder"),
        (lambda path: path, "no runs in"),
    ],
)
def test_a_folder_without_runs_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        load_runs([make(tmp_path)])
    assert "outputs/sweeps/DATE/TIME" in str(error.value)


@pytest.mark.parametrize("shape", ["checkpoint-abc-b1-layer-bfloat16", None])
def test_a_run_whose_checkpoint_is_gone_stays_complete(tmp_path, shape):
    """Runs of two checkpoints are not compared if their results do not know the model's shape."""
    known = {"shape": shape} if shape else {}
    for number, name in enumerate(("one", "two")):
        folder = write_run(tmp_path, number, **known)
        config = OmegaConf.load(folder / "config.yaml")
        config.model = {"kind": "fms", "name": "checkpoint", "checkpoint": str(tmp_path / name)}
        OmegaConf.save(config, folder / "config.yaml")
    runs = load_runs([tmp_path])
    assert list(runs.status) == ["complete", "complete"]
    assert len(set(runs["shape"])) == (1 if shape else 2)
