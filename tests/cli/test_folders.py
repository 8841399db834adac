"""Settings that become part of a folder's name lead nowhere else."""

import pytest

from ringexp.configure.register import folder_name
from ringexp.errors import UserError
from support.command import ringexp

OUTSIDE = [
    (["label=../../x"], "label='../../x' becomes part of a folder's name"),
    (["-m", "label=/x/y"], "label='/x/y' becomes part of a folder's name"),
    (["model.name=../../x"], "label='../../x_100_100_lut_zigzag_256' becomes part of a folder's name"),
    (["model.name=../../x", "label=y"], "model.name='../../x' becomes part of a folder's name"),
    (["-m", "hydra.sweep.subdir=../../x"], "hydra.sweep.subdir=../../x leads out of hydra.sweep.dir="),
    (["-m", "hydra.sweep.subdir=."], "hydra.sweep.subdir=. leads out of hydra.sweep.dir="),
]


@pytest.mark.parametrize(
    ("overrides", "message"), OUTSIDE, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_run_stays_in_its_output_root(tmp_path, overrides, message):
    root = tmp_path / "deep" / "down" / "outputs"
    settings = ("model=attention_tiny", "device=cpu", "dry_run=true", "seq_len=256")
    done = ringexp(*overrides, *settings, root=root)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"ringexp: error: {message}")
    assert [path for path in tmp_path.rglob("*x*") if path.is_dir()] == []


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[31m", "a\u2028b", "../x", "a/b", "\udcff"])
def test_a_name_that_no_folder_should_have_is_refused(name):
    with pytest.raises(UserError, match="label="):
        folder_name(name)


@pytest.mark.parametrize("name", ["", "..", "-x", "größe 1", "$(id)", "50%"])
def test_other_names_stay_as_they_are(name):
    assert folder_name(name) == name
