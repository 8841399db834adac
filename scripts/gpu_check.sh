#!/usr/bin/env bash
# On a machine with CUDA, run the GPU tests, then the partitioners on unequal ranks: scripts/gpu_check.sh OUT
#
# OUT gets the tests' log, the runs, and a report of the runs. ringexp and its dependencies have to be importable
# (scripts/setup.sh, or PYTHONPATH where nothing can be installed). With one GPU two ranks share it, at 66/33 and
# 90/9 %, and tests that need two GPUs are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gpu_check.sh OUT}
mkdir -p "$out"
nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv | tee "$out/gpus.txt"
python3 -m pytest -q -m gpu -p no:cacheprovider tests 2>&1 | tee "$out/gpu_tests.log" | tail -n 40 || true
if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
  profiles='[100,50],[100,10]'
else
  profiles='[66,33],[90,9]'
fi
python3 -m ringexp -m model=attention_mha_4096 "hetero.percentages=$profiles" seq_len=16384,65536 \
  layout=contiguous,zigzag partitioner=even,uneven,lut,formula tracker=disabled "output_root=$out/runs"
python3 -m ringexp report "$out/runs/sweeps" --out "$out/report"
