"""A wrong output, by a kernel that is wrong on one rank: the run fails, and nothing takes it for a result."""

import json
import os

import pytest

from support.command import QUICK, ringexp, run_dirs

RUN = ("model=attention_tiny", "hetero=mps_50_100", "partitioner=even", "seq_len=256", "resume=true")
RUN += ("references=false", "tracker=disabled", *QUICK)

WRONG_KERNEL = """\
import os

if os.environ.get("RANK") == "{rank}":
    from ringexp.kernels import sdpa

    right = sdpa.flash_cpu

    def flash_cpu(*block):
        out, lse = right(*block)
        out[:, :, -1] += {wrong}
        return out, lse

    sdpa.flash_cpu = flash_cpu
"""
"""A sitecustomize.py: Python imports it as each process starts, the ranks too."""


@pytest.mark.parametrize(
    ("rank", "wrong", "says"),
    [(0, "float('nan')", "NaN or infinite, and none of one process"), (1, "0.001", "the output is off by")],
)
def test_a_wrong_output_fails_the_run_and_is_forgotten(tmp_path, rank, wrong, says):
    custom = tmp_path / "custom"
    custom.mkdir()
    (custom / "sitecustomize.py").write_text(WRONG_KERNEL.format(rank=rank, wrong=wrong))
    path = os.pathsep.join(filter(None, [str(custom), os.environ.get("PYTHONPATH")]))
    failed = ringexp(*RUN, root=tmp_path, env={"PYTHONPATH": path})
    assert failed.returncode == 1, failed.stderr
    (line,) = failed.stderr.strip().splitlines()
    assert says in line
    assert "do not use it" in line
    (run_dir,) = run_dirs(tmp_path)
    assert json.loads((run_dir / "results.json").read_text())["exact"] is False
    assert not list(tmp_path.glob("completed/*"))
    again = ringexp(*RUN, root=tmp_path)  # the same run where the kernel is right: measured, not taken over
    assert again.returncode == 0, again.stderr
    results = [json.loads((folder / "results.json").read_text()) for folder in run_dirs(tmp_path)]
    assert sorted(each["exact"] for each in results) == [False, True]
    assert not any("resumed_from" in each for each in results)
