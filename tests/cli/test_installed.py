"""An installed wheel runs outside the source tree, with its own conf/."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2]


def test_a_wheel_finds_its_configuration(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        SOURCE,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("ringexp-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    code = "import ringexp.cli as c; print(c.CONF_DIR); c.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "dry_run=true", "hetero=mps_100_50_25", "device=cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "dry_run=true: nothing was started" in done.stdout
