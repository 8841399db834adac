"""Settings that are refused before any rank starts. No test here starts a rank."""

from dataclasses import replace

import pytest

from ringexp.config import AttentionModelConfig, Config, FmsModelConfig, HeteroConfig, KernelConfig
from ringexp.configure import preflight
from ringexp.configure.preflight import Surroundings, check_before_start
from ringexp.errors import UserError
from ringexp.planning.memory import GIB

CPU, TWO_GPUS, UNKNOWN = (
    Surroundings("cpu", 0),
    Surroundings("cuda", 2),
    Surroundings("cuda", None, here=False),
)
LLAMA_8B = FmsModelConfig(name="llama3_8b", dtype="bfloat16", variant="3-8b")
MICRO = FmsModelConfig(name="llama_micro")


@pytest.fixture
def config(tmp_path):
    return Config(
        model=AttentionModelConfig(name="tiny", emb_dim=64), output_root=str(tmp_path), seq_len=4096
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Return a machine of 24 GiB with GPUs of 12 GiB."""
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(preflight, "gpu_memory_bytes", lambda: 12 * GIB)


@pytest.mark.parametrize(
    ("settings", "transport", "where", "message"),
    [
        ({"kernel": "flash"}, "gloo", CPU, "kernel=flash needs CUDA, but device=cpu"),
        ({"kernel": "cudnn"}, "gloo", CPU, "kernel=cudnn needs CUDA, but device=cpu"),
        (
            {"kernel": "cudnn"},
            "auto",
            UNKNOWN,
            "kernel=cudnn needs float16 or bfloat16, but model.dtype=float32",
        ),
        ({}, "nccl", CPU, "transport=nccl needs CUDA"),
        ({}, "gloo", Surroundings("cuda", 0), "no CUDA device is visible"),
        ({}, "ipc", Surroundings("cuda", 4, nodes=2), "these are on 2"),
        (
            {"percentages": [100.0] * 3},
            "nccl",
            TWO_GPUS,
            "3 ranks, but transport=nccl takes one rank per GPU",
        ),
        ({"cuda_graph": True}, "gloo", CPU, "cuda_graph=true needs CUDA"),
        ({"cuda_graph": True}, "auto", CPU, "cuda_graph=true needs CUDA"),
        ({"cuda_graph": True}, "gloo", TWO_GPUS, "cuda_graph=true needs CUDA with transport=nccl or ipc"),
        ({"seq_len": 20}, "gloo", CPU, "is smaller than one tile of 16 tokens"),
        ({"model": LLAMA_8B}, "gloo", CPU, "13 GiB per rank for weights and inputs, 26 GiB for 2 ranks"),
        (
            {"model": LLAMA_8B},
            "ipc",
            TWO_GPUS,
            "13 GiB per rank for weights and inputs, but its GPU has 12 GiB",
        ),
        ({"model": LLAMA_8B, "memory_limit_gib": 1}, "auto", UNKNOWN, "memory_limit_gib=1 holds 0 of"),
        ({"memory_limit_gib": [1e-3, 1e-3]}, "gloo", CPU, "holds"),
        ({"model": replace(MICRO, architecture="lama")}, "gloo", CPU, "did you mean llama"),
        ({"model": replace(MICRO, variant="mikro")}, "gloo", CPU, "FMS says"),
        (
            {"model": replace(MICRO, overrides={"nlayer": 1})},
            "gloo",
            CPU,
            "model.overrides.nlayer is no setting",
        ),
        ({"model": replace(MICRO, overrides={"nlayers": "x"})}, "gloo", CPU, "FMS says"),
        ({"model": replace(MICRO, overrides={"kvheads": 3})}, "gloo", CPU, "FMS says"),
        (
            {"model": replace(MICRO, checkpoint="/nowhere")},
            "gloo",
            CPU,
            "checkpoint /nowhere has no config.json",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(config, settings, transport, where, message):
    given = dict(settings)
    if "kernel" in given:
        given["kernel"] = KernelConfig(given["kernel"])
    if "percentages" in given:
        given["hetero"] = HeteroConfig(given.pop("percentages"))
    with pytest.raises(UserError) as caught:
        check_before_start(replace(config, **given), transport, where)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "transport", "where"),
    [
        ({}, "gloo", CPU),
        ({}, "nccl", TWO_GPUS),
        ({"model": MICRO}, "gloo", CPU),
        ({"model": replace(MICRO, overrides={"nlayers": 2})}, "gloo", CPU),
        ({"model": LLAMA_8B}, "auto", UNKNOWN),
        ({"cuda_graph": True}, "auto", UNKNOWN),
        ({"memory_limit_gib": 1}, "gloo", CPU),
    ],
    ids=str,
)
def test_what_can_work_is_taken(config, settings, transport, where):
    check_before_start(replace(config, **settings), transport, where)


@pytest.mark.parametrize("folder", ["", "calibration", "references", "completed"])
def test_a_file_where_a_folder_has_to_be_is_named(config, tmp_path, folder):
    root = tmp_path / "outputs"
    (root if folder else tmp_path).mkdir(exist_ok=True)
    (root / folder if folder else root).write_text("kept", encoding="utf-8")
    with pytest.raises(UserError, match=f"output_root={root} cannot be written to"):
        check_before_start(replace(config, output_root=str(root)), "gloo", CPU)
