"""The report as a whole: its files, its page, its command, and its wandb run."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ringexp import atomic
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.table import SpeedTable
from ringexp.cli import report as command
from ringexp.config import TrackerConfig
from ringexp.report import build
from ringexp.report.build import write_report
from ringexp.report.sweep import summarize
from support.run_folders import two_rank_iteration, write_iterations, write_run
from support.wandb_records import artifact_files, records, run_record

SHAPE = "attention-b1-e4096-h32-kv32-d128-causal-bfloat16-triton"


def make_sweep(root: Path) -> Path:
    """A small sweep below an output root that has a calibration table; one of its runs failed."""
    folder = root / "sweeps" / "2026-03-01" / "12-00-00-abc"
    number = 0
    for slow in (10, 50):
        for length in (4096, 8192):
            for layout, partitioner in (("contiguous", "even"), ("zigzag", "even"), ("zigzag", "balanced")):
                made = write_run(
                    folder,
                    number,
                    percentages=(100, slow),
                    seq_len=length,
                    layout=layout,
                    partitioner=partitioner,
                    latency_ms=10.0 + number,
                )
                write_iterations(made, [two_rank_iteration(10.0 + number)])
                number += 1
    write_run(folder, number, partitioner="formula", status="failed", reason="<b>out of memory</b>")
    rows = [
        SpeedRow("H200", "mps", p, 1, SHAPE, n, n // 2, p, 1.0, 0.0, 5, "2026-03-01T00:00:00", "")
        for p in (10.0, 50.0, 100.0)
        for n in (4096, 8192)
    ]
    SpeedTable(root / "calibration" / "speeds.csv").add(rows)
    return folder


@pytest.fixture
def sweep(tmp_path):
    return make_sweep(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report, for tests that only read it."""
    folder = make_sweep(tmp_path_factory.mktemp("outputs"))
    return write_report([folder], folder / "report").page.parent


