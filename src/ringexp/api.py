"""The public functions for other people's code: attention over a prompt that ranks of a group share.

    speeds = ringexp.measure_speeds(seq_len, num_heads=32, num_kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    plan = ringexp.plan(speeds, seq_len)
    out = ringexp.ring_attention(q, k, v, plan)     # every rank gives its part of q, k and v

All ranks of the group make the same calls in the same order. `docs/api.md` has the contracts.
"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist

from ringexp.calibration.group_speeds import measure_speeds
from ringexp.errors import UserError
from ringexp.kernels import get_kernel
from ringexp.planning import Plan
from ringexp.ring import attention
from ringexp.ring.clock import NoClock
from ringexp.ring.context import RingContext
from ringexp.ring.eager import eager
from ringexp.ring.groups import current, transport_of
from ringexp.ring.ring_group import ring_group_of
from ringexp.ring.tensors import check_tensors

__all__ = ["measure_speeds", "ring_attention"]

_kernel = functools.cache(get_kernel)  # it looks for packages on disk, which takes longer than a short block


@eager
def ring_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    group: dist.ProcessGroup | None = None,
    *,
    softmax_scale: float | None = None,
    kernel: str = "auto",
    transport: str = "auto",
) -> torch.Tensor:
    """Compute exact attention of this rank's queries over the keys and values of all ranks of the group.

    All ranks of the group call it; a rank without tokens gives empty tensors and gets an empty one. Forward
    only.

    Args:
        q: queries [B, Lq, H, D] at the positions that the plan gives this rank.
        k: keys [B, Lkv, Hkv, D], of q's dtype and device; H is a multiple of Hkv and heads are not expanded.
        v: values, as the keys.
        plan: who holds which positions, equal on all ranks.
        group: the ranks; None is the default group.
        softmax_scale: multiplies the scores; None is 1/sqrt(D).
        kernel: a name of `ringexp.choices.KERNELS`; auto is the kernel that is expected to be the fastest.
        transport: a name of `ringexp.choices.TRANSPORTS`; auto is what the group's backend can do.

    Returns:
        The output [B, Lq, H, D], contiguous.

    Raises:
        UserError: for tensors that do not fit the plan or need a gradient.
    """
    with ring_group_of(group) as ring_group:
        ring_group.check_size(plan.world_size)
        check_tensors(q, k, v, plan, ring_group.rank)
        if softmax_scale is not None and not softmax_scale > 0:
            raise UserError(f"softmax_scale={softmax_scale} must be above 0, or None for 1/sqrt(head_dim)")
        return _attend(q, k, v, plan, group, ring_group.rank, softmax_scale, kernel, transport)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    group: dist.ProcessGroup | None,
    rank: int,
    softmax_scale: float | None,
    kernel: str,
    transport: str,
) -> torch.Tensor:
    """Compute `ring_attention` of tensors that have been checked against the plan."""
    chosen = _kernel(kernel, q.device, q.dtype, q.shape[3])
    with current(q.device):
        carrier = transport_of(group, q.device, transport)
        batch, _, kv_heads, head_dim = k.shape
        carrier.memory.reserve(2 * batch * max(plan.kv_tokens) * kv_heads * head_dim * k.element_size())
        if rank not in plan.members:
            return q.new_empty(q.shape)
        ring = RingContext(plan, rank, carrier, chosen, NoClock())
        q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
        out = attention.ring_attention(q, k, v, ring, softmax_scale)
        carrier.transfers.take()  # nobody reads the times of hops
    return out
