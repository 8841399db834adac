"""`ringexp simulate`: predict rings of devices that are not there, and replay finished runs."""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from ringexp.choices import TRANSPORTS
from ringexp.cli.terminal import keep_printing
from ringexp.cli.token_counts import token_count
from ringexp.configure.named_models import named_shape
from ringexp.errors import UserError
from ringexp.interrupts import end_interrupted, is_interrupt
from ringexp.planning import Link
from ringexp.printable import plain
from ringexp.simulate import show
from ringexp.simulate.hardware import load_hardware
from ringexp.simulate.recorded import find_recorded, ring_of_run, ring_of_table
from ringexp.simulate.rings import TILE, Ring, Split, run, timings
from ringexp.simulate.specified import ring_of_devices

DESCRIPTION = """\
Simulate ring-attention prefill over unequal devices, by spec sheets or by costs that runs have measured. Or
replay finished runs and show how far simulated and measured latency are apart.

    ringexp simulate --devices 4xH100,4xA100 --seq-len 16384,65536
    ringexp simulate --devices 512xH100,512xL40 --across ib200 --model llama3_8b --seq-len 1048576
    ringexp simulate --costs outputs/runs/MY_RUN --partitioner even,balanced --timeline ring.png
    ringexp simulate --runs outputs/sweeps

hardware.yaml has the spec sheets: published figures, and what is assumed from them. All output is simulated;
docs/scale.md says how far it can be trusted."""


MOST = 10**12
"""The largest number that an option takes; floating point counts exactly far beyond it."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command's options; None: those of this process."""
    parser = argparse.ArgumentParser(
        "ringexp simulate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--devices", metavar="NxNAME,...", help="in the order of the ring, such as 4xH100,4xA100"
    )
    what.add_argument("--costs", type=Path, metavar="PATH", help="folder of a finished run, or speeds.csv")
    what.add_argument("--runs", type=Path, nargs="+", metavar="FOLDER", help="replay all runs under these")
    parser.add_argument("--model", default="attention_mha_4096", help="of conf/model (%(default)s)")
    parser.add_argument("--seq-len", type=_numbers, default=[65536], metavar="N,...", help="tokens (65536)")
    parser.add_argument("--partitioner", default="even,uneven,lut,balanced", help="(%(default)s)")
    parser.add_argument("--layout", default="zigzag", help="zigzag, contiguous or both (%(default)s)")
    parser.add_argument(
        "--prefetch-hops",
        type=lambda text: _number(text, 0),
        metavar="N",
        help="hops posted ahead of compute (all); 0: a barrier at each hop",
    )
    parser.add_argument(
        "--tile",
        type=_number,
        default=TILE,
        help="tokens are given out in whole tiles of this size (%(default)s)",
    )
    parser.add_argument(
        "--chunks", type=_number, default=1, help="number of chunks in which prefill is done (%(default)s)"
    )
    _add_devices(parser)
    parser.add_argument("--timeline", type=Path, metavar="PNG", help="draw the hops of one layer")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args(arguments)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe devices and the links between them."""
    parser.add_argument("--hardware", type=Path, metavar="YAML", help="further devices and links")
    parser.add_argument("--per-node", type=_number, default=8, help="devices of a node (%(default)s)")
    parser.add_argument("--across", default="ib400", help="link between nodes (%(default)s)")
    parser.add_argument(
        "--heads-over",
        type=_number,
        default=1,
        metavar="N",
        help="N neighbours share heads and are one member of the ring",
    )
    parser.add_argument(
        "--transport",
        choices=TRANSPORTS.names,
        default="nccl",
        help="ipc copies from each shard's owner, within one node (%(default)s)",
    )
    parser.add_argument(
        "--percentages",
        type=_numbers,
        default=[100, 100],
        metavar="P,...",
        help="of ranks, for --costs speeds.csv",
    )
    parser.add_argument(
        "--hop", type=_hop, metavar="US:GBPS", help="every hop's microseconds, and GB/s each way"
    )


def _number(text: str, least: int = 1) -> int:
    """Read a whole number; 4k is 4096."""
    try:
        value = token_count(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not least <= value <= MOST:
        bound = f"at least {least}" if value < least else f"at most {MOST}"
        raise argparse.ArgumentTypeError(f"{text} must be {bound}")
    return value


def _numbers(text: str) -> list[int]:
    return [_number(part) for part in text.split(",")]


def _hop(text: str) -> tuple[float, float]:
    """Read the microseconds and GB/s per hop."""
    parts = text.split(":")
    try:
        latency_us, gbps = (float(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not US:GBPS, such as 20:50") from None
    if not (0 <= latency_us < MOST and 0 < gbps < MOST):
        raise argparse.ArgumentTypeError(f"{text} must be at least 0, and above 0, and finite")
    return latency_us, gbps


def build_ring(options: argparse.Namespace, seq_len: int) -> Ring:
    """Return the ring that --devices or --costs describe. Raises UserError for one that cannot be."""
    link = Link.of_bandwidth(*options.hop) if options.hop else None
    if options.costs:
        if options.costs.is_dir():
            return ring_of_run(options.costs, seq_len, link)
        return ring_of_table(options.costs, options.model, options.percentages, seq_len, link)
    hardware, model = load_hardware(options.hardware), named_shape(options.model)
    devices = hardware.ring(options.devices)
    return ring_of_devices(
        devices,
        hardware,
        model,
        seq_len,
        per_node=options.per_node,
        across=options.across,
        link=link,
        direct=TRANSPORTS[options.transport].direct,
        heads_over=options.heads_over,
    )


def main() -> None:
    """Print figures and end with exit code 0; 2: bad input, 130: Ctrl-C."""
    keep_printing()
    options = parse()
    keep_printing()
    try:
        if options.runs:
            runs = find_recorded(options.runs)
            if options.json:
                print(show.replay_json(runs))
            else:
                show.replay_table(runs)
            return
        if options.timeline and options.chunks > 1:
            raise UserError(
                f"--timeline draws one ring, and --chunks {options.chunks} are several; leave one out"
            )
        outcomes, timed = [], []
        ring = None
        for seq_len in options.seq_len:
            ring = build_ring(options, seq_len)
            for layout, partitioner in product(options.layout.split(","), options.partitioner.split(",")):
                split = Split(
                    partitioner, layout, seq_len, options.prefetch_hops, options.tile, options.chunks
                )
                outcomes.append(run(ring, split))
                timed += [(split, timings(ring, split))] if options.timeline else []
        assert ring
        if options.timeline:
            show.draw_timelines(options.timeline, timed, ring.names)
        if options.json:
            print(show.outcomes_json(outcomes, ring))
        else:
            show.outcomes_table(outcomes, ring)
    except UserError as error:
        print(f"ringexp simulate: error: {plain(error)}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        end_interrupted("ringexp simulate: interrupted")
