"""Complete runs are found again by what they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ringexp.config import AttentionModelConfig, Config
from ringexp.tracking.completed import CompletedRuns, copy_results
from ringexp.tracking.files import read_results

CONFIG = Config(model=AttentionModelConfig(name="tiny"), label="one")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The folder of a complete run."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seq_len: 4096\n")
    (folder / "results.json").write_text(json.dumps({"status": "complete", "latency_ms_median": 2.5}))
    return folder


def test_an_equal_run_is_found_and_another_is_not(tmp_path, done):
    runs = CompletedRuns(tmp_path / "completed", {"device": "cpu"})
    runs.add(CONFIG, done)
    assert runs.find(replace(CONFIG, label="another", output_root="elsewhere")) == done
    assert runs.find(replace(CONFIG, seq_len=8192)) is None
    assert CompletedRuns(tmp_path / "completed", {"device": "cuda"}).find(CONFIG) is None
    (done / "results.json").write_text(json.dumps({"status": "failed"}))
    assert runs.find(CONFIG) is None


def test_a_copy_names_where_it_is_from(tmp_path, done):
    copy_results(done, tmp_path / "second")
    assert read_results(tmp_path / "second") == {**read_results(done), "resumed_from": str(done)}
    assert (tmp_path / "second" / "config.yaml").read_text() == "seq_len: 4096\n"


def test_the_run_itself_needs_no_copy(done):
    before = (done / "results.json").read_text()
    copy_results(done, done)
    assert (done / "results.json").read_text() == before