class Page(HTMLParser):
    """The references of a page, its rows, and whether its tags are closed in order."""

    VOID = frozenset(("meta", "img", "input", "br", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.rows[-1][-1] += data


def test_the_page_is_whole_and_needs_no_network(written):
    text = (written / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    inside = {reference for reference in page.references if not reference.startswith("data:")}
    assert inside == {"#summary", "#figures", "#runs", "#environment", "planner.html"}
    without_data = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|@import|url\(", without_data)
    assert (written / "planner.html").exists()
    assert "prefers-color-scheme: dark" in text


def test_the_page_has_all_runs_and_what_failed(written):
    text = (written / "index.html").read_text()
    names = {row[0] for row in Page(text).rows if row}
    assert {path.name for path in written.parent.iterdir() if path.name[0].isdigit()} <= names
    assert "12 of 13 runs complete, 1 failed" in text
    assert "&lt;b&gt;out of memory&lt;/b&gt;" in text
    assert "could not be drawn" not in text


def test_figures_are_files_and_in_the_page(written):
    text = (written / "index.html").read_text()
    written = {path.stem for path in (written / "figures").glob("*.png")}
    assert written == set(re.findall(r'<figure id="(\w+)"', text))
    assert {
        "calibration",
        "speedup_heatmaps",
        "ring_timelines",
        "extreme_case",
        "token_distribution",
    } <= written


def test_the_pages_script_parses(written, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    text = (written / "index.html").read_text()
    script = tmp_path / "page.js"
    script.write_text(text.split("<script>")[1].split("</script>")[0])
    subprocess.run([node, "--check", script], check=True, capture_output=True)


def test_a_figure_that_fails_is_said_and_the_rest_is_there(sweep, monkeypatch, capsys):
    broken = replace(build.FIGURES[1], draw=lambda runs: 1 / 0)
    monkeypatch.setattr(build, "FIGURES", [build.FIGURES[0], broken, *build.FIGURES[2:]])
    text = write_report([sweep], sweep / "report").page.read_text()
    assert "Figure extreme_case could not be drawn: ZeroDivisionError" in text
    assert text.count("<figure") > 5
    assert capsys.readouterr().err.count("could not be drawn") == 1


def test_a_planner_that_cannot_take_the_runs_is_said_and_there_without_them(sweep, monkeypatch):
    monkeypatch.setattr(build, "measured_runs", lambda groups: 1 / 0)
    written = write_report([sweep], sweep / "report").page
    assert "The planner has no runs: ZeroDivisionError" in written.read_text()
    assert '"runs": []' in written.with_name("planner.html").read_text()


def test_runs_of_two_kinds_have_figures_of_their_own(tmp_path):
    for number, kernel in enumerate(("auto", "auto", "cudnn", "cudnn")):
        partitioner = ("even", "lut")[number % 2]
        write_run(tmp_path / "s", number, layout="contiguous", partitioner=partitioner, kernel=kernel)
    text = write_report([tmp_path / "s"], tmp_path / "out").page.read_text()
    assert {"extreme_case", "extreme_case_1"} <= set(re.findall(r'<figure id="(\w+)"', text))
    assert "The extreme case: kernel cudnn" in text


def report(*arguments, env: dict[str, str] | None = None, python=()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, "-m", "ringexp", "report", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | (env or {}),
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "tkagg", "nonsense"])
def test_a_backend_of_the_environment_draws_nothing(sweep, backend):
    done = report(sweep, env={"MPLBACKEND": backend})
    assert (done.returncode, done.stderr) == (0, "")
    assert (sweep / "report" / "figures" / "extreme_case.png").exists()


def test_matplotlib_settings_of_the_user_draw_nothing(sweep, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: nowhere\nsavefig.dpi: 1\n")
    done = report(sweep, env={"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")})
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((sweep / "report" / "figures").glob("*.png"))) > 5


def test_an_ascii_locale_makes_the_same_report(sweep):
    write_run(sweep, 20, status="failed", reason="Größe \u2028 zu groß")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = report(sweep, env=ascii_only, python=("-X", "utf8=0"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Größe" in (sweep / "report" / "index.html").read_text(encoding="utf-8")
    listing = [sys.executable, "-X", "utf8=0", "-m", "ringexp", "results", sweep, "--columns", "reason"]
    listed = subprocess.run(listing, capture_output=True, text=True, env=os.environ | ascii_only)
    assert (listed.returncode, listed.stderr) == (0, "")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_full_disk_leaves_the_old_report_whole(sweep, monkeypatch, capsys):
    out = write_report([sweep], sweep / "report").page.parent
    before = content(out)
    write_run(sweep, 20, partitioner="lut")
    written = atomic._write_new

    def full(path: Path, data: bytes, mode: int) -> None:
        if "index.html" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(path, data, mode)

    monkeypatch.setattr(atomic, "_write_new", full)
    monkeypatch.setattr(sys, "argv", ["report", str(sweep), "--tracker", "disabled"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert "cannot be written: No space left on device; what was there is as it was" in line
    assert content(out) == before
    summarize(sweep, report=True)
    assert "no report: the report in" in capsys.readouterr().out


def test_a_signal_while_figures_are_drawn_ends_the_report(sweep, monkeypatch):
    def interrupted(runs):
        signal.raise_signal(signal.SIGINT)

    broken = replace(build.FIGURES[0], draw=interrupted)
    monkeypatch.setattr(build, "FIGURES", [broken, *build.FIGURES[1:]])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            write_report([sweep], sweep / "report")
    finally:
        signal.signal(signal.SIGINT, before)
    assert content(sweep / "report") == {}


def test_ctrl_c_ends_the_command_with_one_line(sweep):
    process = subprocess.Popen(
        [sys.executable, "-m", "ringexp", "report", sweep, "--tracker", "disabled"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "matplotlib/ft2font" not in maps.read_text():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == "ringexp report: interrupted; an earlier report is unchanged\n"


def test_the_command_makes_one_report_of_several_folders(sweep, tmp_path):
    write_run(tmp_path / "more", partitioner="lut")
    done = report(sweep, tmp_path / "more", "--out", tmp_path / "both")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"13 of 14 runs complete, 1 failed\nReport: {tmp_path}/both/index.html\n"
    assert (tmp_path / "both" / "runs.csv").read_text().count("\n") == 15


def test_of_points_in_several_tables_the_newest_are_drawn(sweep, tmp_path):
    other = make_sweep(tmp_path / "other")
    done = report(sweep, other, "--out", tmp_path / "both")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "both" / "figures" / "calibration.png").exists()


def test_runs_that_all_failed_make_a_report_without_figures(tmp_path):
    write_run(tmp_path, status="failed", reason="no memory")
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 of 1 runs complete, 1 failed")
    assert "No run is complete" in (tmp_path / "report" / "index.html").read_text()


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    write_run(tmp_path / "runs")
    for arguments, message in [
        ([tmp_path / "nowhere"], "nowhere does not exist; give a folder of runs"),
        ([tmp_path / "file"], "file is not a folder"),
        ([tmp_path / "runs", "--out", tmp_path / "file" / "x"], "cannot be written: Not a directory"),
    ]:
        done = report(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("ringexp report: error: ")
        assert message in line


def test_a_damaged_calibration_table_costs_its_figure_only(sweep, capsys):
    (sweep.parents[2] / "calibration" / "speeds.csv").write_text("what,is,this\n1,2,3\n")
    text = write_report([sweep], sweep / "report").page.read_text()
    assert "speeds.csv is damaged and not used" in capsys.readouterr().err
    assert text.count("<figure") > 5


def test_help_imports_nothing_heavy():
    code = "import sys, ringexp.cli.report as m\ntry: m.parse(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'pandas', 'matplotlib', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "--out" in done.stdout


def test_the_report_is_a_wandb_run_in_the_group_of_the_runs(sweep):
    write_report([sweep], sweep / "report", TrackerConfig("offline", group="study"))
    found = records(sweep / "report")
    run = run_record(found)
    assert (run["run_group"], run["job_type"]) == ("study", "report")
    (item,) = (record["history"]["item"] for record in found if record["type"] == "history")
    assert {"extreme_case._type", "runs._type"} <= set(item)
    (table,) = (sweep / "report").glob("wandb/offline-run-*/files/media/table/*.json")
    assert len(json.loads(table.read_text())["data"]) == 13
    assert {"index.html", "planner.html", "runs.csv", "figures/extreme_case.png"} <= set(
        artifact_files(found)
    )


def test_wandb_that_fails_is_said_once_and_changes_nothing(sweep, monkeypatch, capsys):
    import wandb

    def broken(**_):
        raise OSError("no room")

    monkeypatch.setattr(wandb, "init", broken)
    assert write_report([sweep], sweep / "report", TrackerConfig("offline")).page.exists()
    assert capsys.readouterr().err.count("wandb: no room") == 1


def test_a_disabled_tracker_logs_nothing(written):
    assert not (written / "wandb").exists()
