#!/usr/bin/env python
"""Block kernels side by side: their error against float64 first, then interleaved times, then one table.

    python scripts/bench_kernel.py --out docs/benchmarks/kernels-h200

Writes kernels.csv and kernels.md (with hardware, versions and the command) to --out. A kernel that is not
installed or does not fit a shape is left out of it. Times are medians of CUDA events, the kernels taking
turns; `over cudnn` is the ratio of cuDNN's median to the kernel's.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import median

import pandas
import torch

from ringexp.errors import UserError
from ringexp.kernels import Kernel, get_kernel
from ringexp.tracking.files import write_atomically

BASELINE = "cudnn"


@dataclass(frozen=True)
class Shape:
    """One block: q_len queries against kv_len keys."""

    q_len: int
    kv_len: int
    causal: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def flops(self) -> float:
        """Matmul FLOPs: two products of 2 * head_dim operations a pair."""
        pairs = self.q_len * (self.q_len + 1) // 2 if self.causal else self.q_len * self.kv_len
        return 4.0 * self.num_heads * self.head_dim * pairs

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fresh q [1, H, Lq, D] and k, v [1, Hkv, Lk, D], lying in memory as the ring's: [1, L, H, D]."""
        lengths = (self.q_len, self.kv_len, self.kv_len)
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        q, k, v = (
            torch.randn(1, length, count, self.head_dim, device="cuda", dtype=getattr(torch, self.dtype))
            for length, count in zip(lengths, heads, strict=True)
        )
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kernels", default="cudnn,sdpa,triton")
    parser.add_argument("--lengths", default="2048,16384", help="query and key tokens of a block")
    parser.add_argument("--kv-heads", default="8,32")
    parser.add_argument("--head-dims", default="128,64")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def shapes(arguments: argparse.Namespace) -> list[Shape]:
    def numbers(text: str) -> list[int]:
        return [int(item) for item in text.split(",")]

    return [
        Shape(length, length, causal, 32, kv_heads, head_dim, dtype)
        for dtype, head_dim, length, kv_heads, causal in product(
            arguments.dtypes.split(","),
            numbers(arguments.head_dims),
            numbers(arguments.lengths),
            numbers(arguments.kv_heads),
            (False, True),
        )
    ]


def fitting(names: str, shape: Shape) -> list[Kernel]:
    found = []
    for name in names.split(","):
        try:
            found.append(get_kernel(name, "cuda", getattr(torch, shape.dtype), shape.head_dim))
        except UserError:
            continue
    return found


def relative_error(kernel: Kernel, shape: Shape) -> float:
    """|out - exact| / |exact| over 64 random query rows, exact in float64; fails if an lse is off."""
    q, k, v = shape.inputs()
    scale = shape.head_dim**-0.5
    out, lse = kernel.block(q, k, v, shape.causal, scale)
    rows = torch.randperm(shape.q_len, device="cuda")[:64]
    wrong = norm = 0.0
    for head in range(shape.num_heads):
        kv_head = head * shape.num_kv_heads // shape.num_heads
        scores = q[0, head, rows].double() @ k[0, kv_head].double().T * scale
        if shape.causal:
            scores.masked_fill_(torch.arange(shape.kv_len, device="cuda") > rows[:, None], float("-inf"))
        exact = scores.softmax(-1) @ v[0, kv_head].double()
        wrong += (out[0, head, rows].double() - exact).square().sum().item()
        norm += exact.square().sum().item()
        torch.testing.assert_close(lse[0, head, rows].double(), scores.logsumexp(-1), rtol=1e-4, atol=1e-3)
    return (wrong / norm) ** 0.5


def times_ms(kernels: list[Kernel], shape: Shape, repeats: int) -> list[list[float]]:
    """One list of times a kernel; the kernels take turns."""
    q, k, v = shape.inputs()
    scale = shape.head_dim**-0.5
    # Several calls a sample where one is too short for the clock of the events.
    calls = max(1, round(1e-3 * 400e12 / shape.flops))
    times: list[list[float]] = [[] for _ in kernels]
    for turn in range(repeats + 2):
        for kernel, found in zip(kernels, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                kernel.block(q, k, v, shape.causal, scale)
            end.record()
            end.synchronize()
            if turn >= 2:
                found.append(begin.elapsed_time(end) / calls)
    return times


def measure(arguments: argparse.Namespace) -> pandas.DataFrame:
    rows = []
    for shape in shapes(arguments):
        kernels = fitting(arguments.kernels, shape)
        errors = [relative_error(kernel, shape) for kernel in kernels]
        times = times_ms(kernels, shape, arguments.repeats)
        medians = {kernel.name: median(found) for kernel, found in zip(kernels, times, strict=True)}
        for kernel, error, found in zip(kernels, errors, times, strict=True):
            time_ms = median(found)
            rows.append(
                {
                    "dtype": shape.dtype,
                    "head_dim": shape.head_dim,
                    "heads": f"{shape.num_heads}/{shape.num_kv_heads}",
                    "tokens": shape.q_len,
                    "mask": "causal" if shape.causal else "full",
                    "kernel": kernel.name,
                    "ms": round(time_ms, 4),
                    "tflops": round(shape.flops / time_ms / 1e9, 1),
                    "over cudnn": round(medians.get(BASELINE, float("nan")) / time_ms, 3),
                    "relative error": f"{error:.1e}",
                }
            )
            print(*rows[-1].values(), flush=True)
    return pandas.DataFrame(rows)


def heading() -> str:
    import triton

    return (
        "# Block kernels\n\n"
        f"- date: {datetime.now(timezone.utc):%Y-%m-%d}\n"
        f"- hardware: {torch.cuda.get_device_name()}\n"
        f"- versions: torch {torch.__version__}, triton {triton.__version__}, "
        f"cuDNN {torch.backends.cudnn.version()}\n"
        f"- command: `{shlex.join(['python', *sys.argv])}`\n\n"
    )


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        table = measure(arguments)
    write_atomically(arguments.out / "kernels.csv", table.to_csv(index=False))
    text = heading() + table.to_markdown(index=False) + "\n"
    write_atomically(arguments.out / "kernels.md", text)
    print(text)


if __name__ == "__main__":
    main()
