"""Block cases with awkward shapes, and how far a kernel is from the float64 oracle on one of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ringexp.kernels import get_kernel, oracle
from support.shapes import shape_of

FULL_LENGTHS = [(1, 1), (1, 3), (3, 1), (17, 64), (64, 17), (127, 130), (130, 127), (128, 128)]
CAUSAL_LENGTHS = [(n, n) for n in (1, 3, 17, 64, 127, 130)]
LIBRARY_LSE_SLACK = 1e-4
FLOAT32_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Case:
    """One block; layout says how q, k, v lie in memory, magnitude scales q and k."""

    q_len: int
    kv_len: int
    causal: bool = False
    dtype: torch.dtype = torch.float32
    batch: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    layout: str = "blhd"
    magnitude: float = 1.0

    def __str__(self) -> str:
        kind = "causal" if self.causal else "full"
        name = f"{kind}-{self.q_len}x{self.kv_len}-h{self.num_heads}kv{self.num_kv_heads}d{self.head_dim}"
        extra = "" if self.magnitude == 1 else f"-times{self.magnitude:g}"
        return f"{name}-{str(self.dtype).removeprefix('torch.')}-{self.layout}{extra}"


@dataclass(frozen=True)
class Accuracy:
    """Largest absolute errors against the oracle, and what to judge them by."""

    out_error: float
    lse_error: float
    one_rounding: float  # the oracle's own output, rounded once to the dtype
    max_value: float  # largest |v|
    max_score: float  # largest |softmax_scale * q k|
    out_shape: tuple[int, ...]
    out_dtype: torch.dtype
    lse_shape: tuple[int, ...]
    lse_dtype: torch.dtype

    def check(self, case: Case, lse_slack: float = 0.0) -> None:
        """Assert shapes, dtypes and errors that honest float32 accumulation explains.

        lse_slack is for kernels that are not ours and take a coarser exponential: allowed on top for 16-bit
        inputs; for float32 it allows twice the error.
        """
        assert self.out_shape == (case.batch, case.num_heads, case.q_len, case.head_dim)
        assert self.lse_shape == self.out_shape[:3]
        assert self.out_dtype == case.dtype
        assert self.lse_dtype == torch.float32
        # A score is off by a few roundings of its size; that shifts lse by as much, and scales probabilities.
        float32_error = 2 * FLOAT32_EPS * (4 + self.max_score)
        if case.dtype == torch.float32:
            assert self.lse_error <= (2 if lse_slack else 1) * float32_error
            assert self.out_error <= float32_error * self.max_value
        else:  # the probabilities are rounded once, the output once
            assert self.lse_error <= float32_error + lse_slack
            half_eps = torch.finfo(case.dtype).eps / 2
            assert self.out_error <= self.one_rounding + (half_eps + float32_error) * self.max_value


def shape_cases() -> list[Case]:
    """Every length with every dtype, then one property at a time."""
    lengths = [(q, k, False) for q, k in FULL_LENGTHS] + [(q, k, True) for q, k in CAUSAL_LENGTHS]
    cases = [Case(*lens, dtype=dtype) for dtype in (torch.float32, torch.bfloat16) for lens in lengths]
    for causal in (False, True):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            cases += [
                Case(67, 67, causal, dtype, num_kv_heads=n, head_dim=d)
                for n, d in ((1, 48), (2, 128), (4, 80), (4, 64))
            ]
        cases += [Case(67, 67, causal, layout=layout) for layout in ("bhld", "packed", "stacked")]
        cases += [Case(67, 67, causal, dtype=t, magnitude=8) for t in (torch.float32, torch.bfloat16)]
    return list(dict.fromkeys(cases))


def inputs(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, Lq, D], k and v [B, Hkv, Lk, D]; the same values for a case wherever they are made."""
    generator = torch.Generator().manual_seed(case.q_len * 1000 + case.kv_len)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype).to(device)

    heads, kv_heads, dim = case.num_heads, case.num_kv_heads, case.head_dim
    if case.layout == "bhld":
        q = normal(case.batch, heads, case.q_len, dim)
        k, v = (normal(case.batch, kv_heads, case.kv_len, dim) for _ in range(2))
    elif case.layout == "packed":  # one projection for q, k and v, and a window of its rows
        length = max(case.q_len, case.kv_len) + 9
        qkv = normal(case.batch, length, heads + 2 * kv_heads, dim).transpose(1, 2)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        q, k, v = q[:, :, 5 : 5 + case.q_len], k[:, :, 5 : 5 + case.kv_len], v[:, :, 5 : 5 + case.kv_len]
    elif case.layout == "stacked":  # as the ring sends them: one tensor [2, B, L, Hkv, D]
        q = normal(case.batch, case.q_len, heads, dim).transpose(1, 2)
        k, v = normal(2, case.batch, case.kv_len, kv_heads, dim).transpose(2, 3)
    else:
        q = normal(case.batch, case.q_len, heads, dim).transpose(1, 2)
        k, v = (normal(case.batch, case.kv_len, kv_heads, dim).transpose(1, 2) for _ in range(2))
    return q.mul_(case.magnitude), k.mul_(case.magnitude), v


