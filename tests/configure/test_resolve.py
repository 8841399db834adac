"""The launcher decides once what a run's settings leave open, and the ranks read the same decisions."""

import json
from dataclasses import replace

import pytest

from ringexp.config import AttentionModelConfig, Config, FmsModelConfig, HeteroConfig, TransportConfig
from ringexp.configure import resolve as resolving
from ringexp.configure.resolve import ResolvedRun, resolve

CPU = Config(model=AttentionModelConfig(name="tiny"), device="cpu", hetero=HeteroConfig([50.0, 100.0]))
PADDED = FmsModelConfig(name="llama_micro", chunk_tokens=256)
RUNS = [
    CPU,
    replace(CPU, model=replace(CPU.model, causal=False), memory_limit_gib=[1, None]),
    replace(CPU, model=PADDED, seq_len=1000, prompt_lengths=[1000, 600], memory_limit_gib=2.5),
]


@pytest.mark.parametrize("config", RUNS, ids=["plain", "full mask", "padded chunks"])
def test_ranks_get_the_same_decisions_as_json(config):
    run = resolve(config, num_gpus=0)
    assert ResolvedRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_everything_is_decided():
    run = resolve(RUNS[2], num_gpus=0)
    assert (run.device, run.throttle, run.transport, run.tile) == ("cpu", "cpu_pacing", "gloo", 16)
    assert (run.chunks, run.starts, run.memory_limits_gib) == (4, (0, 400), (2.5, 2.5))
    assert run.mask.is_causal
    assert not run.cuda_graph


@pytest.mark.parametrize(
    ("ranks", "gpus", "nodes", "reach", "transport"),
    [
        (2, 2, 1, True, "ipc"),
        (2, 2, 1, False, "nccl"),
        (3, 2, 1, False, "ipc"),
        (4, 4, 2, True, "nccl"),
        (5, 4, 2, True, "gloo"),
    ],
)
def test_auto_is_the_first_transport_that_works(monkeypatch, ranks, gpus, nodes, reach, transport):
    monkeypatch.setattr(resolving, "gpus_reach_each_other", lambda: reach)
    config = replace(CPU, device="cuda", hetero=HeteroConfig([100.0] * ranks, "none"))
    assert resolve(config, gpus, nodes).transport == transport
    named = replace(config, transport=TransportConfig("gloo"))
    assert resolve(named, gpus, nodes).transport == "gloo"
