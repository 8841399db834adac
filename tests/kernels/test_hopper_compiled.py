"""The Hopper kernel compiled ahead of time, no GPU needed: it builds, and uses what Hopper has."""

from __future__ import annotations

import pytest
import torch

from ringexp.kernels import hopper_block

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs triton >= 3.6")

SHARED_MEMORY_BYTES = 232448


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_block(dtype, head_dim, causal, merge, spans=1, arriving=False):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource

    from ringexp.kernels.hopper_kernel import BLOCK_N, ROWS, attention_block

    short = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    element = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}[dtype]

    def descriptor(rows):
        shape = [1, 1, rows, head_dim]
        return f"tensordesc<{short}{shape},{gl.NVMMASharedLayout.get_default_for(shape, element)!r}>"

    consumers = hopper_block._consumers(16384, 32, head_dim, causal, num_sms=132)
    consumer_regs, producer_regs = hopper_block._REGISTERS[consumers]
    constants = {
        "SPANS": spans,
        "AWAIT": arriving,
        "CAUSAL": causal,
        "MERGE": merge,
        "FINAL": merge,
        "CONSUMERS": consumers,
    }
    constants |= {"CONSUMER_REGS": consumer_regs, "PRODUCER_REGS": producer_regs}
    absent = [f"{x}{span}_desc" for span in range(spans, 4) for x in "kv"]
    absent += [f"words{span}_ptr" for span in range(spans if arriving else 1, 4)]
    absent += [] if arriving else ["waited_ptr"]
    constants |= dict.fromkeys(absent)
    further = {f"{x}{span}_desc": descriptor(BLOCK_N.value) for span in range(1, spans) for x in "kv"}
    types = {
        **further,
        **dict.fromkeys(("words1_ptr", "words2_ptr", "words3_ptr", "waited_ptr"), "*i32"),
        "q_desc": descriptor(ROWS.value),
        "k_desc": descriptor(BLOCK_N.value),
        "v_desc": descriptor(BLOCK_N.value),
        "out_ptr": "*fp32" if merge else f"*{short}",
        "lse_ptr": "*fp32",
        "final_ptr": f"*{short}",
        "next_ptr": "*i32",
        "scale_log2": "fp32",
        **dict.fromkeys(constants, "constexpr"),  # also what is absent
    }
    names = attention_block.arg_names
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if (name.endswith("_ptr") or name.startswith("stride_o")) and name not in absent
    }
    signature = {name: types.get(name, "i32") for name in names}
    source = GluonASTSource(attention_block, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


@pytest.mark.parametrize(
    ("dtype", "head_dim", "causal", "merge", "spans", "arriving"),
    [
        (torch.bfloat16, 128, True, True, 1, False),
        (torch.bfloat16, 128, False, False, 1, False),
        (torch.bfloat16, 128, True, False, 4, True),
        (torch.float16, 64, True, False, 2, False),
        (torch.bfloat16, 64, False, True, 1, False),
    ],
)
def test_it_compiles_for_hopper(dtype, head_dim, causal, merge, spans, arriving):
    compiled = compile_block(dtype, head_dim, causal, merge, spans, arriving)
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES
    ptx = compiled.asm["ptx"]
    for instruction in ("wgmma.mma_async", "cp.async.bulk.tensor.4d", "setmaxnreg"):
        assert instruction in ptx


def test_what_it_lacks_is_named():
    assert hopper_block.why_unavailable("cpu", torch.bfloat16, 128) == "CUDA, but device=cpu"


def test_tensors_that_tma_cannot_load_are_told_apart():
    fitting = torch.zeros(1, 5, 2, 64, dtype=torch.bfloat16).transpose(1, 2)
    assert hopper_block._fitting(fitting) is fitting
    shifted = torch.zeros(1, 5, 2, 65, dtype=torch.bfloat16).transpose(1, 2)[..., 1:]
    off_by_one = torch.zeros(129, dtype=torch.bfloat16)[1:].view(1, 1, 2, 64)
    for x in (shifted, off_by_one):
        assert not hopper_block.fits(x)
        copy = hopper_block._fitting(x)
        assert hopper_block.fits(copy)
        assert copy.equal(x)


@pytest.mark.parametrize(("q_len", "consumers"), [(2048, 2), (4096, 2), (16384, 3), (65536, 3)])
def test_a_third_consumer_where_its_larger_tiles_fill_the_device(q_len, consumers):
    assert hopper_block._consumers(q_len, 32, 64, staggered=False, num_sms=132) == consumers
    assert hopper_block._consumers(q_len, 32, 64, staggered=True, num_sms=132) == 2
    assert hopper_block._consumers(q_len, 32, 128, staggered=False, num_sms=132) == 2
