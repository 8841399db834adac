"""The Hopper kernel compiled ahead of time, no GPU needed: it builds, and uses what Hopper has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from ringexp.kernels.hopper_tiles import REGISTERS, num_consumers
from ringexp.kernels.hopper_tma import fits, fitting

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper", reason="needs triton >= 3.6")
triton = pytest.importorskip("triton")

SHARED_MEMORY_BYTES = 232448


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_block(dtype, head_dim, causal, merge, spans=1, arriving=False, sends=0):
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

    consumers = num_consumers(16384, 32, head_dim, causal or sends > 0, num_sms=132)
    consumer_regs, producer_regs = REGISTERS[consumers]
    constants = {
        "SPANS": spans,
        "AWAIT": arriving,
        "SENDS": sends,
        "CAUSAL": causal,
        "MERGE": merge,
        "FINAL": merge,
        "CONSUMERS": consumers,
    }
    constants |= {"CONSUMER_REGS": consumer_regs, "PRODUCER_REGS": producer_regs}
    absent = [f"{x}{span}_desc" for span in range(spans, 4) for x in "kv"]
    absent += [f"words{span}_ptr" for span in range(spans if arriving else 1, 4)]
    absent += [] if arriving else ["waited_ptr"]
    absent += [f"{x}to{number}_desc" for number in range(sends + 1, 4) for x in "kv"]
    absent += [] if causal and not merge else ["out_desc"]
    absent += [] if sends else ["ks_desc", "vs_desc", "counts_ptr", "took_ptr"]
    constants |= dict.fromkeys(absent)
    further = {f"{x}{span}_desc": descriptor(BLOCK_N.value) for span in range(1, spans) for x in "kv"}
    names = attention_block.arg_names
    sent = [name for name in names if name.endswith("s_desc") or ("to" in name and name.endswith("_desc"))]
    addresses = [f"taken{span}" for span in range(1, spans) if arriving]
    addresses += [f"{word}{number}" for number in range(1, sends + 1) for word in ("free", "ready")]
    types = {
        **further,
        **dict.fromkeys(sent, descriptor(ROWS.value)),
        **dict.fromkeys(addresses, "i64"),
        **dict.fromkeys(("words1_ptr", "words2_ptr", "words3_ptr", "waited_ptr"), "*i32"),
        **dict.fromkeys(("counts_ptr", "took_ptr"), "*i32"),
        "q_desc": descriptor(ROWS.value),
        "out_desc": descriptor(ROWS.value),
        "k_desc": descriptor(BLOCK_N.value),
        "v_desc": descriptor(BLOCK_N.value),
        "out_ptr": "*fp32" if merge else f"*{short}",
        "lse_ptr": "*fp32",
        "final_ptr": f"*{short}",
        "next_ptr": "*i32",
        "scale_log2": "fp32",
        **dict.fromkeys(constants, "constexpr"),  # also what is absent
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if (name.endswith("_ptr") or name.startswith("stride_o")) and name not in absent
    }
    signature = {name: types.get(name, "i32") for name in names}
    source = GluonASTSource(attention_block, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


@pytest.mark.parametrize(
    ("dtype", "head_dim", "causal", "merge", "spans", "arriving", "sends"),
    [
        (torch.bfloat16, 128, True, True, 1, False, 0),
        (torch.bfloat16, 128, False, False, 1, False, 0),
        (torch.bfloat16, 128, True, False, 4, True, 3),
        (torch.bfloat16, 128, True, True, 2, True, 0),
        (torch.float16, 64, False, False, 1, False, 1),
        (torch.float16, 64, True, False, 2, False, 0),
        (torch.bfloat16, 64, False, True, 1, False, 0),
    ],
)
def test_it_compiles_for_hopper(dtype, head_dim, causal, merge, spans, arriving, sends):
    compiled = compile_block(dtype, head_dim, causal, merge, spans, arriving, sends)
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES
    ptx = compiled.asm["ptx"]
    for instruction in ("wgmma.mma_async", "cp.async.bulk.tensor.4d.shared", "setmaxnreg"):
        assert instruction in ptx
    assert ("cp.async.bulk.tensor.4d.global" in ptx) == (sends > 0 or (causal and not merge))


def consumers_loops(compiled, tmp_path):
    """Return the number of instructions of the loop over keys, for each consumer."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    sass = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    code = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass)
    places = {int(address, 16): number for number, (address, _) in enumerate(code)}
    loops = []
    for number, (address, text) in enumerate(code):
        branch = re.search(r"BRA.* 0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < int(address, 16):
            body = [text for _, text in code[places[int(branch[1], 16)] : number + 1]]
            if sum("HGMMA" in text for text in body) == 16:
                loops.append(len(body))
    return sorted(loops)[:2]


@pytest.mark.parametrize("sends", [1, 3])
def test_consumers_do_not_notice_that_something_is_sent(tmp_path, sends):
    """ptxas may compile one warp's code differently because of another's."""
    without, sending = (
        consumers_loops(compile_block(torch.bfloat16, 128, True, False, sends + 1, True, n), tmp_path)
        for n in (0, sends)
    )
    assert len(without) == len(sending) == 2
    assert all(more <= 1.05 * less for less, more in zip(without, sending, strict=True)), (without, sending)


def test_tensors_that_tma_cannot_load_are_told_apart():
    suitable = torch.zeros(1, 5, 2, 64, dtype=torch.bfloat16).transpose(1, 2)
    assert fitting(suitable) is suitable
    shifted = torch.zeros(1, 5, 2, 65, dtype=torch.bfloat16).transpose(1, 2)[..., 1:]
    off_by_one = torch.zeros(129, dtype=torch.bfloat16)[1:].view(1, 1, 2, 64)
    for x in (shifted, off_by_one):
        assert not fits(x)
        copy = fitting(x)
        assert fits(copy)
        assert copy.equal(x)


@pytest.mark.parametrize(("q_len", "consumers"), [(2048, 2), (4096, 2), (16384, 3), (65536, 3)])
def test_a_third_consumer_where_its_larger_tiles_fill_the_device(q_len, consumers):
    assert num_consumers(q_len, 32, 64, staggered=False, num_sms=132) == consumers
    assert num_consumers(q_len, 32, 64, staggered=True, num_sms=132) == 2
    assert num_consumers(q_len, 32, 128, staggered=False, num_sms=132) == 2
