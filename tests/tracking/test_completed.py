"""Complete runs are found again by what they were, and never taken for what they were not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ringexp.config import AttentionModelConfig, Config, FmsModelConfig
from ringexp.tracking import completed
from ringexp.tracking.completed import CompletedRuns, copy_results, fingerprint, run_key
from ringexp.tracking.content import content_of
from support.results import read_content, whole_results

CONFIG = Config(model=AttentionModelConfig(name="tiny"), label="one")
RUN = fingerprint(CONFIG, {})
CPU = {"device": "cpu", "host": "box", "cores": 2}


def leave(folder: Path, **figures) -> Path:
    """Return a folder of a complete run on CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seq_len: 4096\n")
    (folder / "results.json").write_text(json.dumps(whole_results(**{"key": run_key(RUN, CPU)} | figures)))
    return folder


@pytest.fixture
def done(tmp_path: Path) -> Path:
    return leave(tmp_path / "runs" / "first")


@pytest.fixture
def runs(tmp_path: Path) -> CompletedRuns:
    return CompletedRuns(tmp_path / "completed", CPU, pytest.fail)


def test_an_equal_run_is_found_and_another_is_not(tmp_path, done, runs):
    assert runs.add(RUN, done)
    assert runs.find(fingerprint(replace(CONFIG, label="another", output_root="elsewhere"), {})) == done
    assert runs.find(fingerprint(replace(CONFIG, seq_len=8192), {})) is None
    assert runs.find(fingerprint(replace(CONFIG, seed=1), {})) is None
    for machine in ({"device": "cuda"}, CPU | {"cores": 4}):
        assert CompletedRuns(tmp_path / "completed", machine).find(RUN) is None
    assert CompletedRuns(tmp_path / "completed", CPU | {"host": "container"}).find(RUN) == done


def test_another_code_is_another_run(monkeypatch):
    monkeypatch.setattr(completed, "code_identity", lambda: "changed")
    assert fingerprint(CONFIG, {}) != RUN


def test_the_prompt_counts_by_its_text_not_by_its_name(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, text in zip(files, ("one", "one", "two"), strict=True):
        file.write_text(text)
    configs = [replace(CONFIG, prompt_file=str(file)) for file in files]
    configs.append(replace(CONFIG, prompt_text="one"))
    one, same, other, typed = (fingerprint(config, content_of(config)) for config in configs)
    assert one == same == typed != other
    files[0].write_text("two")
    assert fingerprint(configs[0], content_of(configs[0])) == other


def test_a_checkpoint_counts_by_its_files_not_by_its_folder(tmp_path):
    def of(folder: Path) -> str:
        config = Config(model=FmsModelConfig("checkpoint", checkpoint=str(folder)), output_root=str(tmp_path))
        return fingerprint(config, content_of(config))

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    before = of(tmp_path / "here")
    assert of(tmp_path / "there") == before
    (tmp_path / "here" / "model.safetensors").write_bytes(b"Weights")
    assert of(tmp_path / "here") != before


def test_a_folder_that_another_run_has_written_to_is_not_taken(done, runs):
    runs.add(RUN, done)
    other = fingerprint(replace(CONFIG, seq_len=8192), {})
    leave(done, key=run_key(other, CPU), latency_ms_median=99.0)
    assert runs.find(RUN) is None
    assert not runs.add(RUN, done)
    runs.add(other, done)
    assert runs.find(other) == done


@pytest.mark.parametrize(
    "figures",
    [{"exact": False}, {"status": "failed"}, {"missing_references": ["even"]}, {"key": None}],
    ids=str,
)
def test_what_is_no_whole_result_is_not_remembered(tmp_path, runs, figures):
    assert not runs.add(RUN, leave(tmp_path / "run", **figures))
    assert runs.find(RUN) is None


@pytest.mark.parametrize("figures", [{"exact": False}, {"status": "failed"}, {"status": "planned"}], ids=str)
def test_what_became_of_a_run_later_counts(done, runs, figures):
    runs.add(RUN, done)
    leave(done, **figures)
    assert runs.find(RUN) is None


def test_a_run_without_its_settings_or_folder_is_not_found(done, runs):
    runs.add(RUN, done)
    (done / "config.yaml").unlink()
    assert runs.find(RUN) is None
    (done / "results.json").unlink()
    assert runs.find(RUN) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"run_dir": 3, "key": "a"}', b'{"run_dir": "a"}', b'{"run_dir": "\xff"}'],
    ids=str,
)
def test_a_damaged_entry_is_set_aside_and_the_run_made_anew(tmp_path, done, content):
    told: list[str] = []
    runs = CompletedRuns(tmp_path / "completed", CPU, told.append)
    runs.add(RUN, done)
    (entry,) = (tmp_path / "completed").iterdir()
    entry.write_bytes(content)
    assert runs.find(RUN) is None
    assert [path.name for path in (tmp_path / "completed").iterdir()] == [f"{entry.name}.damaged"]
    assert len(told) == 1
    assert runs.add(RUN, done)
    assert runs.find(RUN) == done


@pytest.mark.parametrize(
    "figures",
    [{"latency_ms_median": 0.0}, {"latency_ms_median": "fast"}, {"busy_ms": 3}, {"tokens": [1.5]}],
    ids=str,
)
def test_damaged_results_of_an_old_run_are_set_aside(tmp_path, done, figures):
    told: list[str] = []
    runs = CompletedRuns(tmp_path / "completed", CPU, told.append)
    runs.add(RUN, done)
    leave(done, **figures)
    assert runs.find(RUN) is None
    assert (done / "results.json.damaged").exists()
    (line,) = told
    assert str(done / "results.json") in line


def test_an_index_that_cannot_be_written_is_only_a_warning(tmp_path, done):
    (tmp_path / "completed").touch()
    told: list[str] = []
    assert not CompletedRuns(tmp_path / "completed", CPU, told.append).add(RUN, done)
    (line,) = told
    assert "is complete, but a later sweep will not find it" in line
    assert read_content(done) == whole_results(key=run_key(RUN, CPU))


def test_a_copy_names_where_it_is_from(tmp_path, done):
    copy_results(done, tmp_path / "second")
    assert read_content(tmp_path / "second") == {**read_content(done), "resumed_from": str(done)}
    assert (tmp_path / "second" / "config.yaml").read_text() == "seq_len: 4096\n"


def test_the_run_itself_needs_no_copy(done):
    before = (done / "results.json").read_text()
    copy_results(done, done)
    assert (done / "results.json").read_text() == before
