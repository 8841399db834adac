"""`ringexp results`: lists, filters and compares what is in folders of runs."""

import sys

import pytest

from ringexp.cli import results
from support.run_folders import write_run


@pytest.fixture
def sweep(tmp_path):
    for number, (partitioner, seq_len, latency_ms) in enumerate(
        [("even", 4096, 12.0), ("lut", 4096, 9.0), ("even", 8192, 40.0), ("lut", 8192, 31.0)]
    ):
        write_run(tmp_path, number, partitioner=partitioner, seq_len=seq_len, latency_ms=latency_ms)
    write_run(tmp_path, 4, partitioner="formula", status="failed")
    return tmp_path


def run(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["results", *map(str, arguments)])
    results.main()
    return capsys.readouterr().out


def shown(output: str) -> list[list[str]]:
    """The cells of a printed table."""
    rows = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def test_all_runs_are_listed_with_how_they_ended(monkeypatch, capsys, sweep):
    output = run(monkeypatch, capsys, sweep)
    assert len(shown(output)) == 5
    assert "5 of 5 runs, 4 of them complete" in output


def test_runs_are_filtered_by_settings_numbers_and_status(monkeypatch, capsys, sweep):
    output = run(monkeypatch, capsys, sweep, "partitioner=lut,formula", "seq_len=4096", "status=complete")
    ((name, *_),) = shown(output)
    assert name.startswith("1_")


def test_runs_are_sorted_and_columns_chosen(monkeypatch, capsys, sweep):
    arguments = (
        "status=complete",
        "--sort",
        "latency_ms_median",
        "--columns",
        "partitioner,latency_ms_median",
    )
    output = run(monkeypatch, capsys, sweep, *arguments)
    assert shown(output) == [["lut", "9"], ["even", "12"], ["lut", "31"], ["even", "40"]]


def test_runs_are_compared_side_by_side(monkeypatch, capsys, sweep):
    output = run(monkeypatch, capsys, sweep, "--compare", "partitioner")
    assert shown(output) == [["4096", "12", "9"], ["8192", "40", "31"]]


@pytest.mark.parametrize("arguments", [["--sort", "-latency_ms_median"], ["--sort=-latency_ms_median"]])
def test_runs_are_sorted_downwards(monkeypatch, capsys, sweep, arguments):
    output = run(monkeypatch, capsys, sweep, "status=complete", *arguments, "--columns", "latency_ms_median")
    assert shown(output) == [["40"], ["31"], ["12"], ["9"]]


def test_runs_without_a_figure_are_sorted_last(monkeypatch, capsys, tmp_path):
    for number, commit in enumerate(("b", None, 7, "a")):
        write_run(tmp_path, number, environment={"commit": commit})
    for key, order in (("environment.commit", "2301"), ("-environment.commit", "0321")):
        output = run(monkeypatch, capsys, tmp_path, "--sort", key, "--columns", "run")
        assert "".join(row[0][0] for row in shown(output)) == order


def test_equal_runs_are_compared_by_median_and_spread(monkeypatch, capsys, sweep):
    write_run(sweep, 5, partitioner="lut", latency_ms=14.0)
    write_run(sweep, 6, partitioner="lut", latency_ms=10.0)
    output = run(monkeypatch, capsys, sweep, "--compare", "partitioner")
    assert shown(output) == [["4096", "12", "10 (3 runs, 9 to 14)"], ["8192", "40", "31"]]
    assert "4096, lut: 1_lut_zigzag_4096, 5_lut_zigzag_4096, 6_lut_zigzag_4096" in output
    assert "8192, even: 2_even_zigzag_8192" in output


def test_copies_of_one_run_are_compared_once(monkeypatch, capsys, sweep):
    for number in (5, 6):
        write_run(sweep, number, partitioner="lut", latency_ms=13.0, resumed_from="/earlier/run")
    output = run(monkeypatch, capsys, sweep, "--compare", "partitioner")
    assert shown(output)[0] == ["4096", "12", "11 (2 runs, 9 to 13)"]


def test_other_hardware_is_another_row(monkeypatch, capsys, sweep):
    machine = {"machine": {"device": "cuda", "gpus": ["Other"] * 2}}
    write_run(sweep, 5, partitioner="lut", latency_ms=90.0, environment=machine)
    output = run(monkeypatch, capsys, sweep, "--compare", "partitioner")
    assert ["4096", "2 x Other", "", "90"] in shown(output)
    assert ["4096", "2 x NVIDIA H200", "12", "9"] in shown(output)


def test_an_infinite_number_is_no_run(monkeypatch, capsys, sweep):
    assert "0 of 5 runs" in run(monkeypatch, capsys, sweep, "seq_len=inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort", "-latency_ms_medan"], "no run has latency_ms_medan; did you mean latency_ms_median?"),
        (["--compare", "partitioner", "--figure", "plan"], "no run has plan"),
        (["--compare", "partitioner", "--figure", "run"], "no complete run has run as a number"),
        (["partitoner=lut"], "no run has partitoner; did you mean partitioner?"),
        (["--sort", "latency"], "no run has latency"),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_what_is_not_there_is_named(monkeypatch, capsys, sweep, arguments, message):
    monkeypatch.setattr(sys, "argv", ["results", str(sweep), *arguments])
    with pytest.raises(SystemExit) as ended:
        results.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
