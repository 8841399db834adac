#!/usr/bin/env bash
# Measure prefill and decode of llama3_8b on two ranks: scripts/bench_models.sh OUT [TOKENS ...]
#
# With one GPU the ranks share it under MPS; with two each rank has its own. Each length is one sweep over equal and
# unequal ranks, split evenly and by measured speed, with 32 decoded tokens and every output checked against one
# process. Then the unequal ranks run again with the whole prefill as one CUDA graph, and in chunks. A report of all
# runs comes last. Memory has to hold two bfloat16 copies of the model (32 GB) and one in float32 (32 GB).
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
