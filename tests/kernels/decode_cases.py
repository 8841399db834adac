"""One token over a cache: cases, and how far the decode kernel is from the float64 oracle on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ringexp.kernels import oracle
from ringexp.planning import BlockShape

FLOAT32_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class DecodeCase:
    """firsts: of each sequence the first slot that is no padding; `filled` of the `slots` are filled."""

    slots: int
    filled: int
    firsts: tuple[int, ...] = (0,)
    group: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        padding = "-".join(map(str, self.firsts))
        return (
            f"{self.filled}of{self.slots}-from{padding}-g{self.group}h{self.kv_heads}d{self.head_dim}-{dtype}"
        )


CASES = [
    *(DecodeCase(140, filled, head_dim=16, kv_heads=1) for filled in (1, 2, 63, 64, 65, 127, 129, 140)),
    *(DecodeCase(300, 177, group=group, head_dim=dim) for group in (1, 4, 8) for dim in (64, 128)),
    *(DecodeCase(200, 131, (0, 5, 130), dtype=dtype) for dtype in (torch.bfloat16, torch.float16)),
    DecodeCase(200, 131, (131, 0, 200)),  # nothing but padding on this rank
    DecodeCase(200, 0, (0, 0)),  # nothing at all
    DecodeCase(77, 71, (3,), group=3, kv_heads=1, head_dim=24),
    DecodeCase(77, 71, (3,), group=17, kv_heads=1, head_dim=80),
    DecodeCase(1500, 1499, (17,), group=1, kv_heads=1, head_dim=256),
]


def cache_of(case: DecodeCase, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q [B, Hkv, group, D], k and v [B, slots, Hkv, D], firsts [B] and stop [1]; free slots are NaN."""
    generator = torch.Generator().manual_seed(case.slots + case.filled)
    batch = len(case.firsts)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    q = normal(batch, case.kv_heads, case.group, case.head_dim)
    k, v = (normal(batch, case.slots, case.kv_heads, case.head_dim) for _ in range(2))
    for x in (k, v):
        x[:, case.filled :] = float("nan")
    firsts = torch.tensor(case.firsts, dtype=torch.int32)
    stop = torch.tensor([case.filled], dtype=torch.int32)
    q, k, v, firsts, stop = (x.to(device) for x in (q, k, v, firsts, stop))
    return q, k, v, firsts, stop


def exact(case: DecodeCase, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, Hkv, group, D + 1] float64; out 0 and lse -inf where a sequence has no slot."""
    result = torch.zeros(*q.shape[:3], case.head_dim + 1, dtype=torch.float64, device=q.device)
    result[..., -1] = float("-inf")
    for index, first in enumerate(case.firsts):
        if first < case.filled:
            one = slice(index, index + 1)
            keys, values = (x[one, first : case.filled].transpose(1, 2) for x in (k, v))
            out, lse = oracle.block_fp64(q[one], keys, values, BlockShape.FULL, case.head_dim**-0.5)
            result[one, ..., :-1], result[one, ..., -1] = out, lse
    return result


def check_decode(case: DecodeCase, device: str = "cpu") -> None:
    """Assert that parts merge to what the oracle says, and also when they are merged in two steps."""
    from ringexp.kernels import triton_decode

    q, k, v, firsts, stop = cache_of(case, device)
    parts = triton_decode.attend(q, k, v, firsts, stop, case.head_dim**-0.5)
    expected = exact(case, q, k, v)
    # A score is off by a few roundings of its size; half precision also rounds the probabilities.
    seen = torch.nan_to_num(k.float()).norm(dim=-1).max() * q.float().norm(dim=-1).max() * case.head_dim**-0.5
    slack = 2 * FLOAT32_EPS * (4 + seen.item())
    if case.dtype != torch.float32 and device != "cpu":
        slack += torch.finfo(case.dtype).eps
    merge = triton_decode.merge
    halves = torch.stack([merge(parts[::2]), merge(parts[1::2])]) if len(parts) > 1 else parts
    for merged in (merge(halves), merge(parts)):
        assert merged.dtype == torch.float32
        torch.testing.assert_close(merged.double(), expected, rtol=slack, atol=4 * slack)
    out = merge(parts, case.dtype)
    assert out.shape == q.shape
    assert out.dtype == case.dtype
    eps = torch.finfo(case.dtype).eps  # the interpreter does not round bfloat16 to the nearest
    torch.testing.assert_close(out.float(), merged[..., :-1], rtol=eps, atol=1e-6)
