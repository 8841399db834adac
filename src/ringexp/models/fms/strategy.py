"""FMS models on a ring, made as FMS makes models: `get_model(..., distributed_strategy="ring", speeds=...)`.

model = get_model("llama", "micro", distributed_strategy="ring", speeds=[1.0, 0.5])
logits = model(ids)     # every rank passes the whole prompt and gets the whole result
ids = generate(model, ids, max_new_tokens=64)   # of `generation`, or FMS's own with use_cache=True
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from fms.models import get_model as fms_get_model
from torch import nn

from ringexp.calibration.group_speeds import measure_speeds
from ringexp.errors import UserError
from ringexp.models.checkpoints.load import from_pretrained
from ringexp.models.fms.agreement import check_same_settings
from ringexp.models.fms.facts import first_attention
from ringexp.models.fms.ring_model import RingModel
from ringexp.models.fms.ring_strategy import RingAttentionStrategy
from ringexp.models.weights import broadcast_weights
from ringexp.planning import RankCost
from ringexp.ring.ring_group import RingGroup, ring_group_of

FMS_STRATEGIES = (None, "none", "tp", "mp", "fsdp", "hsdp", "ddp")

MEASURED_TOKENS = 2048
"""Tokens per rank for measuring speeds: attention is most of the time, and it takes a moment only."""


def get_model(
    architecture: str,
    variant: str | None = None,
    *,
    distributed_strategy: str | None = None,
    speeds: Sequence[float] | Sequence[RankCost] | str | None = None,
    block_lens: Sequence[int] | None = None,
    layout: str = "zigzag",
    group: dist.ProcessGroup | None = None,
    kernel: str = "auto",
    transport: str = "auto",
    **kwargs: Any,
) -> nn.Module:
    """Return a model as FMS's `get_model` does, which also knows distributed_strategy="ring".

    All ranks of the group call it together. The weights of rank 0 are broadcast, so that random ones agree.

    Args:
        architecture: FMS's name, or "hf_pretrained" for a Hugging Face folder, see `checkpoint`.
        variant: as for FMS.
        distributed_strategy: "ring", or one of FMS's.
        speeds: speeds or costs of the ranks, as `ringexp.plan` takes them: every prompt is planned by them,
            whatever its length. "measured": speeds of attention, measured now.
        block_lens: in place of speeds the token count of every rank, for prompts of that length alone.
        layout: zigzag or contiguous.
        group: the ranks of the ring. None: the default group.
        kernel: what computes attention. auto: what is expected to be the fastest.
        transport: what carries keys and values. auto: what the group's backend can do, see `ring.groups`.
        kwargs: for FMS. max_expected_seq_len has to cover the prompt and what is generated.

    Returns:
        A `RingModel`, or FMS's own model without the ring.

    Raises:
        UserError: for an unknown strategy (FMS itself ignores those), or settings that do not fit.
        RingError: where another rank has failed.
    """
    if distributed_strategy != "ring":
        _check_without_ring(distributed_strategy, block_lens, speeds)
        return fms_get_model(
            architecture, variant, distributed_strategy=distributed_strategy, group=group, **kwargs
        )
    with ring_group_of(group) as ring_group:
        measures = isinstance(speeds, str) and speeds == "measured"
        strategy = RingAttentionStrategy(
            block_lens, group, layout, speeds=[1.0] * ring_group.size if measures else speeds
        )
        model = _whole_model(architecture, variant, kwargs)
        check_same_settings(f"{speeds} {block_lens} {layout} {kernel} {transport}", ring_group)
        broadcast_weights(model, ring_group.broadcast)
        if measures:
            strategy = RingAttentionStrategy(
                None, group, layout, speeds=_measured_speeds(model, ring_group, group, kernel)
            )
        return RingModel(model.eval(), strategy, kernel, transport)


def _check_without_ring(strategy: str | None, block_lens: object, speeds: object) -> None:
    """Raise UserError for a strategy that FMS does not have, and for arguments that only a ring reads."""
    if strategy not in FMS_STRATEGIES:
        names = ", ".join(str(name) for name in FMS_STRATEGIES if name)
        raise UserError(f"distributed_strategy={strategy} is unknown; use ring, {names}")
    for name, value in (("block_lens", block_lens), ("speeds", speeds)):
        if value is not None:
            raise UserError(f"{name} goes with distributed_strategy=ring")


def _whole_model(architecture: str, variant: str | None, kwargs: dict[str, Any]) -> nn.Module:
    """Return FMS's model as a whole. Raise UserError for one that would skip a checkpoint's checks."""
    if architecture == "hf_pretrained":
        return from_pretrained(variant, **kwargs)
    if architecture == "hf_configured" or _names_a_checkpoint(kwargs):
        raise UserError(
            f"{architecture} of Hugging Face goes round the checks of a checkpoint; "
            'on a ring use "hf_pretrained"'
        )
    return fms_get_model(architecture, variant, distributed_strategy="none", **kwargs)


def _measured_speeds(
    model: nn.Module, ring_group: RingGroup, group: dist.ProcessGroup | None, kernel: str
) -> list[float]:
    """Return the speed of each rank at the model's attention."""
    attention, weight = first_attention(model), next(model.parameters())
    longest = getattr(getattr(model, "config", None), "max_expected_seq_len", MEASURED_TOKENS)
    return measure_speeds(
        max(min(longest, MEASURED_TOKENS * ring_group.size), ring_group.size),
        num_heads=attention.nheads,
        num_kv_heads=attention.kvheads,
        head_dim=attention.emb_kq_per_head,
        dtype=weight.dtype,
        device=weight.device,
        group=group,
        kernel=kernel,
    )


def _names_a_checkpoint(kwargs: dict[str, Any]) -> bool:
    """Tell whether FMS's own loader would read a Hugging Face folder."""
    folder = kwargs.get("model_path")
    return kwargs.get("source") == "hf" or bool(folder and (Path(folder) / "config.json").is_file())