def measure(kernel_name: str, case: Case, device: str = "cpu") -> Accuracy:
    """Run one kernel on one case and compare it with the oracle."""
    q, k, v = inputs(case, device)
    scale = case.head_dim**-0.5
    kernel = get_kernel(kernel_name, device, case.dtype, case.head_dim)
    out, lse = kernel.block(q, k, v, shape_of(case.causal), scale)
    exact_out, exact_lse = oracle.block_fp64(q, k, v, shape_of(case.causal), scale)
    group = case.num_heads // case.num_kv_heads
    scores = q.float() @ k.float().repeat_interleave(group, dim=1).transpose(2, 3) * scale
    return Accuracy(
        out_error=_distance(out, exact_out),
        lse_error=_distance(lse, exact_lse),
        one_rounding=_distance(exact_out.to(case.dtype), exact_out),
        max_value=v.abs().max().item(),
        max_score=scores.abs().max().item(),
        out_shape=tuple(out.shape),
        out_dtype=out.dtype,
        lse_shape=tuple(lse.shape),
        lse_dtype=lse.dtype,
    )


def interpret_triton() -> None:
    """Make this process interpret Triton kernels; before triton is imported in it."""
    os.environ["TRITON_INTERPRET"] = "1"


def interpreter_lacks() -> str | None:
    """Why Triton's interpreter cannot run here, if so."""
    from ringexp.kernels import triton_block

    return triton_block.why_triton_cannot_run(torch.device("cpu"))


def is_blhd_contiguous(kernel_name: str, case: Case) -> bool:
    """Tell whether the output lies in memory as [B, L, H, D]."""
    q, k, v = inputs(case)
    out, _ = get_kernel(kernel_name, "cpu", case.dtype, case.head_dim).block(
        q, k, v, shape_of(case.causal), 0.125
    )
    return out.transpose(1, 2).is_contiguous()


def _distance(a: Tensor, b: Tensor) -> float:
    error = (a.double() - b.double()).abs().max().item()
    return error if error == error else float("inf")


def merge_difference(dtype: torch.dtype, start: int, stop: int, in_place: bool) -> float:
    """Largest difference of the Triton merge from PyTorch's own, in roundings of the result's dtype."""
    from ringexp.kernels.merge import _merge_rows
    from ringexp.kernels.triton_merge import merge_rows

    generator = torch.Generator().manual_seed(1)

    def part(length: int, part_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        out = torch.randn(2, length, 3, 40, generator=generator).to(part_dtype)
        return out, torch.randn(2, 3, length, generator=generator)

    old, new = part(53, torch.float32 if in_place else dtype), part(stop - start, dtype)
    results = []
    for merge in (merge_rows, _merge_rows):
        mine = (old[0].clone(), old[1].clone())
        merged = (
            mine if in_place else (torch.full((2, 53, 3, 40), float("nan"), dtype=dtype), mine[1].clone())
        )
        merge(mine, new, start, stop, merged)
        results.append((merged[0].float(), merged[1]))
    (out, lse), (expected_out, expected_lse) = results
    out_error = ((out - expected_out).abs() / torch.finfo(merged[0].dtype).eps).max()
    return max(out_error.item(), ((lse - expected_lse).abs() / FLOAT32_EPS).max().item())


def merged_with_nothing(nothing: float) -> tuple[Tensor, Tensor]:
    """Return out and lse of two rows, each merged with an empty row: one of ones with lse 0, and one empty.

    nothing: the lse of an empty row. Triton's kernel merges.
    """
    from ringexp.kernels.triton_merge import merge_rows

    old = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 1, 16), torch.tensor([[[0.0, nothing]]])
    merge_rows(old, (torch.zeros_like(old[0]), torch.full((1, 1, 2), nothing)), 0, 2, old)
    return old


def with_infinite_keys(causal: bool) -> tuple[Tensor, Tensor]:
    """Return out [B, H, L, D] of Triton and of the oracle, where the first 20 of 40 keys are -inf."""
    q, k, v = inputs(Case(40, 40, causal))
    q = q.abs() + 0.1
    k[:, :, :20] = float("-inf")
    kernel = get_kernel("triton", "cpu", torch.float32, 64)
    return kernel.block(q, k, v, shape_of(causal), 0.125)[0], oracle.block(q, k, v, shape_of(causal), 0.125)[
        0
    ]


def rotary_difference(dtype: torch.dtype, head_dim: int, num_heads: int) -> float:
    """Largest difference of the Triton rotation from FMS's own, in roundings of the dtype."""
    from fms.modules.positions import RotaryEmbedding

    from ringexp.kernels.triton_rope import rotate

    generator = torch.Generator().manual_seed(1)
    rotary = RotaryEmbedding(head_dim, max_seq_len=400)
    positions = torch.stack([torch.arange(37), torch.randperm(400, generator=generator)[:37]])
    wide = torch.randn(2, 37, num_heads + 1, head_dim, generator=generator).to(dtype)
    x = wide[:, :, :num_heads]  # as the projections leave it: rows further apart than their length
    expected = rotary.adjusted_qk(x, x, positions)[0]
    table = rotary.cached_freqs[None][rotary.compute_freqs_cis(x.device, torch.tensor(400))]
    out = rotate(x, table, positions)
    assert out.is_contiguous()
    assert out.dtype == dtype
    return ((out.double() - expected.double()).abs().max() / torch.finfo(dtype).eps).item()
