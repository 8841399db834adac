"""A page as a real browser has it after its scripts ran."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000"),
)


def dom(page: Path, address: str = "") -> str:
    """The page's HTML at its end; address: what follows the file in the address, such as #a=1.

    Skips the test where there is no browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs a browser (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={profile}",
                "--dump-dom",
                f"{page.resolve().as_uri()}{address}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "</html>" in done.stdout, done.stderr
    return done.stdout
