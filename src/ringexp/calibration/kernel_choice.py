"""kernel=auto: which of the kernels that can run here is the fastest that is right, by measuring them.

What is timed is what a rank of a two-way ring computes: a causal block, then a full one merged into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ringexp.kernels import Kernel, KeySpan, OnlineSoftmax
from ringexp.kernels.arithmetic import ceil_div
from ringexp.kernels.oracle import relative_errors
from ringexp.planning import BlockShape
from ringexp.ring.iteration import captured

REPEATS = 7
LONGEST = 16384
"""Tokens beyond which the order of kernels no longer changes."""
CHECKED = 2048
"""Tokens of blocks by which a kernel is found right: float64 is slow on a rank with few SMs."""
HOPELESS = 1.5
"""Kernels that took so many times as long as another one, twice, are not timed again."""


@dataclass(frozen=True)
class BlockSize:
    """Blocks of `length` queries and keys."""

    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    length: int

    def inputs(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return random q, k and v as in the ring: [B, heads, L, D], in memory [B, L, heads, D]."""
        q, k, v = (
            torch.randn(self.batch, self.length, heads, self.head_dim, device=device, dtype=self.dtype)
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def local_length(seq_len: int, world_size: int) -> int:
    """Return the block length to choose by, a power of two, so that runs of similar length share a choice."""
    return min(1 << max(ceil_div(seq_len, world_size) - 1, 1).bit_length(), LONGEST)


def times_ms(kernels: Sequence[Kernel], shape: BlockSize, device: torch.device) -> dict[str, float]:
    """Return the median time in ms of each kernel that is right. The kernels take turns, as CUDA graphs."""
    q, k, v = shape.inputs(device)
    scale = shape.head_dim**-0.5

    def work(kernel: Kernel) -> torch.Tensor:
        state = OnlineSoftmax(
            shape.batch,
            shape.num_heads,
            shape.length,
            shape.head_dim,
            device,
            blocks=[(0, shape.length)] * 2,
            dtype=shape.dtype,
        )
        state.attend(kernel, q, [KeySpan(k, v)], BlockShape.CAUSAL, scale)
        state.attend(kernel, q, [KeySpan(k, v)], BlockShape.FULL, scale)
        return state.output(shape.dtype)

    right = [kernel for kernel in kernels if is_right(kernel, q, k, v, scale)]
    graphs = {}
    for kernel in right:
        work(kernel)
        torch.cuda.synchronize(device)
        graphs[kernel.name] = captured(lambda kernel=kernel: work(kernel))[0]
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(REPEATS):
        for name in in_the_running(times):
            graph = graphs[name]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: median(kernel_times) for name, kernel_times in times.items()}


def in_the_running(times: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the names of the kernels that are worth timing again."""
    best = {name: min(kernel_times) for name, kernel_times in times.items() if len(kernel_times) >= 2}
    limit_ms = HOPELESS * min(
        (min(kernel_times) for kernel_times in times.values() if kernel_times), default=0.0
    )
    return [name for name in times if name not in best or best[name] <= limit_ms]


def is_right(kernel: Kernel, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> bool:
    """Tell whether first blocks of both shapes are as near to float64 as one rounding explains."""
    q, k, v = (x[:, :, :CHECKED] for x in (q, k, v))
    most = max(torch.finfo(q.dtype).eps, 1e-5)
    errors = [relative_errors(kernel.block, q, k, v, shape, scale) for shape in BlockShape]
    return all(out <= most and lse <= 1e-3 for out, lse in errors)  # False for NaN


def fastest(times: Sequence[Mapping[str, float]]) -> tuple[str, dict[str, float]]:
    """Return the kernel with which all ranks together are the fastest, and the mean time of each kernel.

    times: `times_ms` of each rank; kernels that are not right on every rank are out. Speeds add up, so the
    mean is the harmonic one. Raises ValueError if no kernel is right everywhere.
    """
    names = [name for name in times[0] if all(name in rank_times for rank_times in times)]
    if not names:
        raise ValueError("no kernel is right on every rank")
    means = {name: len(times) / sum(1 / rank_times[name] for rank_times in times) for name in names}
    return min(names, key=lambda name: means[name]), means
