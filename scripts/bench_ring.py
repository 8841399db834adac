#!/usr/bin/env python
"""Compare ways to run one ring on equal ranks: ours, ours with one thing changed, and other projects'.

    python scripts/bench_ring.py --out docs/benchmarks/ring-2x-h200

Attention alone, causal, zigzag. If there are fewer GPUs than ranks, ranks share GPUs under MPS and only our
IPC transport runs, since PyTorch's context_parallel and ring-flash-attn (if installed) need NCCL and so one
GPU per rank. Every output is first compared with one process in float32. Then all ways take turns in random
order: once untimed, once from a barrier (isolated), and five times in a row.

Efficiency is the time in which one rank computes the whole prompt, while the other ranks do so too, divided
by ranks x the ring's time. Writes ring.csv and ring.png to --out after each length, and ring.md at the end.

    python scripts/bench_ring.py --blocks 2,4,8 --out docs/benchmarks/ring-blocks-h200

This measures the cost of splitting alone. One process on one whole GPU computes the blocks of every rank in
turn, with its own keys and values in place of arriving ones: shard by shard, and with as many shards per
launch as the kernel takes. Efficiency is the time of the whole prompt divided by ranks x the time of the
slowest rank. The rest is what transfers can lose.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from statistics import median
from typing import Any

import pandas
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from matplotlib.figure import Figure
from torch.nn import functional

from ringexp.config import AttentionModelConfig
from ringexp.hetero.throttle import host_throttle, rank_throttle
from ringexp.kernels import Kernel, candidates, get_kernel
from ringexp.machine import gpu_count, hardware_queues
from ringexp.models.attention.workload import BareAttentionWorkload
from ringexp.models.inputs import LocalInputs, local_inputs
from ringexp.planning import make_plan
from ringexp.report.figures.style import IDEAL, below, length_axis, panels
from ringexp.ring.clock import CudaClock
from ringexp.ring.context import RingContext
from ringexp.ring.ipc import IpcTransport
from ringexp.ring.iteration import Iteration
from ringexp.ring.loopback import LoopbackTransport
from ringexp.ring.transport import Transport, make_transport
from ringexp.tracking.environment import PACKAGES, version_of
from ringexp.tracking.files import write_atomically
from ringexp.web.palette import COLOURS, GREY

OTHERS = ("PyTorch context_parallel", "ring-flash-attn zigzag")
LARGEST_ERROR = 1e-2  # relative to the output
DTYPE = "bfloat16"


@dataclass(frozen=True)
class Settings:
    ranks: int
    gpus: int
    lengths: list[int]
    kernel: str
    num_kv_heads: int
    repeats: int
    port: int

    @property
    def shared(self) -> bool:
        return self.ranks > self.gpus


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--lengths", default="4096,8192,16384,65536")
    parser.add_argument(
        "--kernel", default="auto", help="kernel of our ring; auto: the one expected to be the fastest"
    )
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--blocks", default="", help="numbers of ranks, to measure blocks alone without transfers"
    )
    return parser.parse_args()


class Bench:
    """Check and time every way to run the ring, on one rank."""

    def __init__(self, rank: int, settings: Settings, device: torch.device) -> None:
        self.rank, self.settings, self.device = rank, settings, device
        self.ipc = IpcTransport(device)
        self.transports: dict[str, Transport] = {"ipc": self.ipc}
        if not settings.shared:
            self.transports["nccl"] = make_transport("nccl", device)
        self.kernel = get_kernel(settings.kernel, device, torch.bfloat16, 128)
        self.workload = BareAttentionWorkload(model_config(settings), device)

    def ours(
        self,
        local: LocalInputs,
        seq_len: int,
        transport: Transport,
        kernel: Kernel | None = None,
        hops: int | None = None,
        graph: bool = True,
    ) -> Iteration:
        tokens = [seq_len // self.settings.ranks] * self.settings.ranks
        plan = make_plan(seq_len, tokens)
        ring = RingContext(
            plan, self.rank, transport, kernel or self.kernel, CudaClock(only_attention=True), hops
        )
        return self._iteration(lambda: self.workload.forward(local, ring), ring, graph)

    def _iteration(self, work: Callable[[], torch.Tensor], ring: RingContext, graph: bool) -> Iteration:
        iteration = Iteration(work, ring)
        if graph:
            iteration.capture()
        return iteration

    def foreign(self, work: Callable[[], torch.Tensor], seq_len: int) -> Iteration:
        """Return another project's ring, timed like ours. Our transport only lines the ranks up."""
        alone = make_plan(seq_len, [seq_len])
        ring = RingContext(alone, 0, self.transports["ipc"], self.kernel, CudaClock())
        return self._iteration(work, ring, graph=False)

    def ways(self, x: torch.Tensor, local: LocalInputs, stack: ExitStack) -> dict[str, Iteration]:
        seq_len = x.shape[1]
        ways = {}
        for name, transport in self.transports.items():
            ways[f"{name}, {self.kernel.name}"] = self.ours(local, seq_len, transport)
        ipc = self.transports["ipc"]
        for other in candidates(self.device, torch.bfloat16, 128):
            if other not in (self.kernel.name, "sdpa"):
                kernel = get_kernel(other, self.device, torch.bfloat16, 128)
                ways[f"ipc, {other}"] = self.ours(local, seq_len, ipc, kernel)
        ways[f"ipc, {self.kernel.name}, no graph"] = self.ours(local, seq_len, ipc, graph=False)
        if not self.settings.shared:
            if self.kernel.fused_limits:
                ways[f"ipc, {self.kernel.name}, by copy engines"] = self.copied(local, seq_len)
            ways[f"ipc, {self.kernel.name}, shard by shard"] = self.ours(local, seq_len, ipc, hops=1)
            ways[OTHERS[0]] = self.foreign(self._context_parallel(x, stack), seq_len)
            if importlib.util.find_spec("ring_flash_attn"):
                ways[OTHERS[1]] = self.foreign(self._ring_flash_attn(local), seq_len)
        return ways

    def copied(self, local: LocalInputs, seq_len: int) -> Iteration:
        """Return our ring with shards carried by copy engines in place of the kernel."""
        kernel_sends, self.ipc.kernel_sends = self.ipc.kernel_sends, False  # of what is captured from here on
        try:
            return self.ours(local, seq_len, self.ipc)
        finally:
            self.ipc.kernel_sends = kernel_sends

    def _context_parallel(self, x: torch.Tensor, stack: ExitStack) -> Callable[[], torch.Tensor]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.experimental import context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        mesh = init_device_mesh("cuda", (self.settings.ranks,))
        group = 32 // self.settings.num_kv_heads
        q, k, v = (part.transpose(1, 2).contiguous() for part in self.workload.heads_of(x))
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))  # it knows no grouped heads
        buffers: Any = {"buffers": [q, k, v], "buffer_seq_dims": [2, 2, 2], "no_restore_buffers": {q, k, v}}
        stack.enter_context(context_parallel(mesh, **buffers))
        stack.enter_context(sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], True))
        # Within the context that attribute is another function.
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def _ring_flash_attn(self, local: LocalInputs) -> Callable[[], torch.Tensor]:
        from ring_flash_attn import zigzag_ring_flash_attn_func  # pyright: ignore[reportMissingImports]

        q, k, v = (part.contiguous() for part in self.workload.heads_of(local.x))
        return lambda: zigzag_ring_flash_attn_func(q, k, v, causal=True)

    @torch.inference_mode()
    def run(self, seq_len: int) -> list[dict[str, Any]]:
        x = self.workload.inputs(seq_len, seed=0)
        ranks = self.settings.ranks
        plan = make_plan(seq_len, [seq_len // ranks] * ranks)
        local = local_inputs(x, plan, self.rank)
        exact = self.workload.part_of(self.workload.reference(x, torch.float32), plan, self.rank)
        with ExitStack() as stack:
            ways = self.ways(x, local, stack)
            errors = {name: self._error(way.run()[0], exact) for name, way in ways.items()}
            for name in [name for name, error in errors.items() if not error < LARGEST_ERROR]:
                assert name in OTHERS, f"{name} is wrong by {errors[name]:.1%}"
                print(f"{name} is wrong by {errors[name]:.1%} and left out", file=sys.stderr)
                del ways[name]
            del exact
            times = self._times(ways, local_inputs(x, make_plan(seq_len, [seq_len]), 0))
        alone_ms, alone_in_a_row_ms, _ = times.pop("alone")
        rows = []
        for name, (isolated_ms, in_a_row_ms, exposed_ms) in times.items():
            rows.append(
                {
                    "tokens": seq_len,
                    "ring": name,
                    "ms": round(isolated_ms, 4),
                    "in a row ms": round(in_a_row_ms, 4),
                    "efficiency": round(alone_ms / ranks / isolated_ms, 3),
                    "in a row": round(alone_in_a_row_ms / ranks / in_a_row_ms, 3),
                    "alone ms": round(alone_ms, 4),
                    "alone in a row ms": round(alone_in_a_row_ms, 4),
                    "waiting": f"{exposed_ms / isolated_ms:.1%}",
                    "relative error": f"{errors[name]:.2e}",
                }
            )
        return rows

    def _error(self, out: torch.Tensor, exact: torch.Tensor) -> float:
        """Return |out - exact| / |exact| over all ranks."""
        sums = torch.stack([(out.float() - exact).square().sum(), exact.square().sum()]).double().cpu()
        dist.all_reduce(sums, group=self._control)
        return (sums[0] / sums[1]).sqrt().item()

    @property
    def _control(self) -> dist.ProcessGroup:
        return _CONTROL[0]

    def _times(self, ways: dict[str, Iteration], whole: LocalInputs) -> dict[str, tuple[float, float, float]]:
        """Return (isolated, in a row, waiting for keys and values) per way, ms.

        They are medians over the turns of the slowest rank's times.
        """
        plan = make_plan(whole.x.shape[1], [whole.x.shape[1]])
        ring = RingContext(plan, 0, LoopbackTransport(), self.kernel, CudaClock(only_attention=True))
        alone = self._iteration(lambda: self.workload.forward(whole, ring), ring, graph=True)
        turns = {"alone": alone, **ways}
        samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in turns}
        for turn in range(self.settings.repeats + 2):
            # A random order, equal on all ranks, since the work before decides how warm a GPU is.
            for name in random.Random(turn).sample(list(turns), len(turns)):
                way = turns[name]
                way.run()  # it comes after another way
                dist.barrier(self._control)
                way.line_up()
                timing = way.run()[1]
                dist.barrier(self._control)
                in_a_row = way.back_to_back_ms(5)
                waited = sum(hop.wait_ms for hop in timing.hops)
                slowest = torch.tensor([timing.latency_ms, in_a_row, waited])
                dist.all_reduce(slowest, dist.ReduceOp.MAX, group=self._control)
                if turn >= 2:
                    samples[name].append(tuple(slowest.tolist()))
        return {
            name: tuple(map(median, zip(*times, strict=True)))  # type: ignore[misc]
            for name, times in samples.items()
        }


@torch.inference_mode()
def blocks_alone(settings: Settings, rank_counts: list[int]) -> list[dict[str, Any]]:
    """Time every rank's blocks of even zigzag rings in one process that waits for nothing."""
    device = torch.device("cuda", 0)
    kernel = get_kernel(settings.kernel, device, torch.bfloat16, 128)
    workload = BareAttentionWorkload(model_config(settings), device)
    rows = []
    for seq_len in settings.lengths:
        x = workload.inputs(seq_len, seed=0)

        def part(ranks: int, rank: int, together: bool, x: torch.Tensor = x) -> Iteration:
            plan = make_plan(x.shape[1], [x.shape[1] // ranks] * ranks)
            ring = RingContext(
                plan,
                rank,
                LoopbackTransport(rank, announces=together),
                kernel,
                CudaClock(only_attention=True),
            )
            local = local_inputs(x, plan, rank)
            iteration = Iteration(lambda: workload.forward(local, ring), ring)
            iteration.capture()
            return iteration

        keys = [(1, 0, False)]
        keys += [(n, rank, joined) for n in rank_counts for rank in range(n) for joined in (False, True)]
        parts = {key: part(*key) for key in keys}
        times: dict[tuple[int, int, bool], list[float]] = {key: [] for key in parts}
        for turn in range(settings.repeats + 2):
            for key, iteration in parts.items():
                torch.cuda.synchronize()
                sample = iteration.back_to_back_ms(3)
                times[key] += [sample] if turn >= 2 else []
        ms = {key: median(samples) for key, samples in times.items()}
        whole = ms[1, 0, False]
        for ranks in rank_counts:
            separate, joined = (max(ms[ranks, rank, way] for rank in range(ranks)) for way in (False, True))
            rows.append(
                {
                    "tokens": seq_len,
                    "ranks": ranks,
                    "whole prompt ms": round(whole, 4),
                    "shard by shard, slowest rank ms": round(separate, 4),
                    "efficiency": round(whole / ranks / separate, 3),
                    "together, slowest rank ms": round(joined, 4),
                    "efficiency together": round(whole / ranks / joined, 3),
                }
            )
            print(*rows[-1].values(), sep="  ", flush=True)
    return rows


def model_config(settings: Settings) -> AttentionModelConfig:
    return AttentionModelConfig(
        dtype=DTYPE, num_heads=32, num_kv_heads=settings.num_kv_heads, head_dim=128, projections=False
    )


_CONTROL: list[dist.ProcessGroup] = []


def rank_main(rank: int, settings: Settings, environments: list[dict[str, str]], results: Any) -> None:
    os.environ.update(environments[rank])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    queues = hardware_queues(-(-settings.ranks // settings.gpus))
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(queues))
    device = torch.device("cuda", rank % settings.gpus)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if settings.shared else "cpu:gloo,cuda:nccl",
        init_method=f"tcp://127.0.0.1:{settings.port}",
        rank=rank,
        world_size=settings.ranks,
        timeout=timedelta(minutes=5),
    )
    control = dist.new_group(backend="gloo")
    assert isinstance(control, dist.ProcessGroup)
    _CONTROL.append(control)
    percentage = 100.0 * settings.gpus / settings.ranks if settings.shared else 100.0
    with rank_throttle("mps" if settings.shared else "none", percentage, device):
        bench = Bench(rank, settings, device)
        for seq_len in settings.lengths:
            rows = bench.run(seq_len)
            if rank == 0:
                results.put(rows)
                for row in rows:
                    print(*row.values(), sep="  ", flush=True)
        for transport in bench.transports.values():
            transport.close()
    dist.barrier(control)
    dist.destroy_process_group()


def heading(settings: Settings, title: str, ranks: str = "") -> str:
    installed = {name: version_of(name) for name in PACKAGES[:3]}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items() if version)
    return (
        f"# {title}\n\n"
        f"- date: {datetime.now(timezone.utc):%Y-%m-%d}\n"
        f"- hardware: {settings.gpus} x {torch.cuda.get_device_name()}{ranks}\n"
        f"- versions: {versions}, cuDNN {torch.backends.cudnn.version()}\n"
        f"- command: `{shlex.join(['python', *sys.argv])}`\n"
        f"- causal, zigzag, {DTYPE}, 32 query and {settings.num_kv_heads} key/value heads, head dim 128\n\n"
    )


def main() -> None:
    arguments = parse()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        ranks=arguments.ranks,
        gpus=min(gpu_count(), arguments.ranks),
        lengths=[int(length) for length in arguments.lengths.split(",")],
        kernel=arguments.kernel,
        num_kv_heads=arguments.kv_heads,
        repeats=arguments.repeats,
        port=port,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.blocks:
        rows = blocks_alone(settings, [int(ranks) for ranks in arguments.blocks.split(",")])
        write_csv(rows, arguments.out / "blocks.csv")
        show(rows, heading(settings, "Blocks of a ring, nothing sent"), arguments.out / "blocks.md")
        return
    sharing = f", {settings.ranks} ranks sharing {settings.gpus} under MPS" if settings.shared else ""
    rows: list[dict[str, Any]] = []
    for new_rows in measured_by_ranks(settings):
        rows += new_rows
        write_csv(rows, arguments.out / "ring.csv")
        efficiency_figure(pandas.DataFrame(rows)).savefig(arguments.out / "ring.png")
    # Last, since the heading asks CUDA for the GPU's name, and under MPS only the ranks may use CUDA before.
    show(rows, heading(settings, "Ways to run one ring", sharing), arguments.out / "ring.md")


def measured_by_ranks(settings: Settings) -> Iterator[list[dict[str, Any]]]:
    """Start one process per rank of the ring. Yield the rows of the table, length by length."""
    results: Any = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        percentages = [100.0 * settings.gpus / settings.ranks] * settings.ranks
        with host_throttle("mps" if settings.shared else "none", percentages, Path(folder)) as environments:
            context = mp.spawn(
                rank_main, (settings, environments, results), nprocs=settings.ranks, join=False
            )
            assert context is not None
            while not context.join(timeout=1):
                while not results.empty():
                    yield results.get()
    while not results.empty():
        yield results.get()


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    write_atomically(path, pandas.DataFrame(rows).to_csv(index=False))


def show(rows: list[dict[str, Any]], heading: str, path: Path) -> None:
    """Print the table under its heading, and write both to `path`."""
    text = heading + pandas.DataFrame(rows).to_markdown(index=False) + "\n"
    write_atomically(path, text)
    print(text)


def efficiency_figure(table: pandas.DataFrame) -> Figure:
    """Draw efficiency by length, from a barrier and in a row, with one line per way to run the ring."""
    figure, axes = panels(2, width=4.8, sharey=True)
    rings, lengths = list(dict.fromkeys(table["ring"])), sorted(set(table["tokens"]))
    palette = [*COLOURS.values(), GREY]
    for axis, column, title in zip(
        axes, ("efficiency", "in a row"), ("from a barrier", "in a row"), strict=True
    ):
        for number, ring in enumerate(rings):
            rows = table[table["ring"] == ring]
            ours = ring not in OTHERS
            axis.plot(
                rows["tokens"],
                rows[column],
                label=ring,
                color=palette[number % len(palette)],
                linestyle="-" if ours else "--",
                marker="o" if ours else "s",
                linewidth=2.5 if number == 0 else 1.5,
            )
        axis.axhline(1.0, **IDEAL)
        length_axis(axis, lengths)
        axis.set_ylim(0, 1.05)
        axis.set_title(title, fontsize=11)
    axes[0].set_ylabel("efficiency")
    below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


if __name__ == "__main__":
    main()
