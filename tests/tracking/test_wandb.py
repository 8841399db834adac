"""wandb's records: where they go, what they are called, what is in them, and what is left of them."""

import os
import subprocess
import sys
import time

import pytest

from ringexp.config import Config, TrackerConfig
from ringexp.configure.compose import grouped
from ringexp.errors import UserError
from ringexp.names import MAX_WANDB_NAME, MAX_WANDB_TAG
from ringexp.report.console import sync_command
from ringexp.tracking import wandb_run
from ringexp.tracking.tracker import Tracker
from ringexp.tracking.wandb_choice import choose, chosen_mode
from ringexp.tracking.wandb_run import WandbRun, summary_of
from support.wandb_records import WANDB, artifact_files, records, run_record, summary

ENVIRONMENT = {
    "WANDB_MODE": "online",
    "WANDB_PROJECT": "theirs",
    "WANDB_ENTITY": "team",
    "WANDB_NAME": "named",
    "WANDB_TAGS": "a, b",
    "WANDB_RUN_GROUP": "grouped",
}


def test_the_environment_says_what_settings_do_not(tmp_path):
    choice = choose(TrackerConfig(), tmp_path, ["ours"], "run", ENVIRONMENT)
    assert (choice.mode, choice.project, choice.entity) == ("online", "theirs", "team")
    assert (choice.group, choice.name, choice.tags) == ("grouped", "named", ["ours", "a", "b"])


def test_settings_overrule_the_environment(tmp_path):
    tracker = TrackerConfig("disabled", "mine", "me", "group", ["x"])
    choice = choose(tracker, tmp_path, ["ours"], "run", ENVIRONMENT)
    assert (choice.mode, choice.project, choice.entity) == ("disabled", "mine", "me")
    assert (choice.group, choice.tags) == ("group", ["ours", "x"])


def test_without_either_records_are_offline(tmp_path):
    choice = choose(TrackerConfig(), tmp_path / "run", [], "run", {})
    assert (choice.mode, choice.project, choice.entity) == ("offline", "ringexp", None)
    assert (choice.group, choice.name, choice.tags) == (None, "run", [])


@pytest.mark.parametrize(("asked", "mode"), [("dryrun", "offline"), ("run", "online"), ("", "offline")])
def test_older_names_of_modes_are_taken(asked, mode):
    assert chosen_mode(TrackerConfig(), {"WANDB_MODE": asked}) == mode


def test_an_unknown_mode_of_the_environment_is_refused():
    with pytest.raises(UserError, match="WANDB_MODE=loud is unknown; use one of offline, online, disabled"):
        chosen_mode(TrackerConfig(), {"WANDB_MODE": "loud"})


def test_a_sweeps_group_gives_way_to_the_environments(monkeypatch):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    assert grouped(Config(), "sweep").tracker.group == "sweep"
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert grouped(Config(), "sweep").tracker.group == "theirs"
    config = Config(tracker=TrackerConfig(group="mine"))
    assert grouped(config, "sweep").tracker.group == "mine"


def test_long_names_and_tags_keep_their_record(tmp_path):
    said: list[str] = []
    folder = tmp_path / ("f" * 200)
    folder.mkdir()
    tags = ["t" * 100, "t" * 101, "", "short"]
    record = WandbRun(folder, TrackerConfig("offline", group="g" * 300), {}, tags, warn=said.append)
    record.finish({})
    run = run_record(records(folder))
    assert said == []
    assert len(set(run["tags"])) == 3
    assert max(map(len, run["tags"])) == MAX_WANDB_TAG
    assert len(run["display_name"]) == len(run["run_group"]) == MAX_WANDB_NAME


