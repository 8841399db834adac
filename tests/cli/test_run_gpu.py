"""Runs on real GPUs: NCCL over two of them, and several ranks on one under each throttle."""

import json

import pytest
import torch

from ringexp.choices import KERNELS
from ringexp.machine import gpu_count
from support.command import QUICK, ranks_alive, ringexp, run_dirs

pytestmark = pytest.mark.gpu


def run_on_gpu(root, *overrides):
    done = ringexp("tracker=disabled", "references=false", *QUICK, *overrides, root=root)
    assert done.returncode == 0, done.stderr
    assert ranks_alive(root) == []
    return json.loads((run_dirs(root)[-1] / "results.json").read_text())


@pytest.mark.parametrize("throttle", ["mps", "green_context"])
@pytest.mark.parametrize("model", ["attention_mha_4096", "attention_gqa_4096"])
def test_two_gpus_over_nccl(tmp_path, model, throttle):
    if gpu_count() < 2:
        pytest.skip("needs two CUDA devices")
    how = ["hetero=mps_100_50", f"hetero.throttle={throttle}", "transport=nccl"]
    results = run_on_gpu(tmp_path, f"model={model}", *how, "seq_len=5000")
    assert results["exact"] is True
    assert results["transport"] == "nccl"
    assert results["speeds"][1] < results["speeds"][0]
    assert results["sm_counts"][1] < results["sm_counts"][0]


@pytest.mark.parametrize("throttle", ["mps", "green_context"])
@pytest.mark.parametrize("transport", ["ipc", "gloo"])
def test_two_ranks_share_a_gpu(tmp_path, transport, throttle):
    results = run_on_gpu(
        tmp_path,
        "hetero.percentages=[50,25]",
        f"hetero.throttle={throttle}",
        f"transport={transport}",
        "seq_len=4096",
    )
    assert results["exact"] is True
    assert results["speeds"][1] < results["speeds"][0]


@pytest.mark.parametrize("graph", ["true", "false"])
def test_graphs_and_kernels_one_by_one_give_the_same_results(tmp_path, graph):
    results = run_on_gpu(
        tmp_path, "hetero.percentages=[60,30]", "transport=ipc", f"cuda_graph={graph}", "seq_len=3001"
    )
    assert results["exact"] is True
    assert min(results["busy_ms"]) > 0
    assert (min(results["comm_ms"]) > 0) == (gpu_count() > 1)


@pytest.mark.parametrize(
    "how",
    [
        "transport=ipc",
        "transport=gloo",
        "cuda_graph=true",
        "model.chunk_tokens=1000",
        "prompt_lengths=[3001,1,1500]",
    ],
)
@pytest.mark.parametrize("model", ["llama_micro", "qwen3_micro"])
def test_whole_models_prefill_and_decode(tmp_path, model, how):
    """Over ipc decoding replays a graph, over gloo it goes kernel by kernel."""
    results = run_on_gpu(
        tmp_path,
        f"model={model}",
        "model.dtype=float32",
        "hetero.percentages=[60,30]",
        *([] if how.startswith("transport") else ["transport=ipc"]),
        *([] if how.startswith("prompt_lengths") else ["seq_len=3001"]),
        "decode_tokens=8",
        how,
    )
    assert results["exact"] is True
    assert results["decode"]["agreeing"] == 8 * results["decode"]["sequences"]
    assert min(results["attention_ms"]) > 0
    assert results["decode"]["longest_context"] > results["decode"]["longest_context_single"]


@pytest.mark.parametrize("how", ["cuda_graph=true", "cuda_graph=false", "model=llama_micro"])
def test_a_rank_slows_down_in_mid_run(tmp_path, how):
    """Another green context's stream becomes current, and graphs are captured on it."""
    results = run_on_gpu(
        tmp_path,
        "hetero.percentages=[50,50]",
        "hetero.drift.kind=step",
        "hetero.drift.to=[50,25]",
        "hetero.drift.at=6",
        "partitioner=adaptive",
        "transport=ipc",
        "seq_len=8192",
        "repeats=20",
        how,
    )
    assert (results["throttle"], results["exact"]) == ("green_context", True)
    prompts = results["adaptation"]["prompts"]
    before, after = prompts[5], prompts[-1]
    assert (before["percentages"], after["percentages"]) == ([50.0, 50.0], [50.0, 25.0])
    assert after["calibrated_speeds"][1] < before["calibrated_speeds"][1]
    assert len(prompts) == 20
    assert all(sum(prompt["tokens"]) == 8192 for prompt in prompts)


def test_more_ranks_than_gpus_share_memory(tmp_path):
    percentages = ",".join(["25", "20", "15", "10"] * gpu_count())
    results = run_on_gpu(tmp_path, f"hetero.percentages=[{percentages}]", "seq_len=8193")
    assert (results["transport"], results["exact"]) == ("ipc", True)


@pytest.mark.parametrize("kernel", [spec.name for spec in KERNELS if not spec.package])
def test_every_kernel_is_exact_in_the_ring(tmp_path, kernel):
    results = run_on_gpu(
        tmp_path, f"kernel={kernel}", "hetero=none", "transport=gloo", "seq_len=3001", "layout=contiguous"
    )
    assert (results["kernel"], results["exact"]) == (kernel, True)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_lock_step_and_kv_shards(tmp_path, transport):
    if transport == "nccl" and gpu_count() < 2:
        pytest.skip("needs two CUDA devices")
    for overrides in (["transport.prefetch_hops=1"], ["split=kv"]):
        settings = ["hetero.percentages=[60,30]", f"transport={transport}", "seq_len=4097", *overrides]
        assert run_on_gpu(tmp_path, *settings)["exact"] is True


def test_measured_takes_each_gpu_by_itself(tmp_path):
    results = run_on_gpu(tmp_path, "hetero=measured", "partitioner=balanced", "seq_len=16384")
    assert len(results["speeds"]) == gpu_count()
    assert results["exact"] is True
    rows = (tmp_path / "calibration" / "speeds.csv").read_text().splitlines()[1:]
    assert len({row.split(",")[0] for row in rows}) == gpu_count()


def test_ranks_take_no_more_memory_than_the_plan_says(tmp_path):
    """32,768 tokens of one layer need about 4 GiB on a rank that holds them all, and 1 GiB for one token."""
    settings = ["hetero.percentages=[60,30]", "transport=ipc", "partitioner=balanced", "seq_len=32768"]
    results = run_on_gpu(tmp_path, *settings, "memory_limit_gib=[8,2]", "check=false")
    assert min(results["tokens"]) > 0
    assert results["peak_memory_bytes"][1] <= 2 * 2**30


def test_hops_cost_nothing_but_between_gpus(tmp_path):
    results = run_on_gpu(tmp_path, "hetero.percentages=[60,30]", "transport=ipc", "seq_len=4096")
    assert (results["hop_latency_ms"] > 0) == (gpu_count() > 1)
    assert (results["hop_gbps"] is not None) == (gpu_count() > 1)


def test_gpus_that_reach_each_other_use_ipc(tmp_path):
    if gpu_count() < 2 or not torch.cuda.can_device_access_peer(0, 1):
        pytest.skip("needs two CUDA devices that access each other")
    assert run_on_gpu(tmp_path, "seq_len=4096")["transport"] == "ipc"
