"""`python -m ringexp.slurm.survey`: print, as JSON, what this node of a SLURM job has."""

from __future__ import annotations

import json

from ringexp.machine import gpu_count
from ringexp.tracking.environment import machine_facts

print(json.dumps({"gpus": gpu_count(), "cpu": machine_facts("cpu"), "cuda": machine_facts("cuda")}))
