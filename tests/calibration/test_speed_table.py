"""The calibration table: what is added stays, whatever else happens to the file or to the writers."""

import dataclasses
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.calibration.csv_file import COLUMNS
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.table import SpeedTable
from ringexp.errors import UserError

ROW = SpeedRow(
    hardware="NVIDIA H200",
    throttle="mps",
    percentage=50.0,
    ranks_per_device=1,
    shape="attention-emb4096-h32-kv32-d128-bfloat16-cudnn",
    length=16384,
    tokens=1,
    speed_tflops=182.25,
    time_ms=12.5,
    spread=0.01,
    samples=20,
    measured_at="2026-03-01T10:00:00+00:00",
    versions="torch 2.11, cuda 13.0",
)

CHILD = """
import dataclasses, os, signal, sys
from ringexp.calibration.rows import SpeedRow
from ringexp.calibration.table import SpeedTable
table = SpeedTable(sys.argv[1])
row = SpeedRow("child", "mps", 50.0, 1, "shape", 1, 1, 1.0, 1.0, 0.0, 1, "2026-03-01T10:00:00", "")
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def changed(row: SpeedRow = ROW, **values: object) -> SpeedRow:
    return dataclasses.replace(row, **values)  # type: ignore[arg-type]


def child(path, code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD + code, str(path), *arguments])


@pytest.fixture
def table(tmp_path):
    return SpeedTable(tmp_path / "calibration" / "speeds.csv")


def test_missing_file_is_an_empty_table(table):
    assert table.load() == ()
    assert table.rows(hardware="any") == []
    assert not table.path.parent.exists()


def test_adding_nothing_writes_nothing(table):
    table.add([])
    assert not table.path.exists()


def test_rows_are_found_by_another_table_on_the_same_file(table):
    other = SpeedTable(table.path)
    assert other.load() == ()
    table.add([ROW])
    assert other.load() == (ROW,)


def test_removed_file_is_an_empty_table_again(table):
    table.add([ROW])
    table.path.unlink()
    assert table.load() == ()


def test_filters_combine(table):
    rows = [
        changed(percentage=p, length=n, throttle=t) for p in (50, 100) for n in (1, 2) for t in ("a", "b")
    ]
    table.add(rows)
    assert len(table.load()) == 8
    assert {(row.throttle, row.percentage) for row in table.rows(length=2, percentage=50)} == {
        ("a", 50.0),
        ("b", 50.0),
    }
    assert table.rows(hardware="other") == []
    assert [row.length for row in table.rows(throttle="a", percentage=100, ranks_per_device=1)] == [1, 2]


def test_file_is_readable_and_does_not_depend_on_the_order_of_adding(tmp_path):
    rows = [changed(percentage=p) for p in (100.0, 10.0, 50.0)]
    one, other = SpeedTable(tmp_path / "one.csv"), SpeedTable(tmp_path / "other.csv")
    one.add(rows)
    for row in reversed(rows):
        other.add([row])
    assert one.path.read_bytes() == other.path.read_bytes()
    lines = one.path.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[1].startswith(
        "NVIDIA H200,mps,10.0,1,attention-emb4096-h32-kv32-d128-bfloat16-cudnn,16384,1,182.25,"
    )


def test_a_table_with_former_column_names_is_read(table):
    row = changed(co_tenants="50+10")
    table.add([row])
    text = table.path.read_text()
    table.path.write_text(text.replace("co_tenants", "beside", 1))
    assert SpeedTable(table.path).load() == (row,)


def test_what_a_rank_shares_its_gpu_with_makes_another_row(table):
    table.add([changed(co_tenants=text) for text in ("", "50", "50+10")])
    assert len(table.load()) == 3
    assert [row.co_tenants for row in table.rows(co_tenants="50")] == ["50"]


@pytest.mark.parametrize(
    ("old", "new", "newest_is_new"),
    [
        ("2026-03-01T10:00:00", "2026-03-01T10:00:01", True),
        ("2026-03-01T10:00:01", "2026-03-01T10:00:00", False),
        ("2026-03-01T10:00:00", "2026-03-01T10:00:00", True),
        ("2026-03-01T10:00:00+00:00", "2026-03-01T10:30:00+02:00", False),
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00.5", True),
    ],
    ids=["later", "earlier", "tie", "zones", "fraction"],
)
def test_newest_row_of_a_key_wins(table, old, new, newest_is_new):
    table.add([changed(measured_at=old, speed_tflops=1.0)])
    table.add([changed(measured_at=new, speed_tflops=2.0)])
    (row,) = table.load()
    assert row.speed_tflops == (2.0 if newest_is_new else 1.0)


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(positive, positive, st.floats(0, 100, exclude_min=True), st.floats(0, 1e300), st.text(max_size=20))
def test_every_value_survives_a_round_trip(tmp_path_factory, speed, time_ms, percentage, spread, text):
    text = "".join(c for c in text if c.isprintable()) + '",;x'
    row = changed(speed_tflops=speed, time_ms=time_ms, percentage=percentage, spread=spread, versions=text)
    table = SpeedTable(tmp_path_factory.mktemp("round_trip") / "speeds.csv")
    table.add([row])
    assert SpeedTable(table.path).load() == (row,)


def test_numpy_numbers_are_written_as_plain_ones(table):
    table.add([changed(speed_tflops=np.float64(1.5), percentage=np.float32(25), length=np.int64(7))])
    assert SpeedTable(table.path).load() == (changed(speed_tflops=1.5, percentage=25.0, length=7),)


@pytest.mark.parametrize(
    "values",
    [
        {"speed_tflops": 0.0},
        {"speed_tflops": float("nan")},
        {"time_ms": float("inf")},
        {"percentage": 0.0},
        {"percentage": 100.1},
        {"length": 0},
        {"tokens": 0},
        {"tokens": 16385},
        {"samples": 0},
        {"spread": -0.1},
        {"hardware": " "},
        {"shape": "two\nlines"},
        {"measured_at": "yesterday"},
    ],
    ids=str,
)
def test_impossible_row_is_refused(values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name}="):
        changed(**values)


HEADER = ",".join(COLUMNS).encode() + b"\n"
GOOD = b"cpu,none,100.0,1,shape,64,32,0.5,1.0,0.0,3,2026-03-01T10:00:00,torch,,1\n"


def written(tmp_path, content: bytes) -> tuple[SpeedTable, list[str]]:
    """Return a table with this content, and what it tells the user."""
    path, told = tmp_path / "speeds.csv", []
    path.write_bytes(content)
    return SpeedTable(path, told.append), told


NO_TABLES = {
    "empty": (b"", "columns missing"),
    "foreign": (b"mps_pct,size,tflops\n10,1024,24.91\n", "columns missing"),
    "unknown column": (HEADER.replace(b"\n", b",colour\n") + GOOD, "unknown: ['colour']"),
    "missing column": (HEADER.replace(b",samples", b"") + GOOD, "columns missing: ['samples']"),
    "column twice": (HEADER.replace(b"time_ms", b"length") + GOOD, "columns missing: ['time_ms']"),
    "binary": (b"\x00\x01\x02PNG\x00", "columns missing"),
    "no utf-8": (b"\xff\xfeh\x00", "codec can't decode"),
}


@pytest.mark.parametrize(("content", "why"), NO_TABLES.values(), ids=NO_TABLES)
def test_what_is_no_table_is_set_aside_whole(tmp_path, content, why):
    table, told = written(tmp_path, content)
    assert table.load() == ()
    assert table.path.read_bytes() == content  # who only reads leaves it
    told.clear()
    assert table.mend() == ()
    (line,) = told
    assert str(table.path) in line
    assert why in line
    assert "\n" not in line
    assert (tmp_path / "speeds.csv.damaged").read_bytes() == content
    table.add([ROW])
    assert SpeedTable(table.path).load() == (ROW,)


BAD_LINES = {
    "cut": (GOOD[:30], "must have 15 fields"),
    "too long": (GOOD.replace(b"torch,,1", b"torch,50,1,more"), "must have 15 fields"),
    "not a number": (GOOD.replace(b"0.5", b"fast"), "speed_tflops='fast' is not a number"),
    "not whole": (GOOD.replace(b"64,", b"64.5,"), "length='64.5' is not a whole number"),
    "negative": (GOOD.replace(b"0.5", b"-0.5"), "speed_tflops=-0.5 must be positive"),
    "zero": (GOOD.replace(b"0.5,1.0", b"0.5,0"), "time_ms=0.0 must be positive"),
    "nan": (GOOD.replace(b"0.5", b"nan"), "speed_tflops=nan must be positive"),
    "open quote": (GOOD.replace(b"torch", b'"torch'), "unexpected end of data"),
    "not utf-8": (GOOD.replace(b"torch", b"\xff\xfe"), "codec can't decode"),
    "no date": (GOOD.replace(b"2026-03-01T10:00:00", b"soon"), "must be an ISO 8601 time"),
}


@pytest.mark.parametrize(("bad", "why"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_damaged_line_is_set_aside_alone(tmp_path, bad, why):
    other = GOOD.replace(b"cpu", b"other")
    table, told = written(tmp_path, HEADER + GOOD + bad.rstrip(b"\n") + b"\n" + other)
    assert [row.hardware for row in table.mend()] == ["cpu", "other"]
    (line,) = told
    assert str(table.path) in line
    assert "line 3: " in line
    assert why in line
    assert bad.strip(b"\n") in table.damaged_file.read_bytes().split(b"\n")
    assert len(table.path.read_bytes().splitlines()) == 3
    told.clear()
    assert len(SpeedTable(table.path, told.append).mend()) == 2
    assert told == []


def test_a_reader_uses_good_lines_and_changes_nothing(tmp_path):
    content = HEADER + GOOD + b"cut,line\n"
    table, told = written(tmp_path, content)
    assert [row.hardware for row in table.load()] == [row.hardware for row in table.load()] == ["cpu"]
    assert len(told) == 1
    assert table.path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [table.path]


def test_damaged_lines_of_two_times_are_all_kept(tmp_path):
    for bad in (b"one,line\n", b"two,lines\n"):
        table, _ = written(tmp_path, HEADER + GOOD + bad)
        table.add([ROW])
    assert b"one,line" in table.damaged_file.read_bytes()
    assert b"two,lines" in table.damaged_file.read_bytes()
    assert len(table.load()) == 2


def test_a_folder_in_its_place_is_set_aside(tmp_path):
    told: list[str] = []
    table = SpeedTable(tmp_path / "speeds.csv", told.append)
    table.path.mkdir()
    table.add([ROW])
    assert table.load() == (ROW,)
    assert (tmp_path / "speeds.csv.damaged").is_dir()
    assert len(told) == 1


def test_a_row_from_the_future_gives_way_to_a_measured_one(table):
    now = datetime.now(timezone.utc)
    future = changed(measured_at=(now + timedelta(days=400)).isoformat(), speed_tflops=1.0)
    measured = changed(measured_at=now.isoformat(timespec="seconds"), speed_tflops=2.0)
    table.add([future])
    assert table.load() == (future,)
    table.add([measured])
    assert table.load() == (measured,)
    table.add([future])
    assert table.load() == (measured,)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_hand_edited_file_is_read(tmp_path, start):
    path = tmp_path / "speeds.csv"
    path.write_bytes(start + (HEADER + b"\n" + GOOD).replace(b"\n", b"\r\n").rstrip())
    assert [(row.hardware, row.speed_tflops) for row in SpeedTable(path).load()] == [("cpu", 0.5)]


def test_path_that_cannot_be_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written.*choose a path"):
        SpeedTable(tmp_path / "file" / "speeds.csv").add([ROW])


def test_symbolic_link_stays_a_link(tmp_path):
    link, target = tmp_path / "link.csv", tmp_path / "target.csv"
    SpeedTable(target).add([ROW])
    link.symlink_to(target)
    SpeedTable(link).add([changed(length=1)])
    assert link.is_symlink()
    assert len(SpeedTable(target).load()) == 2


def test_links_beside_the_table_are_not_followed(table):
    """Whoever may write in the folder can foresee the lock's name, and could that of a draft."""
    table.path.parent.mkdir()
    victim = table.path.with_name("victim")
    victim.write_text("precious")
    table.path.with_name(f".{table.path.name}.tmp").symlink_to(victim)
    table.add([ROW])
    assert table.load() == (ROW,)
    lock = table.path.with_name(f"{table.path.name}.lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written: Too many levels of symbolic links"):
        table.add([ROW])
    assert victim.read_text() == "precious"


