"""Start and supervise the ranks of one set inside a SLURM job: a job step, in which each task is a rank.

This runs in the job's batch script, on the first of its nodes, and hosts the rendezvous store there. `srun`
starts `slurm.task` on the nodes, ranks in order from node to node, and ends all when one fails. The
caller turns the signals by which SLURM ends a job into `Interrupted`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ringexp.atomic import no_link
from ringexp.choices import THROTTLES
from ringexp.errors import Interrupted, RunFailed, UserError
from ringexp.launch.supervision import (
    POLL_S,
    Display,
    earliest_error,
    progress_reader,
    rendezvous,
    write_rank_set,
)
from ringexp.stored import JsonObject
from ringexp.worker.rank_error import error_file
from ringexp.worker.rank_set import RankSet

SURVEY_S = 120.0
"""Seconds for every node of the job to start Python and say what it has."""
END_S = 30.0
"""Seconds for srun to end after SIGTERM. Tasks give their ranks GRACE_S."""

_OF_THE_JOB = ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS", "SLURM_NPROCS", "MASTER_ADDR")
"""Variables that describe the job or come from the user's shell. The step must not use them."""


class Node(TypedDict):
    """The answer of `slurm.survey` for one node: how many GPUs it has, and its machine facts by device."""

    gpus: int
    cpu: JsonObject
    cuda: JsonObject


@dataclass(frozen=True)
class SlurmJob:
    """The allocation that this process is in.

    Attributes:
        num_nodes: the number of nodes.
        cpus_per_rank: the cores of each rank; None lets the ranks of a node share its cores.
        srun: further arguments of srun for every step.
    """

    num_nodes: int
    cpus_per_rank: int | None = None
    srun: tuple[str, ...] = ()

    def survey(self, workdir: Path) -> list[Node]:
        """Return what `slurm.survey` says of each node, in order. Raises RunFailed if one is silent."""
        workdir.mkdir(parents=True, exist_ok=True)
        answers = [workdir / f"node_{index}.json" for index in range(self.num_nodes)]
        command = self._srun(self.num_nodes, workdir / "node_%n.json")
        command += [sys.executable, "-m", "ringexp.slurm.survey"]
        log = workdir / "srun.log"
        try:
            with open(log, "w", encoding="utf-8", opener=no_link) as step_log:
                stdin = subprocess.DEVNULL
                subprocess.run(
                    command, env=_environment(), stdin=stdin, stderr=step_log, timeout=SURVEY_S, check=True
                )
            return [json.loads(answer.read_text(encoding="utf-8")) for answer in answers]
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            reason = _last_line(log) or str(error)
            raise RunFailed(f"srun could not start a task on every node of the job: {reason}") from error

    def run_ranks(self, ranks: RankSet, workdir: Path, display: Display) -> None:
        """Run a set of ranks as a step of the job, as `supervision.RunRanks` says."""
        if THROTTLES[ranks.throttle].makes_control_groups:
            raise UserError(
                f"hetero.throttle={ranks.throttle} makes control groups of its own, but SLURM keeps ranks in "
                "its groups; use hetero.throttle=cpu_pacing or auto"
            )
        path = write_rank_set(ranks, workdir)
        log = workdir / "logs" / "srun.log"
        command = self._srun(ranks.world_size, workdir / "logs" / "rank_%t.log")
        command += [sys.executable, "-m", "ringexp.slurm.task", str(path)]
        with (
            rendezvous(ranks.jobs[0].run.settings.launch.port, on_network=self.num_nodes > 1) as meeting,
            open(log, "w", encoding="utf-8", opener=no_link) as step_log,
        ):
            # A command line is for all to see; the environment only for the user, and srun hands it on.
            step = subprocess.Popen(
                command, env=_environment() | meeting, stdin=subprocess.DEVNULL, stderr=step_log
            )
            try:
                _follow(step, path, display)
            finally:
                _end(step)
        if step.returncode:
            raise _explain(step.returncode, ranks, path, log)

    def _srun(self, num_tasks: int, output: Path) -> list[str]:
        nodes = min(self.num_nodes, num_tasks)
        command = ["srun", f"--nodes={nodes}", f"--ntasks={num_tasks}", "--distribution=block"]
        command += ["--kill-on-bad-exit=1", "--cpu-bind=none", "--mpi=none", "--unbuffered"]
        command.append(f"--output={output}")
        if self.cpus_per_rank is not None:  # srun does not inherit it from the job
            command.append(f"--cpus-per-task={self.cpus_per_rank}")
        return [*command, *self.srun]


def _environment() -> dict[str, str]:
    """Return the environment for srun."""
    return {name: value for name, value in os.environ.items() if name not in _OF_THE_JOB}


def _follow(step: subprocess.Popen[bytes], path: Path, display: Display) -> None:
    reader = progress_reader(path.parent)
    ended = False
    while not ended:
        ended = step.poll() is not None
        for event in reader.events():
            display.event(event)
        time.sleep(0 if ended else POLL_S)


def _end(step: subprocess.Popen[bytes]) -> None:
    """End a step that is still running."""
    if step.poll() is None:
        step.terminate()  # srun passes it on to every task
        try:
            step.wait(END_S)
        except subprocess.TimeoutExpired:
            step.kill()
            step.wait()


def _explain(code: int, ranks: RankSet, path: Path, log: Path) -> UserError | RunFailed | Interrupted:
    """Return what ended the step.

    Usually that is the earliest error that a rank wrote, or its task wrote for it. If all errors are of
    victims or of ranks that srun ended, a task that was killed comes first: srun reports it, and the task
    itself writes nothing. Without any error it is the last line of srun.
    """
    everyone = range(ranks.world_size)
    logs = {rank: path.parent / "logs" / f"rank_{rank}.log" for rank in everyone}
    texts = {rank: str(file) for rank, file in logs.items()}
    error = earliest_error(path, everyone, texts, victims=False)
    if error is None or isinstance(error, Interrupted):
        lost = lost_task(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
        if lost and not error_file(path, lost[0]).exists():
            rank, how = lost
            return RunFailed(f"the task of rank {rank} ended: {how}, says srun; its log: {logs[rank]}")
    reason = _last_line(log) or f"exit code {code}"
    return (
        error
        or earliest_error(path, everyone, texts)
        or RunFailed(f"the SLURM step of {ranks.world_size} ranks ended: {reason}; logs: {log.parent}")
    )


_LOST = re.compile(
    r"^srun: error: (?P<node>\S+): tasks? (?P<task>\d+)\S*: (?P<how>(?!Exited with).*\S)", re.M
)
_ENDING = re.compile(r"Terminating StepId|CANCELLED|Force Terminated|Job step aborted")


def lost_task(output: str) -> tuple[int, str] | None:
    """Return the first task that ended by a signal, and how and where, by what srun said.

    Lines after srun began to end the step are of tasks that it killed itself.
    """
    before = _ENDING.split(output, maxsplit=1)[0]
    lost = _LOST.search(before)
    return (int(lost["task"]), f"{lost['how']}, on {lost['node']}") if lost else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
