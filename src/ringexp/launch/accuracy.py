"""How far outputs are from those of one process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ringexp.tracking.metrics import Accuracy


def accuracy_of(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], single: torch.Tensor, exact: torch.Tensor
) -> Accuracy:
    """Of the ranks' outputs, each with its part of `exact`, [B, L, ...] or [B, ...], all by one process in
    float32. single: all by one process in the outputs' own precision."""
    errors = [_errors(out, part) for out, part in parts]
    single_max_abs, single_token = _errors(single, exact)
    return Accuracy(
        error_max_abs=max(error for error, _ in errors),
        error_single_max_abs=single_max_abs,
        error_token=max(error for _, error in errors),
        error_single_token=single_token,
        reference_spread=(exact.max() - exact.min()).item(),
    )


def _errors(out: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """The largest difference, and the largest of a token relative to its output, by norms."""
    difference = out.float() - exact
    off, size = ((x.flatten(2) if x.dim() > 2 else x).norm(dim=-1) for x in (difference, exact))
    return difference.abs().max().item(), (off / size.clamp_min(1e-30)).max().item()
