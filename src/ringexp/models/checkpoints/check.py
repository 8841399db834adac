"""The comparison of a loaded checkpoint with transformers' own model, on a short prompt, without a ring."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKPOINT_BOUND = 3e-4
"""Logits of a checkpoint in float32 differ from transformers' by no more than this part of their spread."""
PROMPT = 64
"""The largest number of prompt tokens that are compared."""
MARGIN = 1.1
"""Memory that has to be free, divided by the memory of the weights."""


@dataclass(frozen=True)
class CheckpointCheck:
    """The distance of a loaded checkpoint from transformers' own model of the same folder.

    error: largest difference of the logits of a short prompt, both in float32, over their spread; None if it
    was not measured, for the reason in left_out.
    """

    error: float | None = None
    left_out: str | None = None

    @property
    def exact(self) -> bool:
        """Tell whether the models differ by rounding only; a NaN is not rounding."""
        return self.error is None or self.error <= CHECKPOINT_BOUND

    def why_inexact(self, folder: object) -> str | None:
        """Say in one line that transformers computes the checkpoint otherwise; None if it does not."""
        if self.exact:
            return None
        return (
            f"checkpoint {folder} is computed otherwise than by Hugging Face's own model: in float32 the "
            f"logits differ by {self.error:.3g} of their spread, and by rounding at most by "
            f"{CHECKPOINT_BOUND:g}: do not use it"
        )


def compare_with_hugging_face(model: nn.Module, folder: str | Path, ids: torch.Tensor) -> CheckpointCheck:
    """Compare all logits of a short prompt, both models in float32 (float64 if ours is), one after the other.

    Args:
        model: FMS's model of the checkpoint.
        folder: the checkpoint.
        ids: the prompt, [1, S], of which the first tokens are taken.

    Returns:
        The distance of the logits, or why it was not measured: memory, or an error of transformers.
    """
    dtype = next(model.parameters()).dtype
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    weights = MARGIN * sum(parameter.numel() for parameter in model.parameters())
    need, host = weights * precise.itemsize, torch.device("cpu")
    free = {device: _free_bytes(device) for device in dict.fromkeys((ids.device, host))}
    fits = [device for device, size in free.items() if size >= need]
    device = fits[0] if fits and free[host] >= weights * dtype.itemsize else None  # it is read on the host
    if device is None:
        have = ", ".join(f"{device.type} has {size / 2**30:.1f}" for device, size in free.items())
        return CheckpointCheck(
            left_out=f"transformers' copy of the weights needs {need / 2**30:.1f} GiB, and {have}"
        )
    ids = ids[:, :PROMPT].to(device)
    try:
        expected = _their_logits(folder, ids, dtype, precise)
    except Exception as error:  # whatever transformers raises, it says nothing about our model
        _free_memory()
        reason = " ".join(str(error).split()) or type(error).__name__
        return CheckpointCheck(left_out=f"transformers cannot compute it: {reason}")
    try:
        logits = _our_logits(model, ids, precise)
    except torch.OutOfMemoryError:
        _free_memory()
        return CheckpointCheck(left_out=f"a copy of the weights needs {need / 2**30:.1f} GiB on {device}")
    return CheckpointCheck(error=_distance(logits, expected))


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference divided by the spread of `expected`; NaN or infinite if any logit is."""
    spread = expected.max() - expected.min()
    error = ((logits - expected).abs().max() / spread.clamp_min(torch.finfo(spread.dtype).tiny)).item()
    return error if torch.isfinite(expected).all() else math.nan


def _their_logits(
    folder: str | Path, ids: torch.Tensor, dtype: torch.dtype, precise: torch.dtype
) -> torch.Tensor:
    """Return logits [1, L, V] of transformers' model. Its weights are rounded to `dtype` as ours are."""
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        theirs: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, experts_implementation="eager"
        )  # other ways to compute experts ask for aligned widths, and have no float64
    theirs = theirs.to(device=ids.device, dtype=precise).eval()
    logits = theirs(ids, use_cache=False).logits
    del theirs
    _free_memory()
    return logits


def _our_logits(model: nn.Module, ids: torch.Tensor, precise: torch.dtype) -> torch.Tensor:
    """Return logits [1, L, V] of a copy of our model, computed with FMS's own attention."""
    shared = {
        id(weight): nn.Parameter(weight.detach().to(ids.device, precise), requires_grad=False)
        for weight in model.parameters()
    }
    ours = copy.deepcopy(model, {**shared})  # everything but the weights, which are there already
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    logits, _ = ours(ids, position_ids=positions, use_cache=True, attn_name="sdpa_causal")
    del ours, shared
    _free_memory()
    return logits


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and notes off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _free_bytes(device: torch.device) -> float:
    """Return the free memory of a device in bytes; infinite where the system does not tell."""
    if device.type == "cuda":
        _free_memory()
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_cgroup_free_bytes()], default=math.inf)


def _cgroup_free_bytes() -> list[int]:
    """Return the bytes that a container's memory limit leaves, or an empty list without a limit."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int((root / name).read_text(encoding="utf-8")) for name in (limit, used))
            return [most - now]
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return []
