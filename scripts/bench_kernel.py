#!/usr/bin/env python
"""Compare block kernels: first their errors against float64, then their times, in one table.

    python scripts/bench_kernel.py --out docs/benchmarks/kernels-h200

Writes kernels.csv and kernels.md (with hardware, versions and the command) to --out. If cuDNN is among the
kernels it also writes kernels.png, with speeds relative to cuDNN's in the first of --dtypes. For each shape
the table has the kernels that are installed and support it. Kernels run as CUDA graphs, as they do in the
ring, and take turns. Times are medians of CUDA events; `over cudnn` is cuDNN's median over the kernel's.
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
from matplotlib.figure import Figure

from ringexp.calibration.kernel_choice import BlockSize
from ringexp.errors import UserError
from ringexp.kernels import Kernel, get_kernel
from ringexp.kernels.oracle import relative_errors
from ringexp.planning import BlockShape
from ringexp.planning.flops import pair_flops
from ringexp.report.figures.style import below, length_axis, new_figure
from ringexp.ring.iteration import captured
from ringexp.tracking.files import write_atomically
from ringexp.web.palette import BLUE, GREEN, GREY, VERMILION

BASELINE = "cudnn"
COLOURS = {"hopper": BLUE, "flash": VERMILION, "sdpa": GREEN}


@dataclass(frozen=True)
class Case:
    """One block, with equal numbers of queries and keys."""

    shape: BlockSize
    block_shape: BlockShape

    @property
    def flops(self) -> float:
        """The FLOPs of matrix products: two products of 2 * head_dim operations per query-key pair."""
        length = self.shape.length
        pairs = length * (length + 1) // 2 if self.block_shape is BlockShape.CAUSAL else length**2
        return float(pair_flops(self.shape.num_heads, self.shape.head_dim) * pairs)

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kernels", default="cudnn,sdpa,hopper,flash")
    parser.add_argument("--lengths", default="2048,16384", help="query and key tokens of a block")
    parser.add_argument("--kv-heads", default="8,32")
    parser.add_argument("--head-dims", default="128,64")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=15)
    return parser.parse_args()


def cases(arguments: argparse.Namespace) -> list[Case]:
    def numbers(text: str) -> list[int]:
        return [int(item) for item in text.split(",")]

    return [
        Case(BlockSize(1, 32, kv_heads, head_dim, getattr(torch, dtype), length), block_shape)
        for dtype, head_dim, length, kv_heads, block_shape in product(
            arguments.dtypes.split(","),
            numbers(arguments.head_dims),
            numbers(arguments.lengths),
            numbers(arguments.kv_heads),
            BlockShape,
        )
    ]


def fitting(names: str, shape: BlockSize) -> list[Kernel]:
    """Return the kernels that are installed and support a shape."""
    kernels = []
    for name in names.split(","):
        try:
            kernels.append(get_kernel(name, "cuda", shape.dtype, shape.head_dim))
        except UserError:
            continue
    return kernels


def times_ms(kernels: list[Kernel], case: Case, repeats: int) -> list[list[float]]:
    """Return a list of times per kernel, ms. The kernels take turns."""
    q, k, v = case.shape.inputs(torch.device("cuda"))
    # Several calls per sample if one is too short for the clock of CUDA events.
    calls = max(1, min(50, round(2e-3 * 500e12 / case.flops)))

    def work(kernel: Kernel) -> None:
        for _ in range(calls):
            kernel.block(q, k, v, case.block_shape, case.scale)

    graphs = []
    for kernel in kernels:
        work(kernel)
        torch.cuda.synchronize()
        graphs.append(captured(lambda kernel=kernel: work(kernel))[0])
    times: list[list[float]] = [[] for _ in kernels]
    for turn in range(repeats + 2):
        for graph, samples in zip(graphs, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                samples.append(begin.elapsed_time(end) / calls)
    return times


def measure(arguments: argparse.Namespace) -> pandas.DataFrame:
    rows = []
    for case in cases(arguments):
        shape = case.shape
        kernels = fitting(arguments.kernels, shape)
        inputs = shape.inputs(torch.device("cuda"))
        errors = [relative_errors(kernel.block, *inputs, case.block_shape, case.scale) for kernel in kernels]
        times = times_ms(kernels, case, arguments.repeats)
        medians = {kernel.name: median(samples) for kernel, samples in zip(kernels, times, strict=True)}
        for kernel, (error, lse_error), samples in zip(kernels, errors, times, strict=True):
            assert lse_error < 1e-3, (kernel.name, case, lse_error)
            time_ms = median(samples)
            rows.append(
                {
                    "dtype": str(shape.dtype).removeprefix("torch."),
                    "head_dim": shape.head_dim,
                    "heads": f"{shape.num_heads}/{shape.num_kv_heads}",
                    "tokens": shape.length,
                    "mask": case.block_shape.value,
                    "kernel": kernel.name,
                    "ms": round(time_ms, 4),
                    "tflops": round(case.flops / time_ms / 1e9, 1),
                    "over cudnn": round(medians.get(BASELINE, float("nan")) / time_ms, 3),
                    "relative error": f"{error:.1e}",
                }
            )
            print(*rows[-1].values(), flush=True)
    return pandas.DataFrame(rows)


def speed_figure(table: pandas.DataFrame) -> Figure:
    """Draw the speed relative to cuDNN's by length, one panel per head dim and mask, in the first dtype."""
    dtype = table["dtype"].iloc[0]
    table = table.loc[(table["dtype"] == dtype) & (table["kernel"] != BASELINE)].sort_values(by="tokens")
    head_dims, lengths = sorted(set(table["head_dim"]), reverse=True), sorted(set(table["tokens"]))
    heads = sorted(set(table["heads"]), reverse=True)
    figure, grid = new_figure(len(head_dims), 2, width=4.1, height=2.9, sharex=True, sharey=True)
    for (row, head_dim), (column, mask) in product(enumerate(head_dims), enumerate(("full", "causal"))):
        axis = grid[row][column]
        for kernel, (number, shared) in product(dict.fromkeys(table["kernel"]), enumerate(heads)):
            lines = table[(table["kernel"] == kernel) & (table["heads"] == shared)]
            line = lines[(lines["head_dim"] == head_dim) & (lines["mask"] == mask)]
            axis.plot(
                line["tokens"],
                line["over cudnn"],
                label=f"{kernel}, {shared} heads",
                color=COLOURS.get(kernel, GREY),
                linestyle="--" if number else "-",
                marker="s" if number else "o",
                markersize=4.5,
            )
        axis.axhline(1.0, color=GREY, label=BASELINE, zorder=1)
        length_axis(axis, lengths)
        axis.set_xlabel("tokens" if row == len(head_dims) - 1 else "")
        axis.set_ylabel("" if column else "speed over cuDNN's")
        axis.set_title(f"{mask}, head dim {head_dim}, {dtype}", fontsize=11)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    below(figure, grid[0][0].get_legend_handles_labels()[0])
    return figure


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
    if {BASELINE} < set(table["kernel"]):
        speed_figure(table).savefig(arguments.out / "kernels.png")
    text = heading() + table.to_markdown(index=False) + "\n"
    write_atomically(arguments.out / "kernels.md", text)
    print(text)


if __name__ == "__main__":
    main()
