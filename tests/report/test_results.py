"""`python -m ringexp.results`: lists, filters and compares what is in folders of runs."""

import sys

import pytest

from ringexp import results
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
