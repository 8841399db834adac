"""The Triton kernel compiled ahead of time, no GPU needed: it builds, fits in shared memory, keeps its tiles.

What it computes when compiled is shown by the gpu tests.
"""

from __future__ import annotations

import pytest
import torch

from ringexp.kernels import triton_block

pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

SHARED_MEMORY_BYTES = {(9, 0): 232448, (8, 6): 101376}
CASES = [
    ((9, 0), torch.bfloat16, 128, True),
    ((9, 0), torch.bfloat16, 80, False),
    ((9, 0), torch.float32, 64, True),
    ((8, 6), torch.float16, 128, True),
]


POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def compile_kernel(kernel, capability, dtype, constants, num_warps, num_stages):
    """Pointers are to `dtype`, but for those that are named as something else."""
    pointers = dict.fromkeys(("lse_ptr", "parts_ptr"), "*fp32")
    pointers |= dict.fromkeys(("firsts_ptr", "stop_ptr"), "*i32")
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = pointers.get(name, POINTERS[dtype])
        else:
            signature[name] = "fp32" if name == "scale_log2" else "i32"
        if name.endswith("_ptr") or name.startswith("stride_"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return compile(source, target=target, options=options)


def compile_block(capability, dtype, head_dim, causal):
    from ringexp.kernels.triton_kernel import attention_block

    block_d = triton_block.padded_head_dim(head_dim)
    tiles = triton_block.choose_tiles(block_d, dtype, capability)
    constants = {
        "CAUSAL": causal,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "PRECISION": "ieee",
    }
    return compile_kernel(attention_block, capability, dtype, constants, tiles.num_warps, tiles.num_stages)


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "causal"),
    CASES,
    ids=["sm90-bf16-d128-causal", "sm90-bf16-d80-full", "sm90-fp32-d64-causal", "sm86-fp16-d128-causal"],
)
def test_compiles_within_shared_memory(capability, dtype, head_dim, causal):
    compiled = compile_block(capability, dtype, head_dim, causal)
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES[capability]
    on_hopper_tensor_cores = "wgmma.mma_async" in compiled.asm["ptx"]
    assert on_hopper_tensor_cores == (capability == (9, 0) and dtype != torch.float32)


@pytest.mark.parametrize("capability", SHARED_MEMORY_BYTES, ids=["sm90", "sm86"])
@pytest.mark.parametrize("dtype", triton_block.DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 48, 64, 96, 128, 256])
def test_key_tiles_divide_query_tiles(capability, dtype, head_dim):
    """Else the unmasked run of a causal block would reach past the diagonal."""
    tiles = triton_block.choose_tiles(triton_block.padded_head_dim(head_dim), dtype, capability)
    assert tiles.block_m % tiles.block_n == 0


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "group"),
    [((9, 0), torch.bfloat16, 128, 4), ((8, 6), torch.float16, 256, 17), ((9, 0), torch.float32, 128, 1)],
    ids=["sm90-bf16-d128-g4", "sm86-fp16-d256-g17", "sm90-fp32-d128-g1"],
)
def test_the_decode_kernel_compiles(capability, dtype, head_dim, group):
    """A program fits an SM."""
    from ringexp.kernels import triton_decode

    tiles = triton_decode.choose_tiles(triton_block.padded_head_dim(head_dim), dtype)
    constants = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton_block.padded_head_dim(head_dim),
        "BLOCK_M": triton_decode.padded_group(group),
        "BLOCK_N": tiles.block_n,
        "PRECISION": "ieee",
    }
    compiled = compile_kernel(
        triton_decode.attend_part, capability, dtype, constants, tiles.num_warps, tiles.num_stages
    )
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES[capability]
    assert "cp.async" in compiled.asm["ptx"]  # keys come while others are worked on
    assert ("mma.sync" in compiled.asm["ptx"]) == (dtype != torch.float32)


@pytest.mark.parametrize("with_lse", [True, False])
def test_the_merge_of_decoded_parts_compiles(with_lse):
    from ringexp.kernels import triton_decode

    constants = {
        "HEAD_DIM": 128,
        "BLOCK_D": 128,
        "BLOCK_P": triton_decode.PARTS_AT_ONCE,
        "WITH_LSE": with_lse,
    }
    compile_kernel(triton_decode.merge_parts, (9, 0), torch.bfloat16, constants, 4, 3)
