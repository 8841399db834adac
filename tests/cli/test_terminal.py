"""Standard output of a command, whatever is at its other end."""

import os
import subprocess
import sys

import pytest

CODE = (
    "from ringexp.cli.terminal import keep_printing; keep_printing(); "
    "print('größe 字'); print('end' * 100000)"
)


def shell(command: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=os.environ | {"PY": sys.executable, "CODE": CODE} | env,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("where", [">&-", "| head -c 3", "> /dev/full", "> /dev/null"])
def test_output_that_nobody_takes_is_dropped(where):
    done = shell(f'"$PY" -c "$CODE" {where}')
    assert (done.returncode, done.stderr) == (0, b"")


def test_characters_that_the_encoding_lacks_are_replaced():
    done = shell('"$PY" -c "$CODE"', PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"gr??e ?\nend")
