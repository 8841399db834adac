"""The distance between the output of a ring and the output of one process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ringexp.config import Config
from ringexp.models.inputs import unpadded
from ringexp.tracking.accuracy import Accuracy
from ringexp.worker.prepare import PreparedJob


def check_output(job: PreparedJob, output: Tensor) -> Accuracy | None:
    """Compare the outputs of all ranks with that of one process, on the rank with the largest percentage.

    Args:
        job: what was run.
        output: this rank's output.

    Returns:
        The accuracy, on every rank; None with check=false.
    """
    session, communicator, plan = job.session, job.session.communicator, job.plan
    if not job.config.check:
        return None
    session.progress.stage(f"checking against one process: {job.config.seq_len} tokens")
    checker, shapes = job.checker, communicator.gather(tuple(output.shape))
    sizes = [
        [
            math.prod(shape) * output.itemsize if rank != checker == peer else 0
            for peer in range(plan.world_size)
        ]
        for rank, shape in enumerate(shapes)
    ]
    accuracy: Accuracy | None = None
    if communicator.rank == checker:
        received = {rank: output.new_empty(shapes[rank]) for rank in plan.members if rank != checker}
        session.transport.exchange({}, received, sizes)
        accuracy = _accuracy_of_ranks(job, received | {checker: output})
    else:
        sends = {checker: output} if output.numel() else {}
        session.transport.exchange(sends, {}, sizes)
    return communicator.gather(accuracy)[checker]


def _accuracy_of_ranks(job: PreparedJob, outputs: Mapping[int, Tensor]) -> Accuracy:
    """Compare the outputs, by rank, with those of one process."""
    workload, plan = job.workload, job.plan
    parts = unpadded(job.x, plan)
    exact, single = job.session.expected.get(_prompt_key(job.config), workload, parts)
    expected = [(workload.part_of(exact, plan, rank), out) for rank, out in outputs.items()]
    return accuracy_of([(out, part) for part, out in expected if part is not None], single, exact)


def _prompt_key(config: Config) -> tuple[object, ...]:
    """Return what decides model and prompt."""
    prompt = config.prompt_file, config.prompt_text, config.prompt_lines, config.prompt_lengths
    return config.model, config.seq_len, config.seed, *prompt


def accuracy_of(parts: Sequence[tuple[Tensor, Tensor]], single: Tensor, exact: Tensor) -> Accuracy:
    """Compare the output of all ranks with that of one process.

    A value that is NaN or infinite, on either side, makes the errors NaN or infinite.

    Args:
        parts: for each rank its output and its part of `exact`, [B, L, ...] or [B, ...] each.
        single: the whole output of one process in the outputs' own precision.
        exact: the whole output of one process in float32.
    """
    errors = [_errors(out, part) for out, part in parts]
    single_max_abs, single_token = _errors(single, exact)
    return Accuracy(
        error_max_abs=_largest(error for error, _ in errors),
        error_single_max_abs=single_max_abs,
        error_token=_largest(error for _, error in errors),
        error_single_token=single_token,
        reference_spread=exact.max().item() - exact.min().item(),
        not_finite=sum(_not_finite(out) for out, _ in parts),
        single_not_finite=_not_finite(single),
        reference_not_finite=_not_finite(exact),
    )


def _largest(values: Iterable[float]) -> float:
    """Return the largest value, or NaN if any value is NaN: Python's max() may skip a NaN."""
    errors = list(values)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _not_finite(x: Tensor) -> int:
    """Count the values that are NaN or infinite."""
    return x.numel() - int(x.isfinite().sum())


def _errors(out: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the largest difference, and a token's largest Euclidean distance relative to its own output."""
    difference = out.float() - exact
    off, size = (_token_norms(x) for x in (difference, exact))
    least = torch.finfo(size.dtype).tiny
    return difference.abs().max().item(), (off / size.clamp_min(least)).max().item()


def _token_norms(x: Tensor) -> Tensor:
    """Return each token's norm, in float64, where the square of no float32 value overflows or vanishes."""
    return torch.linalg.vector_norm(x.flatten(2) if x.dim() > 2 else x, dim=-1, dtype=torch.float64)
