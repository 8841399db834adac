"""On a node of a SLURM job the first task keeps the MPS daemon for all."""

import json
import os
import subprocess
import sys
from pathlib import Path

TASK = """
import json, sys
from pathlib import Path
from ringexp.slurm.task import node_throttle
from ringexp.worker.rank_set import RankSet
ranks = RankSet("cuda", "mps", "nccl", [100.0, 50.0], 2, {}, [])
with node_throttle(ranks, Path(sys.argv[1])) as environments:
    print(json.dumps(environments), flush=True)
    sys.stdin.read()
"""


def test_one_mps_daemon_serves_the_tasks_of_a_node(fake_mps, tmp_path):
    """Two tasks; the daemon is the first one's, and ends with it."""
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK, str(tmp_path)],
            env=os.environ | {"SLURM_NODEID": "0", "SLURM_LOCALID": local},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for local in ("1", "0")
    ]
    second, first = [json.loads(task.stdout.readline()) for task in tasks]
    assert first == second
    assert [each["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] for each in first] == ["100", "50"]
    pipe_directory = Path(first[0]["CUDA_MPS_PIPE_DIRECTORY"])
    assert pipe_directory.exists()
    for task in tasks:
        task.communicate("")
    assert not pipe_directory.exists()
    assert fake_mps.record()[-1] == "quit"
