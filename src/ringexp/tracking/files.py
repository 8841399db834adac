"""A run's own files, complete whatever happens to wandb: config.yaml, results.json, and CSV files.

results.json is replaced atomically at each stage, so it is always whole: status `planned`, then `complete`,
`failed` or `interrupted`. The CSV files grow line by line as iterations end.
"""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from ringexp.atomic import no_link, write_atomically
from ringexp.ring.timing import IterationTiming
from ringexp.stored import parse_json, set_aside, write_json
from ringexp.tracking import metrics
from ringexp.tracking.results import Prompt, RunRecord
from ringexp.tracking.trace import chrome_trace

RESULTS = "results.json"
PREVIOUS = "results.previous.json"
TRACE = "trace.json"
CONFIG = "config.yaml"
ITERATION_FIELDS = (
    "iteration",
    "rank",
    "latency_ms",
    "busy_ms",
    "comm_ms",
    "idle_ms",
    "percentage",
    "tokens",
    "speed_tflops",
    "capacity_efficiency",
    "replan_ms",
)
LAYER_FIELDS = ("iteration", "rank", "layer", "linear_ms", "attention_ms", "wait_ms")
HOP_FIELDS = (
    "iteration",
    "rank",
    "layer",
    "hop",
    "source",
    "wait_ms",
    "compute_ms",
    "transfer_ms",
    "transfer_start_ms",
)


def read_record(run_dir: Path) -> RunRecord | None:
    """Return what the results.json of a run folder says; None without a readable one. Nothing is changed."""
    try:
        return RunRecord.from_json(parse_json((run_dir / RESULTS).read_bytes()))
    except (OSError, ValueError):
        return None


def write_status(run_dir: Path, status: str, values: Mapping[str, object]) -> bool:
    """Replace results.json; return whether that was done. Everything that writes a status goes through here.

    `complete` is final: a signal, an error or a full disk that comes later takes nothing back.

    Args:
        run_dir: the run's folder.
        status: planned, complete, failed or interrupted.
        values: everything else that results.json is to have.
    """
    path = run_dir / RESULTS
    record = read_record(run_dir)
    if record and record.is_complete:
        return False
    if record is None and os.path.lexists(path):
        set_aside(path, ValueError("it is no results.json"))
    write_json(path, {"status": status, **values})
    return True


def begin(run_dir: Path) -> None:
    """Make a folder ready for a run. Keep the results of a run that is complete as results.previous.json."""
    run_dir.mkdir(parents=True, exist_ok=True)
    record = read_record(run_dir)
    if record and record.is_complete:
        os.replace(run_dir / RESULTS, run_dir / PREVIOUS)
    with suppress(FileNotFoundError):
        (run_dir / TRACE).unlink()


def mark_ended(run_dir: Path, status: str, reason: str, overrule: bool = False) -> None:
    """Say in results.json that a run `failed` or was `interrupted`, and why. Measured figures stay.

    Nothing is written if the disk is full: the console has the reason too.

    Args:
        run_dir: the run's folder.
        status: failed or interrupted.
        reason: why, in one line.
        overrule: replace also what the run itself said; for the process that watched all ranks.
    """
    record = read_record(run_dir)
    if overrule or record is None or not record.has_ended:
        content = record.content if record else {}
        with suppress(OSError):
            write_status(run_dir, status, content | {"status": status, "reason": reason})


class RunFiles:
    """Writes one run's folder."""

    def __init__(self, run_dir: Path, config: dict[str, object]) -> None:
        from omegaconf import OmegaConf

        self.run_dir = run_dir
        begin(run_dir)
        write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        self._iterations = _CsvFile(run_dir / "iterations.csv", ITERATION_FIELDS)
        self._layers = _CsvFile(run_dir / "layers.csv", LAYER_FIELDS)
        self._hops = _CsvFile(run_dir / "hops.csv", HOP_FIELDS)

    def write_results(self, status: str, values: Mapping[str, object]) -> bool:
        """Replace results.json unless it is complete, as `write_status` does."""
        return write_status(self.run_dir, status, values)

    def add_iteration(self, iteration: int, ranks: Sequence[IterationTiming], prompt: Prompt) -> None:
        latency = metrics.latency_ms(ranks)
        for rank, timing in enumerate(ranks):
            comm, idle = metrics.comm_ms(timing), metrics.idle_ms(ranks, rank)
            times = (latency, timing.busy_ms, comm, idle)
            set_for = (prompt.percentages[rank], prompt.tokens[rank], prompt.speeds[rank])
            whole = (prompt.capacity_efficiency, prompt.replan_ms)
            self._iterations.add((iteration, rank, *times, *set_for, *whole))
            for layer, times in enumerate(metrics.by_layer(timing)):
                self._layers.add((iteration, rank, layer, *times))
            for layer, hops in groupby(timing.hops, lambda hop: hop.layer):
                for index, hop in enumerate(hops):
                    times = (hop.wait_ms, hop.compute_ms, hop.transfer_ms, hop.transfer_start_ms)
                    self._hops.add((iteration, rank, layer, index, hop.source, *times))

    def write_trace(self, iterations: Sequence[Sequence[IterationTiming]]) -> None:
        """Write the timeline of all iterations as trace.json."""
        write_json(self.run_dir / TRACE, chrome_trace(iterations), indent=None)

    def close(self) -> None:
        self._iterations.close()
        self._layers.close()
        self._hops.close()


class _CsvFile:
    """Whole lines only: one that does not fit the disk is taken back before the error is raised."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._file = open(path, "wb", buffering=0, opener=no_link)  # noqa: SIM115
        self.add(header)

    def add(self, row: Sequence[object]) -> None:
        text = io.StringIO()
        csv.writer(text).writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
        line, begin = text.getvalue().encode(), self._file.tell()
        if self._file.write(line) != len(line):
            self._file.truncate(begin)
            self._file.seek(begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        self._file.close()