def test_processes_adding_at_once_lose_no_row(table):
    code = """
for length in range(1, 26):
    table.add([dataclasses.replace(row, hardware=sys.argv[2], length=length)])
"""
    children = [child(table.path, code, f"device {i}") for i in range(4)]
    assert [process.wait(timeout=60) for process in children] == [0] * 4
    assert {(row.hardware, row.length) for row in table.load()} == {
        (f"device {i}", length) for i in range(4) for length in range(1, 26)
    }


@pytest.mark.parametrize(
    ("victim", "written"),
    [
        ("os.fsync = die", False),
        ("os.replace = die", False),
        ("import ringexp.calibration.table as t; t.write_atomically = die", False),
        ("done = os.replace; os.replace = lambda *a: (done(*a), die())", True),
    ],
    ids=["half written", "before the rename", "with the lock held", "after the rename"],
)
def test_writer_killed_leaves_the_old_or_the_new_file(table, victim, written):
    table.add([ROW])
    process = child(table.path, f"{victim}\ntable.add([row])")
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert [row.hardware for row in table.load()] == ["NVIDIA H200"] + ["child"] * written
    table.add([changed(length=1)])
    assert len(table.load()) == 2 + written


def test_writer_killed_at_any_moment_loses_no_finished_row(table):
    code = """
for length in range(1, 10_000):
    table.add([dataclasses.replace(row, length=start + length) for start in range(0, 2_000_000, 10_000)])
    print(length, file=open(sys.argv[2], "w"), flush=True)
"""
    finished = table.path.with_name("finished")
    table.add([ROW])
    for attempt in range(3):
        process = child(table.path, code, str(finished))
        deadline = time.monotonic() + 30
        while not finished.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05 + 0.037 * attempt)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        rows = table.load()
        assert rows[0] == ROW
        assert (len(rows) - 1) % 200 == 0
        assert len(rows) - 1 >= 200 * int(finished.read_text() or 1)
        finished.unlink()


def test_dropped_rows_are_gone_and_newer_ones_of_their_keys_stay(table):
    old, other = ROW, changed(length=1)
    newer = changed(measured_at="2026-03-02T10:00:00+00:00")
    table.add([old, other])
    table.add([newer])
    table.drop([old, other])
    assert SpeedTable(table.path).load() == (newer,)
