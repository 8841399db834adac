"""A run's own files, complete whatever happens to wandb: config.yaml, results.json, and CSV files.

results.json is replaced atomically at each stage, so it is always whole: status `planned`, then `complete`,
`failed` or `interrupted`. The CSV files grow line by line as iterations end.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from ringexp.atomic import no_link, write_atomically
from ringexp.ring.timing import IterationTiming
from ringexp.tracking import metrics
from ringexp.tracking.trace import chrome_trace

RESULTS = "results.json"
CONFIG = "config.yaml"
ENDED = ("complete", "failed", "interrupted")
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


def read_results(run_dir: Path) -> dict[str, Any] | None:
    """The results.json of a run folder, or None where there is none."""
    path = run_dir / RESULTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def mark_ended(run_dir: Path, status: str, reason: str, overrule: bool = False) -> None:
    """Say in results.json that a run `failed` or was `interrupted`, and why; what was measured stays.

    Nothing changes if the run itself did so, unless with `overrule`: who watched all ranks knows the cause.
    A disk that is full stays as it is; the reason is told on the console too.
    """
    known = read_results(run_dir) or {}
    if known.get("status") not in (("complete",) if overrule else ENDED):
        document = known | {"status": status, "reason": reason}
        with suppress(OSError):
            write_atomically(run_dir / RESULTS, json.dumps(document, indent=2) + "\n")


class RunFiles:
    """Writes one run's folder."""

    def __init__(self, run_dir: Path, config: dict[str, Any]) -> None:
        from omegaconf import OmegaConf

        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        self._iterations = _CsvFile(run_dir / "iterations.csv", ITERATION_FIELDS)
        self._layers = _CsvFile(run_dir / "layers.csv", LAYER_FIELDS)
        self._hops = _CsvFile(run_dir / "hops.csv", HOP_FIELDS)

    def write_results(self, status: str, values: dict[str, Any]) -> None:
        """Replace results.json; `status` is planned or one of ENDED."""
        document = {"status": status, **values}
        write_atomically(self.run_dir / RESULTS, json.dumps(document, indent=2) + "\n")

    def add_iteration(self, iteration: int, ranks: Sequence[IterationTiming], prompt: metrics.Prompt) -> None:
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
        """trace.json: the timeline of all iterations."""
        write_atomically(self.run_dir / "trace.json", json.dumps(chrome_trace(iterations)) + "\n")

    def close(self) -> None:
        self._iterations.close()
        self._layers.close()
        self._hops.close()


class _CsvFile:
    """Whole lines only: one that does not fit the disk is taken back before the error is raised."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._file = open(path, "wb", buffering=0, opener=no_link)  # noqa: SIM115
        self.add(header)

    def add(self, row: Sequence[Any]) -> None:
        text = io.StringIO()
        csv.writer(text).writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
        line, begin = text.getvalue().encode(), self._file.tell()
        if self._file.write(line) != len(line):
            self._file.truncate(begin)
            self._file.seek(begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        self._file.close()
