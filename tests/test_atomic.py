"""Files that nobody sees half written, with the permissions and at the place that were meant."""

import os
import stat

import pytest

from ringexp.atomic import PRIVATE, write_atomically
from ringexp.launch.supervision import write_rank_set
from ringexp.tracking.files import RunFiles
from ringexp.worker.progress import ProgressWriter
from ringexp.worker.rank_error import error_file, write_error
from ringexp.worker.rank_set import RankSet


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_follow_the_umask(tmp_path, umask):
    RunFiles(tmp_path / "deep" / "run", {"seq_len": 1}).write_results("planned", {})
    files = list((tmp_path / "deep" / "run").iterdir())
    assert {path.name for path in files} >= {"config.yaml", "results.json", "iterations.csv"}
    assert {permissions(path) for path in files} == {0o666 & ~umask}
    assert permissions(tmp_path / "deep") == 0o777 & ~umask


def test_what_ranks_are_told_is_private(tmp_path, umask):
    rank_set = write_rank_set(RankSet("cpu", "none", "gloo", [100.0], 1, {}, ["ringexp"]), tmp_path)
    write_error(rank_set, 0, "RuntimeError", "no", 0.0)
    assert permissions(rank_set) == permissions(error_file(rank_set, 0)) == PRIVATE


def test_an_unwritable_file_leaves_no_draft(tmp_path, monkeypatch):
    def fail(*paths: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(tmp_path / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_replaced_and_not_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    write_atomically(link, "new")
    assert (victim.read_text(), link.read_text()) == ("precious", "new")


def test_progress_and_csv_files_follow_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("progress", "iterations.csv"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        ProgressWriter(tmp_path / "progress")
    with pytest.raises(OSError, match="symbolic links"):
        RunFiles(tmp_path, {})
    assert victim.read_text() == "precious"
