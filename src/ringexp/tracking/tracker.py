"""One run's record: its own files first, then wandb. Lives on one rank and sees all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ringexp.config import Config
from ringexp.errors import Interrupted
from ringexp.hetero.drift import drift_label
from ringexp.ring.timing import IterationTiming
from ringexp.stored import JsonObject, Warn
from ringexp.tracking import metrics
from ringexp.tracking.files import CONFIG, RESULTS, RunFiles
from ringexp.tracking.results import COMPLETE, FAILED, INTERRUPTED, PLANNED, Prompt, RunResult
from ringexp.tracking.schema import command_text
from ringexp.tracking.wandb_run import WandbRun, summary_of

FILES = (CONFIG, RESULTS, "iterations.csv", "layers.csv", "hops.csv", "trace.json")
"""The files of a run's folder that its wandb record has as an artifact."""


class Tracker:
    """Every figure goes to the run's folder and to wandb under the same name.

    warn: told, once, what goes wrong with wandb. described: what the run is, which results.json always has,
    its `environment` among it.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        warn: Warn,
        described: Mapping[str, object] | None = None,
    ) -> None:
        settings = asdict(config)
        self._run_dir, self._world_size = run_dir, config.world_size
        self._files = RunFiles(run_dir, settings)
        self._profiled: list[Sequence[IterationTiming]] | None = [] if config.profile else None
        tags = (
            config.model.name,
            drift_label(config.hetero.percentages, config.hetero.drift),
            config.partitioner.name,
            config.layout.name,
        )
        self._described = dict(described or {})
        environment = self._described.get("environment")
        about = _about(environment if isinstance(environment, dict) else {})
        self._wandb = WandbRun(run_dir, config.tracker, settings | about, tags, warn=warn)
        self._planned: dict[str, object] = {}
        self._figures: dict[str, object] = {}  # the results of the run, once they are known
        self._ended = False  # whether results.json has them
        self._latencies_ms: list[float] = []

    def planned(self, values: Mapping[str, object]) -> None:
        self._planned = dict(values)
        self._files.write_results(PLANNED, self._described | self._planned)

    def iteration(self, index: int, ranks: Sequence[IterationTiming], prompt: Prompt) -> None:
        self._files.add_iteration(index, ranks, prompt)
        if self._profiled is not None:
            self._profiled.append(ranks)
        self._latencies_ms.append(metrics.latency_ms(ranks))
        values: dict[str, object] = {"iteration": index, "latency_ms": self._latencies_ms[-1]}
        values["capacity_efficiency"] = prompt.capacity_efficiency
        values["replan_ms"] = prompt.replan_ms
        for rank, timing in enumerate(ranks):
            values[f"rank_{rank}/percentage"] = prompt.percentages[rank]
            values[f"rank_{rank}/tokens"] = prompt.tokens[rank]
            values[f"rank_{rank}/speed_tflops"] = prompt.speeds[rank]
            values[f"rank_{rank}/busy_ms"] = timing.busy_ms
            values[f"rank_{rank}/comm_ms"] = metrics.comm_ms(timing)
            values[f"rank_{rank}/idle_ms"] = metrics.idle_ms(ranks, rank)
        self._wandb.log(values)

    def finish(self, result: RunResult) -> None:
        """Write the result of the run with all figures: `complete`, or `failed` if its output is wrong."""
        self._figures = asdict(result)
        values = self._described | self._figures
        wrong = {"reason": result.why_inexact or "its output is wrong"} if result.exact is False else {}
        status = FAILED if wrong else COMPLETE
        self._files.write_results(status, values | wrong | {"wandb": self._wandb.where})
        self._ended = True
        self._close_files()
        self._end_record(values, exit_code=1 if wrong else 0)

    def fail(self, error: BaseException) -> None:
        """Keep the plan and the measurements, and say why there are no more. An ended run stays as it is."""
        status = INTERRUPTED if isinstance(error, Interrupted) else FAILED
        reason = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}"
        measured = {"latency_ms_iterations": self._latencies_ms} | self._figures | {"reason": reason}
        values = self._described | self._planned | measured
        with suppress(OSError):  # a full disk, which may well be the error that is being reported
            if not self._ended:
                self._ended = not self._files.write_results(status, values)
            self._close_files()
        if self._ended:
            self._end_record(self._described | self._figures)
        else:
            self._end_record(values, exit_code=1)

    def _end_record(self, values: dict[str, object], exit_code: int = 0) -> None:
        """Give wandb the files and the figures that the run ends with."""
        self._wandb.log_files([self._run_dir / name for name in FILES])
        self._wandb.finish(summary_of(values, self._world_size), exit_code)

    def _close_files(self) -> None:
        if self._profiled is not None:
            self._files.write_trace(self._profiled)
        self._files.close()


def _about(environment: JsonObject) -> dict[str, object]:
    """Return the facts that the config pane of the wandb run shows beside the settings."""
    facts: dict[str, object] = {
        "command": command_text(environment),
        "hardware": environment.get("machine"),
        "versions": environment.get("versions"),
    }
    facts |= {name: environment.get(name) for name in ("commit", "host", "python")}
    return {name: fact for name, fact in facts.items() if fact}
