"""The distance between the output of a ring and the output of one process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ringexp.tracking.accuracy import Accuracy


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
    known = list(values)
    return math.nan if any(map(math.isnan, known)) else max(known)


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
