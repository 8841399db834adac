"""Which kernel a name means on which device, and what is said where it cannot run."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from ringexp.choices import KERNELS, KernelSpec
from ringexp.errors import UserError
from ringexp.kernels import candidates, get_decode_kernel, get_kernel, hopper_block, sdpa, triton_block
from ringexp.kernels.providers import why_unavailable

BF16, FP32 = torch.bfloat16, torch.float32
OPTIONS = ", ".join(KERNELS.options)


@pytest.fixture
def gpu_of(monkeypatch):
    """Pretend that there is a GPU of some compute capability and cuDNN version."""

    def pretend(capability, cudnn_version=91000):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn_version)

    return pretend


def test_importing_the_package_does_not_import_triton():
    code = "import sys, ringexp.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_auto_on_the_cpu_is_sdpa():
    assert candidates("cpu", FP32, 64) == ["sdpa"]
    assert get_kernel("auto", torch.device("cpu"), FP32, 64).name == "sdpa"


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "names"),
    [
        ((9, 0), BF16, 128, ["hopper", "cudnn", "sdpa"]),
        ((9, 0), BF16, 256, ["cudnn", "sdpa"]),
        ((8, 0), BF16, 128, ["cudnn", "sdpa"]),
        ((8, 0), BF16, 256, ["sdpa"]),
        ((9, 0), BF16, 100, ["sdpa"]),
        ((9, 0), FP32, 128, ["sdpa"]),
        ((7, 5), torch.float16, 128, ["sdpa"]),
    ],
)
def test_auto_chooses_among_what_fits(gpu_of, monkeypatch, capability, dtype, head_dim, names):
    gpu_of(capability)
    monkeypatch.setattr(hopper_block.importlib.metadata, "version", lambda name: "3.6.0")
    monkeypatch.setattr(KernelSpec, "why_not_installed", lambda spec: spec.package or None)
    assert candidates("cuda", dtype, head_dim) == names
    assert get_kernel("auto", "cuda", dtype, head_dim).name == names[0]


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "message"),
    [
        ((9, 0), FP32, 64, "needs float16 or bfloat16, but dtype=float32"),
        ((7, 5), torch.float16, 64, "needs compute capability >= 8.0, but this GPU has 7.5"),
        ((8, 0), BF16, 256, "multiple of 8 and at most 128 here, but head_dim=256"),
        ((9, 0), BF16, 128, r"needs the package flash-attn-4 \(pip install 'ringexp\[flash\]'\)"),
    ],
)
def test_flash_where_it_does_not_fit(gpu_of, capability, dtype, head_dim, message):
    gpu_of(capability)
    with pytest.raises(UserError, match=message):
        get_kernel("flash", "cuda", dtype, head_dim)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "function"),
    [
        ((9, 0), BF16, 128, "flash_cuda"),
        ((9, 0), FP32, 128, "efficient_cuda"),
        ((7, 5), torch.float16, 128, "efficient_cuda"),
        ((9, 0), BF16, 320, "efficient_cuda"),
    ],
)
def test_sdpa_on_cuda_takes_the_kernel_that_fits(gpu_of, capability, dtype, head_dim, function):
    gpu_of(capability)
    assert get_kernel("sdpa", "cuda", dtype, head_dim).block is getattr(sdpa, function)


@pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.name)
def test_every_kernel_runs_or_names_what_it_needs(spec):
    """On a CPU, as nothing else is at hand."""
    for dtype, head_dim in ((FP32, 64), (BF16, 72), (torch.float64, 3)):
        lacks = why_unavailable(spec, torch.device("cpu"), dtype, head_dim)
        if lacks:
            others = " or ".join(f"kernel={other}" for other in spec.alternatives)
            with pytest.raises(UserError, match=re.escape(f"kernel={spec.name} needs {lacks}; use {others}")):
                get_kernel(spec.name, "cpu", dtype, head_dim)
        else:
            assert get_kernel(spec.name, "cpu", dtype, head_dim).name == spec.name


def test_fused_kernels_say_how_much_they_take_at_once(gpu_of, monkeypatch):
    gpu_of((9, 0))
    monkeypatch.setattr(triton_block, "_interpreting", lambda: False)
    monkeypatch.setattr(KernelSpec, "why_not_installed", lambda spec: None)
    for spec in KERNELS:
        kernel = get_kernel(spec.name, "cuda", BF16, 64)
        assert (kernel.fused_limits is not None) == (kernel.block_into is not None) == spec.fused


def test_triton_on_a_hopper_gpu_is_the_portable_kernel(gpu_of, monkeypatch):
    gpu_of((9, 0))
    monkeypatch.setattr(hopper_block.importlib.metadata, "version", lambda name: "3.6.0")
    monkeypatch.setattr(triton_block, "_interpreting", lambda: False)
    portable, hopper = (get_kernel(name, "cuda", BF16, 128) for name in ("triton", "hopper"))
    assert (portable.block, portable.block_into) == (triton_block.block, None)
    assert (hopper.block, hopper.block_into) == (hopper_block.block, hopper_block.block_into)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "message"),
    [
        ((9, 0), FP32, 64, "needs float16 or bfloat16, but dtype=float32"),
        ((8, 0), BF16, 64, r"needs a Hopper GPU \(compute capability 9.0\), but this GPU has 8.0"),
        ((10, 0), BF16, 64, r"needs a Hopper GPU \(compute capability 9.0\), but this GPU has 10.0"),
        ((9, 0), BF16, 96, "needs head_dim 64 or 128, but head_dim=96"),
        ((9, 0), BF16, 64, "needs triton >= 3.6, but triton==3.5.1; use kernel=sdpa or kernel=auto"),
    ],
)
def test_hopper_where_it_does_not_fit(gpu_of, monkeypatch, capability, dtype, head_dim, message):
    gpu_of(capability)
    monkeypatch.setattr(hopper_block.importlib.metadata, "version", lambda name: "3.5.1")
    with pytest.raises(UserError, match=message):
        get_kernel("hopper", "cuda", dtype, head_dim)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match="kernel=flush is unknown; choose one of " + OPTIONS):
        get_kernel("flush", "cpu", FP32, 64)


def test_cudnn_on_the_cpu():
    message = "kernel=cudnn needs CUDA, but device=cpu; use kernel=sdpa or kernel=auto"
    with pytest.raises(UserError, match=f"^{message}$"):
        get_kernel("cudnn", "cpu", BF16, 64)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "message"),
    [
        ((9, 0), FP32, 64, "needs float16 or bfloat16, but dtype=float32"),
        ((7, 5), torch.float16, 64, "needs compute capability >= 8.0, but this GPU has 7.5"),
        ((8, 6), BF16, 256, "multiple of 8 and at most 128 here, but head_dim=256"),
        ((9, 0), BF16, 100, "multiple of 8 and at most 256 here, but head_dim=100"),
    ],
)
def test_cudnn_where_it_does_not_fit(gpu_of, capability, dtype, head_dim, message):
    gpu_of(capability)
    with pytest.raises(UserError, match=message):
        get_kernel("cudnn", "cuda", dtype, head_dim)


def test_sdpa_in_float64_names_the_reference():
    with pytest.raises(UserError, match=r"kernel=sdpa needs .* but dtype=float64; use kernel=reference"):
        get_kernel("sdpa", "cpu", torch.float64, 64)


def test_triton_on_the_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.setattr(triton_block, "_interpreting", lambda: False)
    with pytest.raises(UserError, match=r"kernel=triton needs CUDA, but device=cpu .*TRITON_INTERPRET=1"):
        get_kernel("triton", "cpu", FP32, 64)


def test_triton_on_cuda_while_interpreting(gpu_of, monkeypatch):
    gpu_of((9, 0))
    monkeypatch.setattr(triton_block, "_interpreting", lambda: True)
    with pytest.raises(UserError, match="TRITON_INTERPRET=1 is set; unset it"):
        get_kernel("triton", "cuda", BF16, 64)


def test_triton_on_an_old_gpu(gpu_of, monkeypatch):
    gpu_of((7, 5))
    monkeypatch.setattr(triton_block, "_interpreting", lambda: False)
    with pytest.raises(UserError, match=r"compute capability >= 8\.0, but this GPU has 7\.5"):
        get_kernel("triton", "cuda", torch.float16, 64)


def test_triton_interpreter_with_an_unfit_numpy(monkeypatch):
    monkeypatch.setattr(triton_block, "_interpreting", lambda: True)
    monkeypatch.setattr(triton_block, "_version", {"triton": (3, 6), "numpy": (2, 4)}.__getitem__)
    with pytest.raises(UserError, match=r"triton >= 3\.7 or numpy < 2\.4"):
        get_kernel("triton", "cpu", FP32, 64)


def test_triton_head_dim_beyond_its_tiles():
    with pytest.raises(UserError, match="head_dim <= 256, but head_dim=320"):
        get_kernel("triton", "cuda", BF16, 320)


def test_without_the_triton_package(monkeypatch):
    monkeypatch.setattr(triton_block.importlib.util, "find_spec", lambda name: None)
    assert not triton_block.available("cpu")
    with pytest.raises(UserError, match="needs the triton package, which is not installed; use kernel=sdpa"):
        get_kernel("triton", "cpu", FP32, 64)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "replayable"),
    [
        ((9, 0), BF16, 128, True),
        ((8, 0), FP32, 24, True),
        ((7, 5), torch.float16, 64, False),
        ((9, 0), BF16, 512, False),
    ],
)
def test_decoding_is_replayable_where_triton_can_run(gpu_of, capability, dtype, head_dim, replayable):
    gpu_of(capability)
    assert get_decode_kernel("cuda", dtype, head_dim).replayable == replayable
    assert not get_decode_kernel("cpu", FP32, head_dim).replayable
