#!/usr/bin/env bash
# Whole-model prefill and decode of llama3_8b on the GPUs that are there: scripts/bench_models.sh OUT [TOKENS ...]
#
# With one GPU two ranks share it under MPS, with two each has its own. Every length is one sweep: equal ranks
# and a faster and a slower one, each split evenly and by measured speed, with 32 tokens decoded and everything
# checked against one process; then the faster and slower one again with the whole prefill as one CUDA graph, and
# in chunks; at last one report of all. Two bfloat16 copies of the model (32 GB) and one in float32 (32 GB) have to
# fit.
set -euo pipefail

out=${1:?usage: scripts/bench_models.sh OUT [TOKENS ...]}
shift
lengths=${*:-8192 32768}
cd "$(dirname "$0")/.."

if [ "$(nvidia-smi --list-gpus | wc -l)" -gt 1 ]; then
    equal='[100,100]' unequal='[100,50]'
else
    equal='[50,50]' unequal='[66,33]'
fi
common=(model=llama3_8b tracker=disabled repeats=5 warmup=1 resume=true report=false "output_root=$out")
for tokens in $lengths; do
    python -m ringexp -m "${common[@]}" "seq_len=$tokens" decode_tokens=32 \
        partitioner=even,balanced "hetero.percentages=$equal,$unequal"
    for extra in cuda_graph=true "model.chunk_tokens=$((tokens / 4))"; do
        python -m ringexp "${common[@]}" "seq_len=$tokens" partitioner=balanced "hetero.percentages=$unequal" \
            "$extra" references=false check=false
    done
done
python -m ringexp report "$out/sweeps" "$out/runs" --tracker disabled --out "$out/report"