def test_lists_per_rank_become_scalars():
    values = {
        "busy_ms": [1.0, 2.0],
        "costs": [{"fixed_ms": 0.1}, {"fixed_ms": 0.2}],
        "latency_ms_iterations": [3.0, 4.0],
        "decode": {"kept": [5, 6], "texts": ["a", "b"], "tokens": 7},
        "adaptation": {"replans": 1, "prompts": [{}, {}]},
        "environment": {"machine": {"gpus": ["x", "y"]}},
        "exact": True,
    }
    assert summary_of(values, 2) == {
        "rank_0/busy_ms": 1.0,
        "rank_1/busy_ms": 2.0,
        "rank_0/costs.fixed_ms": 0.1,
        "rank_1/costs.fixed_ms": 0.2,
        "rank_0/decode.kept": 5,
        "rank_1/decode.kept": 6,
        "decode": {"texts": ["a", "b"], "tokens": 7},
        "adaptation": {"replans": 1},
        "environment": {"machine": {"gpus": ["x", "y"]}},
        "exact": True,
    }


def test_a_failed_run_has_its_facts_and_files(tmp_path):
    environment = {
        "command": ["python -m ringexp", "label=a b"],
        "machine": {"device": "cpu", "cpu": "Fast", "cores": 2},
        "versions": {"torch": "2.11.0"},
    }
    config = Config(tracker=TrackerConfig("offline"))
    tracker = Tracker(tmp_path, config, pytest.fail, {"environment": environment})
    tracker.planned({"tokens": [3, 5]})
    tracker.fail(RuntimeError("out of memory"))
    found = records(tmp_path)
    run = run_record(found)
    assert run["config"]["command"] == "python -m ringexp 'label=a b'"
    assert run["config"]["hardware"] == environment["machine"]
    assert run["config"]["versions"] == environment["versions"]
    assert (summary(found)["rank_0/tokens"], summary(found)["rank_1/tokens"]) == (3, 5)
    files = artifact_files(found)
    assert set(files) == {"config.yaml", "results.json", "iterations.csv", "layers.csv", "hops.csv"}
    assert files["results.json"] == tmp_path / "results.json"


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """No credentials anywhere, and no memory of an earlier failure."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(WandbRun, "online_failed", False)
    monkeypatch.setattr(wandb_run, "CONNECT_S", 2.0)


def kept_offline(folder, said):
    """Make two records that should be online; both are kept offline, which is said once each at most."""
    for name in ("first", "second"):
        (folder / name).mkdir()
        record = WandbRun(folder / name, TrackerConfig("online"), {}, warn=said.append)
        record.log({"iteration": 0, "latency_ms": 1.0})
        record.finish({"latency_ms_median": 1.0})
        assert summary(records(folder / name))["latency_ms_median"] == 1.0
        assert list((folder / name / "wandb").glob("run-*")) == []


def test_online_without_a_login_is_kept_offline(tmp_path, no_login):
    said: list[str] = []
    kept_offline(tmp_path, said)
    (line,) = said
    assert line.startswith("wandb: No API key configured")
    assert line.endswith("the record is kept offline, for `wandb sync`")


def test_online_without_a_server_is_kept_offline(tmp_path, no_login, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said: list[str] = []
    kept_offline(tmp_path, said)
    (line,) = said
    assert "the record is kept offline" in line
    assert "\n" not in line


ENDLESS = """
import sys, time
from pathlib import Path
from ringexp.config import TrackerConfig
from ringexp.tracking.wandb_run import WandbRun
record = WandbRun(Path(sys.argv[1]), TrackerConfig("offline"), {})
record.log({"iteration": 0})
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_killed_process_leaves_no_temporary_folders(tmp_path, how):
    run_dir, temporary = tmp_path / "run", tmp_path / "t"
    run_dir.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-c", ENDLESS, str(run_dir)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    getattr(process, how)()
    process.communicate()
    deadline = time.monotonic() + 10  # for wandb's own process to notice
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(temporary.iterdir()) == []
    assert not (run_dir / "wandb" / "tmp").exists()


def test_one_command_sends_all_records_of_a_sweep(tmp_path):
    sweep = tmp_path / "a sweep's"
    for name in ("0_even", "1_lut", "report"):
        (sweep / name).mkdir(parents=True)
        WandbRun(sweep / name, TrackerConfig("offline"), {}).finish({})
    command = sync_command(sweep, "*/wandb/offline-run-*").replace("wandb sync", f"{WANDB} sync --dry-run")
    done = subprocess.run(["sh", "-c", command], capture_output=True, encoding="utf-8", check=True)
    assert "Would sync 3 run(s)" in done.stdout + done.stderr
