"""Cutting a tensor into the parts that ranks hold, and joining them, for any shape and dtype."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ringexp.errors import UserError
from ringexp.planning import Plan
from ringexp.ring.eager import eager
from ringexp.ring.ring_group import RingGroup, ring_group_of


def positions(plan: Plan, rank: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the global positions of the rank's tokens in local order, [L] int64."""
    spans = plan.q_shards[plan.checked_rank(rank)].spans
    runs = [torch.arange(span.start, span.stop, device=device) for span in spans]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.long, device=device)


def shard(x: torch.Tensor, plan: Plan, rank: int, dim: int = 1) -> torch.Tensor:
    """Return the rank's part of x, whose `dim` are the prompt's positions: a contiguous copy."""
    spans = plan.q_shards[plan.checked_rank(rank)].spans
    _check_length(x, plan.seq_len, dim, f"the plan has {plan.seq_len} tokens")
    parts = [x.narrow(dim, span.start, len(span)) for span in spans] or [x.narrow(dim, 0, 0)]
    return torch.cat(parts, dim)


@eager
def unshard(
    local: torch.Tensor, plan: Plan, group: dist.ProcessGroup | None = None, dim: int = 1
) -> torch.Tensor:
    """Join the parts of all ranks into the whole tensor, on each of them. All ranks call it together.

    Args:
        local: This rank's part. All ranks' parts are alike in dtype and in all dimensions but `dim`.
        plan: The plan that says which positions each rank holds.
        group: The process group; None is the default one.
        dim: The dimension of the tokens.
    """
    with ring_group_of(group) as ring_group:
        return _gathered(local, plan, ring_group, dim)


def _gathered(local: torch.Tensor, plan: Plan, ring_group: RingGroup, dim: int) -> torch.Tensor:
    ring_group.check_size(plan.world_size)
    rank, tokens = ring_group.rank, plan.tokens
    _check_length(local, tokens[rank], dim, f"rank {rank} holds {tokens[rank]} tokens of the plan")
    shape = list(local.shape)
    shape[dim] = plan.seq_len
    whole = local.new_empty(shape)
    for source in plan.members:
        shape[dim] = tokens[source]
        part = local.detach().contiguous() if source == rank else local.new_empty(shape)
        ring_group.broadcast(part, source)
        for offset, span in plan.q_shards[source].placed():
            whole.narrow(dim, span.start, len(span)).copy_(part.narrow(dim, offset, len(span)))
    return whole


def _check_length(x: torch.Tensor, length: int, dim: int, why: str) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise UserError(f"dim={dim!r} must be the number of a dimension")
    if not -x.dim() <= dim < x.dim() or x.shape[dim] != length:
        raise UserError(f"{why}, but the tensor {list(x.shape)} does not have that many in dim={dim}")
