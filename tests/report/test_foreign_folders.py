"""Run folders that others wrote are data: nothing in them is resolved, believed unchecked, or acted on."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringexp.cli import results
from ringexp.config import TrackerConfig
from ringexp.errors import UserError
from ringexp.report.build import write_report
from ringexp.report.figures import adaptation
from ringexp.report.figures.timeline import median_iteration, ring_timelines
from ringexp.report.folder import Damaged, read_config
from ringexp.report.frame import contexts, csv_text, load_runs
from ringexp.report.sweep import summarize
from ringexp.simulate.recorded import find_recorded
from support.run_folders import two_rank_iteration, write_iterations, write_run

SECRET = "do-not-tell"


def with_text(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def with_results(folder: Path, values: dict[str, Any]) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


@pytest.fixture
def good(tmp_path):
    """Return a sweep of two sound runs, of which one has an iteration."""
    write_run(tmp_path, 0, partitioner="even", layout="contiguous")
    write_iterations(write_run(tmp_path, 1), [two_rank_iteration(9.0)])
    return tmp_path


def test_no_variable_of_the_environment_is_resolved(good, monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    run = write_run(good, 2)
    with_text(run, "config.yaml", "name: attention_mha_4096", "name: ${oc.env:SECRET}")
    report = write_report([good], good / "report", TrackerConfig("offline"))
    assert "${oc.env:SECRET}" in report.runs.model.tolist()
    written = [path for path in (good / "report").rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_folders_do_not_say_where_the_report_is_logged(good):
    for config in good.glob("*/config.yaml"):
        text = (
            config.read_text().replace("mode: disabled", "mode: online").replace("entity: null", "entity: e")
        )
        config.write_text(text)
    write_report([good], good / "report")
    assert not (good / "report" / "wandb").exists()


def test_results_cannot_name_another_folder(good, tmp_path_factory):
    elsewhere = write_run(tmp_path_factory.mktemp("elsewhere"), 7)
    run = write_run(good, 2, folder=str(elsewhere), run="other", profile="1/1")
    row = load_runs([good]).iloc[2]
    assert (row.folder, row.run, row.profile) == (str(run), run.name, "100/50")


def test_a_link_out_of_the_folder_is_not_followed(good, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "credentials.json"
    secret.write_text(json.dumps({"status": "failed", "token": SECRET}))
    run = write_run(good, 2)
    (run / "results.json").unlink()
    (run / "results.json").symlink_to(secret)
    runs = load_runs([good])
    assert "is a link that leads out of the folder" in runs.reason[2]
    assert SECRET not in csv_text(runs)


def test_a_pipe_is_not_waited_for(good):
    run = write_run(good, 2)
    (run / "results.json").unlink()
    os.mkfifo(run / "results.json")
    assert "results.json is no regular file" in load_runs([good]).reason[2]


DAMAGED_RESULTS = {
    "cut off": '{"status": "comp',
    "a list": "[]",
    "a number": "1",
    "nothing": "",
    "deep": "[" * 100_000,
    "not UTF-8": b"\xff\xfe{}",
    "huge number": f'{{"status": "complete", "latency_ms_median": {"9" * 5000}}}',
    "no status": "{}",
    "status of no run": '{"status": ["complete"]}',
    "NaN for a latency": '{"status": "complete", "latency_ms_median": NaN}',
    "infinite latency": '{"status": "complete", "latency_ms_median": 1e999}',
    "latency of 0": '{"status": "complete", "latency_ms_median": 0}',
    "text for a latency": '{"status": "complete", "latency_ms_median": "10"}',
    "truth for a latency": '{"status": "complete", "latency_ms_median": true}',
    "an object for a latency": '{"status": "complete", "latency_ms_median": {"a": 1}}',
    "text for a figure": '{"status": "complete", "latency_ms_median": 1, "slowdown": "x"}',
    "tokens of other ranks": '{"status": "complete", "latency_ms_median": 1, "tokens": [1, 2, 3]}',
    "tokens that are none": '{"status": "complete", "latency_ms_median": 1, "tokens": [1, "x"]}',
    "negative times": '{"status": "complete", "latency_ms_median": 1, "busy_ms": [1, -2]}',
    "exact is a word": '{"status": "complete", "latency_ms_median": 1, "exact": "yes"}',
    "too many names": json.dumps({"status": "complete", **{f"n{i}": i for i in range(5_000)}}),
}


@pytest.mark.parametrize("content", DAMAGED_RESULTS.values(), ids=DAMAGED_RESULTS)
def test_damaged_results_are_a_failed_run(good, content):
    run = write_run(good, 2)
    (run / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    runs = load_runs([good])
    assert runs.status.tolist() == ["complete", "complete", "failed"]
    assert runs.reason[2].startswith("damaged (results.json ")
    assert (runs.profile[2], runs.seq_len[2]) == ("100/50", 4096)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DAMAGED_CONFIGS = {
    "a list": "[]",
    "no YAML": "{",
    "python": "!!python/object/apply:os.system [id]",
    "a bomb": BOMB,
    "in a circle": "a: &a [*a]",
    "not UTF-8": b"\xff\xfe",
    "bad number": "seq_len: !!int x",
    "bad date": "time: 2026-99-99",
    "bad truth": "a: !!bool maybe",
    "deep": "[" * 5_000,
    "hetero is a list": "hetero: []",
    "percentages are text": "hetero: {percentages: abc}",
    "percentages are nested": "hetero: {percentages: [[1], 2]}",
    "percentages of nobody": "hetero: {percentages: []}",
    "a percentage of 0": "hetero: {percentages: [100, 0]}",
    "a length that is none": "seq_len: [1]",
    "a huge length": f"seq_len: {10**40}",
    "layout is a number": "layout: 5",
}


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS)
def test_damaged_configs_are_a_failed_run(good, content):
    run = write_run(good, 2)
    (run / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    runs = load_runs([good])
    assert runs.status.tolist() == ["complete", "complete", "failed"]
    assert runs.reason[2].startswith("damaged (")


def test_a_reason_quotes_nothing_of_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text(f"a: {SECRET}: {SECRET}\n")
    with pytest.raises(Damaged, match=r"config\.yaml is no YAML, line 1") as error:
        read_config(tmp_path)
    assert SECRET not in str(error.value)


def test_a_results_file_alone_is_shown_with_what_it_has(good, capsys):
    run = write_run(good, 2, latency_ms=7.0)
    (run / "config.yaml").unlink()
    report = write_report([good], good / "report")
    assert report.runs.status.tolist() == ["complete"] * 3
    assert report.runs.latency_ms_median[2] == 7.0
    text = report.page.read_text(encoding="utf-8")
    assert "Complete runs that are in the table only: 1." in text
    summarize(good, report=False)
    assert "3 of 3 runs complete" in capsys.readouterr().out


def test_results_that_say_what_they_are_need_no_config(good):
    what = {"model": "m", "seq_len": 8192, "percentages": [100, 50], "layout": "zigzag", "split": "kv"}
    run = write_run(good, 2, partitioner="even", latency_ms=7.0)
    with_results(run, what | {"shape": "s", "partitioner": "lut"})
    (run / "config.yaml").unlink()
    row = load_runs([good]).iloc[2]
    assert (row.model, row.seq_len, row.profile, row.partitioner) == ("m", 8192, "100/50", "lut")
    assert (row.layout, row["split"], row["shape"]) == ("zigzag", "kv", "s")
    assert sum(len(group) for _, group in contexts(load_runs([good]))) == 3


def test_a_checkpoint_that_a_config_names_is_not_opened(good):
    run = write_run(good, 2)
    with_text(run, "config.yaml", "kind: attention", "kind: fms\n  checkpoint: /nowhere/of/mine")
    assert load_runs([good]).iloc[2]["shape"] == "checkpoint /nowhere/of/mine"


HOSTILE = "\x1b]0;owned\x07[bold]</script><b>$x$"


def test_hostile_text_acts_on_no_terminal(good, monkeypatch, capsys):
    write_run(good, 2, status="failed", reason=HOSTILE, **{f"column {HOSTILE}": HOSTILE})
    write_run(good, 3, kernel=HOSTILE, layout=HOSTILE, partitioner="lut")
    (good / "4_\x1b[31m").mkdir()
    (good / "4_\x1b[31m" / "results.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["results", str(good), "--columns", "run,reason,layout,kernel"])
    results.main()
    summarize(good, report=True)
    captured = capsys.readouterr()
    assert "owned" in captured.out
    assert "[bold]" in captured.out
    assert not {"\x1b", "\x07"} & set(captured.out + captured.err)
    page = (good / "report" / "index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert "<b>$x$" not in page


def test_no_cell_of_the_csv_is_a_formula(good):
    write_run(good, 2, status="failed", reason="=HYPERLINK(1)")
    text = csv_text(load_runs([good]))
    assert "'=HYPERLINK(1)" in text
    assert ",=HYPERLINK" not in text


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["latency_ms_median", "tokens", "speeds", "shares", "exact", "kernel", "costs", "hop", "num_units"]
NAMES += ["environment", "references", "decode", "adaptation", "resumed_from", "reason", "percentages"]
NAMES += ["seq_len", "model", "shape", "drift", "split", "throttle_emulated", "hop_gbps", "busy_ms", "wandb"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=3))
def test_no_damage_of_results_ends_the_tools(tmp_path_factory, capsys, damage):
    folder = tmp_path_factory.mktemp("fuzz")
    write_run(folder, 0, partitioner="even", layout="contiguous")
    with_results(write_run(folder, 1, partitioner="balanced"), damage)
    runs = load_runs([folder])
    assert runs.status[0] == "complete"
    csv_text(runs).encode()
    results.show(runs[list(results.SHOWN)])
    results.show_comparison(results.compare(runs, "partitioner", "latency_ms_median"))
    summarize(folder, report=False)
    with suppress(UserError):  # nothing that can be replayed
        find_recorded([folder])
    capsys.readouterr()


CONFIG_KEYS = ["hetero", "percentages", "seq_len", "layout", "partitioner", "model", "transport", "kernel"]
CONFIG_KEYS += [
    "name",
    "tile",
    "drift",
    "split",
    "shard",
    "prefetch_hops",
    "dtype",
    "batch_size",
    "num_heads",
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(CONFIG_KEYS), junk=JUNK)
def test_no_damage_of_a_config_ends_the_tools(tmp_path_factory, capsys, key, junk):
    from omegaconf import OmegaConf
    from yaml import safe_dump

    from ringexp.report.planner_runs import measured_runs

    folder = tmp_path_factory.mktemp("fuzz")
    write_run(folder, 0, partitioner="even", layout="contiguous")
    run = write_run(folder, 1, partitioner="balanced")
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(config, dict)
    for part in (config, config["model"], config["hetero"], config["transport"]):
        if key in part:
            part[key] = junk
    (run / "config.yaml").write_text(safe_dump(config), encoding="utf-8")
    runs = load_runs([folder])
    assert runs.status[0] == "complete"
    csv_text(runs).encode()
    measured_runs(contexts(runs))
    summarize(folder, report=False)
    capsys.readouterr()


@pytest.mark.parametrize("name", ["iterations.csv", "hops.csv", "layers.csv"])
@pytest.mark.parametrize("content", ["\0\0", 'iteration,rank\n"', "x" * 200_000, "a,b\n1,2,3\n", "nan,,\n"])
def test_damaged_csv_files_cost_their_own_run_only(good, name, content):
    for number in (2, 3):
        write_iterations(write_run(good, number, partitioner="balanced"), [two_rank_iteration(9.0)])
    (good / "3_balanced_zigzag_4096" / name).write_text(content)
    (_, group), *_ = contexts(load_runs([good]))
    assert ring_timelines(group) is not None
    assert adaptation.read_history(load_runs([good]).iloc[1]) is None  # of an older version


def test_one_hop_out_of_place_is_no_timeline(good):
    with_text(good / "1_lut_zigzag_4096", "hops.csv", "0,0,0,0,", "0,0,99,0,")
    assert median_iteration(good / "1_lut_zigzag_4096") is None
