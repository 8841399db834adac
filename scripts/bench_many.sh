#!/usr/bin/env bash
# Measure rings of many ranks on all GPUs of this machine: scripts/bench_many.sh OUT [overrides ...]
#
# With 8 or 4 GPUs there is one rank per GPU, over NCCL. With 2 or 1, four ranks share them under MPS, over IPC: the
# same code, slower by the cost of sharing. In this order: ways to run the ring of equal ranks (with PyTorch's
# context_parallel where every rank has a GPU); the partitioners on unequal ranks, also with a lock-step ring; the
# simulator's prediction for the same plans; a whole model. Overrides go to the sweep, such as seq_len=16384. The same
# command continues an interrupted sweep.
set -euo pipefail

out=${1:?usage: scripts/bench_many.sh OUT [overrides ...]}
shift
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(realpath "$out")

gpus=$(nvidia-smi --list-gpus | wc -l)
lengths=16384,65536,262144 repeats=10
if [ "$gpus" -ge 8 ]; then
    ranks=8 profiles='[100,100,100,100,100,100,100,100],[100,100,100,100,100,100,100,50],[100,100,100,100,50,50,25,10]'
elif [ "$gpus" -ge 4 ]; then
    ranks=4 profiles='[100,100,100,100],[100,50,100,50],[100,100,100,10],[100,70,40,10]'
elif [ "$gpus" -ge 2 ]; then # ranks 0 and 2 on the first, 1 and 3 on the second
    ranks=4 profiles='[50,50,50,50],[50,50,25,25],[50,50,50,5],[60,40,20,10]'
else
    ranks=4 profiles='[25,25,25,25],[25,12,25,12],[30,30,30,3],[40,30,20,10]' lengths=16384,65536 repeats=5
fi

python scripts/bench_ring.py --ranks "$ranks" --lengths "$lengths" --repeats "$repeats" --out "$out"
python -m ringexp -m experiment=many_ranks model=ring_mha_4096 "hetero.percentages=$profiles" \
    "seq_len=$lengths" "repeats=$repeats" warmup=1 tracker=disabled "output_root=$out/runs" "$@"
python -m ringexp report "$out/runs/sweeps" --out "$out/report"
python -m ringexp simulate --runs "$out/runs/sweeps" | tee "$out/simulated.txt"
if [ "$gpus" -ge "$ranks" ]; then
    python -m ringexp model=llama3_8b seq_len=131072 "hetero.percentages=[${profiles##*[}" \
        partitioner=balanced repeats=3 warmup=1 check=false tracker=disabled "output_root=$out/runs"
fi
