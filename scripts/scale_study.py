#!/usr/bin/env python
"""Simulated rings of 2 to 1,024 unequal devices, 1k to 10M tokens: CSV and figures for docs/scale.md.

    python scripts/scale_study.py --out docs/benchmarks/scale-simulated

Nothing here is measured: devices and links are those of ringexp/simulate/hardware.yaml. It needs no GPU, and
some minutes on one core, most of them for 1,024 ranks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ringexp.configure.named_models import named_shape
from ringexp.errors import UserError
from ringexp.report.figures import style
from ringexp.simulate.hardware import Device, Hardware, load_hardware
from ringexp.simulate.rings import Ring, Split, run
from ringexp.simulate.specified import ring_of_devices
from ringexp.tracking.files import write_atomically
from ringexp.web.palette import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION

MIXES = {"H100": ("H100",), "H100 + A100": ("H100", "A100"), "H100 + A100 + L40": ("H100", "A100", "L40")}
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LENGTHS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PARTITIONERS = ("even", "lut", "balanced")
PER_NODE = 8
MODEL = "llama3_8b"
COLOURS = (BLACK, BLUE, GREEN, ORANGE, VERMILION)
"""The colour of each length."""


@dataclass(frozen=True)
class Setting:
    """One ring and the way in which it is used."""

    mix: str
    ranks: int
    seq_len: int
    across: str = "ib400"
    partitioner: str = "balanced"
    heads_over: int = 1
    chunks: int = 1
    prefetch_hops: int | None = None


def devices_of(mix: str, ranks: int, hardware: Hardware) -> list[Device]:
    """Return about equal numbers of each kind, the fastest first, and whole nodes of one kind if possible."""
    kinds = [hardware.devices[name] for name in MIXES[mix]]
    unit = PER_NODE if ranks >= PER_NODE * len(kinds) else 1
    bounds = [-(-ranks * i // len(kinds) // unit) * unit for i in range(len(kinds) + 1)]
    return [
        device
        for device, start, stop in zip(kinds, bounds, bounds[1:], strict=False)
        for _ in range(stop - start)
    ]


def ring_of(setting: Setting, hardware: Hardware) -> Ring:
    return ring_of_devices(
        devices_of(setting.mix, setting.ranks, hardware),
        hardware,
        named_shape(MODEL),
        setting.seq_len,
        per_node=PER_NODE,
        across=setting.across,
        heads_over=setting.heads_over,
    )


def row(setting: Setting, hardware: Hardware) -> dict[str, Any]:
    """Return the figures of one setting. Raises UserError for more ranks than tokens."""
    ring = ring_of(setting, hardware)
    split = Split(
        setting.partitioner, "zigzag", setting.seq_len, setting.prefetch_hops, chunks=setting.chunks
    )
    one = run(ring, split)
    need = named_shape(MODEL).memory
    shared = max(need.bytes(count, setting.seq_len) for count in one.tokens) - need.fixed
    most_gb = (need.fixed + shared / setting.heads_over) / 1e9 if setting.chunks == 1 else None
    kept = dict.fromkeys(MIXES[setting.mix], 0)
    for name, count in zip(ring.names, one.tokens, strict=True):
        kept[name.split()[-1]] += setting.heads_over * bool(count)
    return {
        "mix": setting.mix,
        "ranks": setting.ranks,
        "seq_len": setting.seq_len,
        "across": setting.across,
        "partitioner": setting.partitioner,
        "heads_over": setting.heads_over,
        "chunks": setting.chunks,
        "prefetch_hops": setting.prefetch_hops,
        "latency_ms": one.latency_ms,
        "capacity_efficiency": one.capacity_efficiency,
        "speedup_over_single": one.speedup_over_single,
        "efficiency": one.efficiency,
        "compute_ms": one.compute_ms,
        "transfer_ms": one.transfer_ms,
        "members": one.members * setting.heads_over,
        **{f"members.{name}": count for name, count in kept.items()},
        "memory_gb": most_gb,
    }


def settings() -> Iterator[Setting]:
    """Yield the grid, then parts of it with head-parallel groups, 200 Gb/s, barriers and chunks."""
    for mix, ranks, seq_len, partitioner in product(MIXES, RANKS, LENGTHS, PARTITIONERS):
        yield Setting(mix, ranks, seq_len, partitioner=partitioner)
    mixed = "H100 + A100"
    for ranks, seq_len in product(RANKS, LENGTHS):
        yield Setting(mixed, ranks, seq_len, across="ib200")
        if ranks >= 2 * PER_NODE:
            yield Setting(mixed, ranks, seq_len, heads_over=PER_NODE)
    for seq_len, prefetch_hops in product(LENGTHS[2:], (0, 1, 2)):
        yield Setting(mixed, 16, seq_len, prefetch_hops=prefetch_hops)
    for seq_len, chunks in product(LENGTHS[2:], (4, 16)):
        yield Setting(mixed, 16, seq_len, chunks=chunks)


def measure(hardware: Hardware) -> pd.DataFrame:
    """Return one row per setting, without settings that have more ranks than tokens."""
    rows = []
    for setting in settings():
        try:
            rows.append(row(setting, hardware))
        except UserError:
            continue
        print(f"{len(rows):4} {setting}", flush=True)
    return pd.DataFrame(rows)


def plain(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Return the rows of the grid, or the rows that differ from the grid by these values."""
    chosen = {"across": "ib400", "heads_over": 1, "chunks": 1} | wanted
    for name, value in chosen.items():
        table = table[table[name] == value]
    return table if "prefetch_hops" in wanted else table[table.prefetch_hops.isna()]


