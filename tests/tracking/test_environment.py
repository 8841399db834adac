"""The record of code and machine describes ringexp itself, whatever repository is around it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ringexp.tracking import environment
from ringexp.tracking.environment import PACKAGE, code_files, machine_facts

ASK = (
    "from ringexp.tracking.environment import code_identity, git_commit; print(code_identity(), git_commit())"
)


def asked(folder: Path, **env: str) -> list[str]:
    """Code identity and commit, by the package in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"PYTHONPATH": str(folder)} | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def git(folder: Path, *arguments: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def copied(folder: Path) -> Path:
    """Return a copy of the package's code in `folder`."""
    for path in code_files():
        target = folder / "ringexp" / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def test_a_repository_around_an_installed_package_does_not_count(tmp_path):
    packages = copied(tmp_path / "project" / "vendor")
    git(tmp_path / "project", "init", "-q")
    (tmp_path / "project" / "notes").write_text("one")
    git(tmp_path / "project", "add", "notes")
    git(tmp_path / "project", "commit", "-qm", "notes")
    identity, commit = asked(packages)
    assert (identity, commit) == (environment.code_identity(), "None")
    (tmp_path / "project" / "notes").write_text("two")
    assert asked(packages) == [identity, "None"]
    with (packages / "ringexp" / "planning" / "plan.py").open("a") as file:
        file.write("# changed\n")
    assert asked(packages)[0] != identity


def test_the_commit_is_that_of_ringexps_own_tree(tmp_path):
    source = copied(tmp_path / "ringexp" / "src").parent
    (source / "pyproject.toml").write_text('[project]\nname = "ringexp"\n')
    (source / ".gitignore").write_text("__pycache__\n")
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-qm", "all")
    head = git(source, "rev-parse", "--short=12", "HEAD")
    assert asked(source / "src")[1] == head
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    git(elsewhere, "init", "-q")
    assert asked(source / "src", GIT_DIR=str(elsewhere / ".git"))[1] == head
    (source / "pyproject.toml").write_text('[project]\nname = "ringexp"\n# changed\n')
    assert asked(source / "src")[1] == f"{head}+dirty"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_tree_of_another_user_has_no_commit_but_an_identity(tmp_path):
    source = copied(tmp_path / "src").parent
    (source / "pyproject.toml").write_text('[project]\nname = "ringexp"\n')
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-qm", "all")
    for path in (source, source / ".git"):
        os.chown(path, 65534, 65534)
    identity, commit = asked(source / "src", HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path))
    assert (identity, commit) == (environment.code_identity(), "None")


SMI = """#!/bin/sh
case "$*" in
  *driver_version*) echo 580.1; echo 580.1 ;;
  *--query-gpu=index,uuid,name*) echo '0, GPU-aaaa-1, NVIDIA H200'; echo '1, GPU-bbbb-2, NVIDIA L40' ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def unequal(tmp_path, monkeypatch):
    """Simulate a machine with an H200 and an L40."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def test_each_choice_of_unequal_gpus_is_another_machine(unequal, monkeypatch):
    facts = []
    for visible in ("0", "1", "0,1", "1,0", "GPU-bb,GPU-aa", None):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        facts.append(machine_facts("cuda"))
    assert [each["gpus"] for each in facts[:3]] == [
        ["NVIDIA H200"],
        ["NVIDIA L40"],
        ["NVIDIA H200", "NVIDIA L40"],
    ]
    assert facts[3] == facts[4]
    assert facts[2] == facts[5]
    assert all(one != other for i, one in enumerate(facts[:4]) for other in facts[:i])
    assert facts[0]["driver"] == "580.1"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert machine_facts("cuda") != facts[5]


def test_without_nvidia_smi_the_choice_itself_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    one, other = [], []
    for visible, facts in (("0", one), ("1", other)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        facts.append(machine_facts("cuda"))
    assert one != other
