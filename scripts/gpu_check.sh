#!/usr/bin/env bash
# On a machine with CUDA: the GPU tests, then the partitioner benchmark, then its table. Usage: gpu_check.sh OUT_DIR
# Needs ringexp and its dependencies importable (scripts/setup.sh, or PYTHONPATH where nothing can be installed).
# With one GPU its ranks share it, at 66/33 and 90/9 % of it, and what needs two GPUs is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?usage: scripts/gpu_check.sh OUT_DIR}
mkdir -p "$out"
nvidia-smi --query-gpu=index,name,driver_version,memory.total --format=csv | tee "$out/gpus.txt"
python3 -m pytest -q -m gpu -p no:cacheprovider tests 2>&1 | tee "$out/gpu_tests.log" | tail -n 40 || true
if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
  python3 scripts/bench_partitioners.py --out "$out" --root /tmp/ringexp-bench
else
  python3 scripts/bench_partitioners.py --out "$out" --root /tmp/ringexp-bench \
    --profiles 66_33,90_9
fi