def length_name(seq_len: int) -> str:
    return f"{seq_len // 1_000_000}M" if seq_len >= 1_000_000 else f"{seq_len // 1000}k"


def lines_by_length(axis: Any, table: pd.DataFrame, column: str, **look: Any) -> None:
    for seq_len, colour in zip(LENGTHS, COLOURS, strict=True):
        rows = table[table.seq_len == seq_len].sort_values("ranks")
        style_of_line = {"marker": "o", "markersize": 4, "linewidth": 1.6} | look
        axis.plot(rows.ranks, rows[column], color=colour, **style_of_line)


def ranks_axis(axis: Any) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(RANKS, [str(ranks) for ranks in RANKS], fontsize=8)
    axis.set_xlabel("devices")


def length_handles(extra: list[Any] | None = None) -> list[Any]:
    return [
        style.Line2D([], [], color=colour, linewidth=3, label=f"{length_name(seq_len)} tokens")
        for seq_len, colour in zip(LENGTHS, COLOURS, strict=True)
    ] + (extra or [])


def way(label: str, **look: Any) -> Any:
    return style.Line2D([], [], color="#555555", label=label, **look)


def efficiency_figure(table: pd.DataFrame) -> Figure:
    """Draw capacity efficiency over the number of devices, one row per mix and one column per partitioner."""
    figure, grid = style.new_figure(len(MIXES), len(PARTITIONERS), height=2.7, sharey=True)
    for axes, mix in zip(grid, MIXES, strict=True):
        for axis, partitioner in zip(axes, PARTITIONERS, strict=True):
            lines_by_length(axis, plain(table, mix=mix, partitioner=partitioner), "capacity_efficiency")
            axis.axhline(1.0, **style.IDEAL)
            axis.set_title(f"{partitioner}: {mix}", fontsize=11)
            axis.set_ylim(0, 1.05)
            axis.grid(axis="y", color="#dddddd", linewidth=0.6)
            ranks_axis(axis)
        axes[0].set_ylabel("capacity efficiency, simulated")
    style.below(figure, length_handles())
    return figure


def speedup_figure(table: pd.DataFrame) -> Figure:
    """Draw the speedup over the fastest device alone."""
    figure, (axes,) = style.new_figure(1, len(MIXES), height=3.6, sharey=True)
    for axis, mix in zip(axes, MIXES, strict=True):
        lines_by_length(axis, plain(table, mix=mix, partitioner="balanced"), "speedup_over_single")
        lines_by_length(
            axis,
            plain(table, mix=mix, partitioner="even"),
            "speedup_over_single",
            linestyle="--",
            marker="",
            alpha=0.8,
        )
        axis.set_title(mix, fontsize=11)
        axis.axhline(1.0, color="#888888", linewidth=0.8)
        style.log_y(axis)
        ranks_axis(axis)
    axes[0].set_ylabel("speedup over one H100, simulated")
    style.below(figure, length_handles([way("balanced", marker="o"), way("even", linestyle="--")]))
    return figure


