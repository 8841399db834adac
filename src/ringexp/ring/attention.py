"""Exact attention over the ring: one call for every kernel."""

from __future__ import annotations

import math

import torch

from ringexp.ring import fused, loop
from ringexp.ring.context import RingContext
from ringexp.ring.reshard import reshard


def ring_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ring: RingContext, softmax_scale: float | None = None
) -> torch.Tensor:
    """Compute exact attention of this rank's queries over the keys and values of all ranks.

    Partial results are merged by online softmax in float32 (Milakov and Gimelshein 2018; Liu et al. 2023).

    Args:
        q: Queries of this rank's positions, [B, Lq, H, D].
        k: Keys, [B, Lkv, Hkv, D], heads not expanded. Lkv is more than Lq where earlier chunks left theirs.
        v: Values, like k.
        ring: The ring of this rank.
        softmax_scale: Multiplies the scores; None means 1/sqrt(D).

    Returns:
        The output [B, Lq, H, D], contiguous, in q's dtype; 0 for padding.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    if not ring.plan.aligned:
        k, v = reshard(torch.stack((k, v)), ring)
    attend = loop.attend if ring.kernel.block_into is None else fused.attend
    output = attend(q, k, v, ring, scale)
    ring.clock.attended()
    return output
