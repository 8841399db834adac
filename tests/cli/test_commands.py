"""One console script: its commands, its help, its completion, and words that are no command."""

import os
import subprocess
import sys

import pytest

from ringexp.cli import COMMANDS

CONSOLE = "from ringexp.cli import main; main()"


def script(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the console script `ringexp`."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'ringexp'; {CONSOLE}", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"COLUMNS": "160"} | env,
    )


def test_help_lists_the_commands():
    shown = script("--help").stdout
    assert all(f"ringexp {command} " in shown for command in COMMANDS)


def test_help_of_a_run_is_hydras_with_all_choices():
    shown = script("run", "--help").stdout
    assert "kernel: auto, cudnn, flash, hopper, reference, sdpa, triton" in shown
    assert "Settings (key=value):" in shown


def test_plan_shows_a_plan_and_starts_nothing(tmp_path):
    done = script("plan", "device=cpu", "seq_len=1k", f"output_root={tmp_path}")
    assert "dry_run=true: nothing was started" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sweep_takes_several_values(tmp_path):
    done = script(
        "sweep", "dry_run=true", "device=cpu", "layout=zigzag,contiguous", f"output_root={tmp_path}"
    )
    assert done.stdout.count("Plan: partitioner lut") == 2, done.stderr


@pytest.mark.parametrize("command", ["reprot", "sweeps"])
def test_an_unknown_command_ends_in_one_line(command):
    done = script(command, "x=1")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert f"there is no command {command}; choose one of run, sweep, plan," in line
    assert "did you mean " in line


def test_completion_knows_commands_and_settings_after_them():
    env = {"COMP_LINE": "ringexp re", "COMP_POINT": "10"}
    assert "report results" in script("-sc", "query=bash", **env).stdout
    env = {"COMP_LINE": "ringexp sweep partitioner=lu", "COMP_POINT": "28"}
    assert script("-sc", "query=bash", **env).stdout.split() == ["partitioner=lut"]