def bound_figure(table: pd.DataFrame) -> Figure:
    """Draw the time of hops alone over the compute time of the slowest rank. Above 1 transfers limit."""
    figure, (axes,) = style.new_figure(1, len(MIXES), height=3.6, sharey=True)
    table = table.assign(ratio=table.transfer_ms / table.compute_ms)
    for axis, mix in zip(axes, MIXES, strict=True):
        lines_by_length(axis, plain(table, mix=mix, partitioner="lut"), "ratio")
        axis.axhline(1.0, color="#555555", linewidth=1)
        axis.set_title(f"lut: {mix}", fontsize=11)
        axis.set_ylim(bottom=0.005)
        style.log_y(axis)
        ranks_axis(axis)
    axes[0].set_ylabel("hops alone / computing, simulated")
    style.below(figure, length_handles())
    return figure


def kept_figure(table: pd.DataFrame) -> Figure:
    """Draw the parts of three kinds of devices that `balanced` keeps in the ring, one panel per length."""
    mix = "H100 + A100 + L40"
    table = plain(table, mix=mix, partitioner="balanced")
    lengths = sorted(table.seq_len.unique())
    figure, (axes,) = style.new_figure(1, len(lengths), width=2.7, height=3.2, sharey=True)
    colours = dict(zip(MIXES[mix], (BLUE, ORANGE, GREY), strict=True))
    for axis, seq_len in zip(axes, lengths, strict=True):
        rows = table[table.seq_len == seq_len].sort_values("ranks")
        bottom = 0.0 * rows.ranks
        for name, colour in colours.items():
            part = rows[f"members.{name}"] / rows.ranks
            axis.bar(range(len(rows)), part, bottom=bottom, color=colour, width=0.85)
            bottom = bottom + part
        axis.set_xticks(range(len(rows)), rows.ranks, fontsize=8, rotation=60)
        axis.set_ylim(0, 1)
        axis.set_xlabel("devices")
        axis.set_title(f"{length_name(seq_len)} tokens", fontsize=11)
    axes[0].set_ylabel("part of the devices in the ring")
    style.below(
        figure,
        [style.Line2D([], [], color=colour, linewidth=6, label=name) for name, colour in colours.items()],
    )
    return figure


def alternatives_figure(table: pd.DataFrame) -> Figure:
    """Draw the plain ring, and rings that share heads within nodes or have slower links."""
    table = table[(table.mix == "H100 + A100") & (table.partitioner == "balanced")]
    figure, (axes,) = style.new_figure(1, 2, width=6.2, height=3.8, sharey=True)
    others = [
        (axes[0], "heads shared within nodes, a ring across them", {"heads_over": PER_NODE}),
        (axes[1], "200 Gb/s between nodes", {"across": "ib200"}),
    ]
    for axis, title, wanted in others:
        lines_by_length(axis, plain(table), "speedup_over_single", linestyle="--", marker="", alpha=0.8)
        lines_by_length(axis, plain(table, **wanted), "speedup_over_single")
        axis.set_title(f"H100 + A100: {title}", fontsize=11)
        axis.axhline(1.0, color="#888888", linewidth=0.8)
        style.log_y(axis)
        ranks_axis(axis)
    axes[0].set_ylabel("speedup over one H100, simulated")
    ways = [way("the ring of all ranks at 400 Gb/s", linestyle="--"), way("as the title says", marker="o")]
    style.below(figure, length_handles(ways))
    return figure


FIGURES = {
    "capacity_efficiency": efficiency_figure,
    "speedup": speedup_figure,
    "transfers": bound_figure,
    "kept": kept_figure,
    "alternatives": alternatives_figure,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for scale.csv and the figures")
    parser.add_argument("--redraw", action="store_true", help="draw the scale.csv that is there")
    arguments = parser.parse_args()
    path = arguments.out / "scale.csv"
    if not arguments.redraw:
        write_atomically(path, measure(load_hardware()).to_csv(index=False, float_format="%.5g"))
    table = pd.read_csv(path)
    for name, draw in FIGURES.items():
        draw(table).savefig(arguments.out / f"{name}.png")
        print(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
