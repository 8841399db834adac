"""A release runs outside the source tree, with its own conf/: a wheel built from the sdist."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import QUICK

SOURCE = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "-q"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel installed, built from the sdist."""
    root = tmp_path_factory.mktemp("released")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(root)]
    subprocess.run(build, check=True, capture_output=True, cwd=SOURCE)
    (sdist,) = root.glob("ringexp-*.tar.gz")
    wheel_from = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", root, sdist]
    subprocess.run(wheel_from, check=True, capture_output=True)
    (wheel,) = root.glob("ringexp-*.whl")
    subprocess.run(
        [*PIP, "install", "--no-deps", "--target", root / "site", wheel], check=True, capture_output=True
    )
    return root / "site"


def installed(site: Path, cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    code = "import ringexp.cli.run as c; print(c.CONF_DIR); c.main()"
    return subprocess.run(
        [sys.executable, "-c", code, *overrides],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(site)},
    )


def test_it_finds_its_configuration(site, tmp_path):
    done = installed(site, tmp_path, "dry_run=true", "hetero=mps_100_50_25", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "dry_run=true: nothing was started" in done.stdout


def test_it_runs_a_sweep_through_its_own_launchers(site, tmp_path):
    sweep = ["-m", "hydra/launcher=slurm_local_debug", "seq_len=128", "references=false", "report=false"]
    done = installed(site, tmp_path, *sweep, "device=cpu", "tracker=disabled", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs complete" in done.stdout
    assert list(tmp_path.glob("outputs/sweeps/*/*/0_*/results.json"))
