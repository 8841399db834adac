"""FMS's rotary embedding, computed by our kernel where that can run.

Nothing in FMS is patched: a module gets its position encoder from outside, and here it gets another one.
"""

from __future__ import annotations

from typing import Any

import torch
from fms.modules.positions import PositionEncoder, RotaryEmbedding
from torch import nn

from ringexp.kernels import triton_block
from ringexp.models.fms import facts

HALF = (torch.float16, torch.bfloat16)


class FusedRotaryEmbedding(PositionEncoder):
    """The same as the `RotaryEmbedding` that it wraps and that computes float32, CPU and special scalings."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        super().__init__()
        self._rotary = rotary

    def adjusted_qk(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past_kv_state: tuple[torch.Tensor | None, torch.Tensor | None] | None = None,
        use_cache: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return q and k [B, L, H, D] turned by position_ids [B, L]."""
        rotary = self._rotary
        if position_ids is None or position_ids.shape != q.shape[:2] or not self._fits(q):
            return rotary.adjusted_qk(q, k, position_ids, past_kv_state, use_cache)
        from ringexp.kernels.triton_rope import rotate

        longest: Any = position_ids[:, 0].max() + q.shape[1]  # on the device, as FMS has it
        alpha = rotary.compute_freqs_cis(q.device, longest)
        table = rotary.cached_freqs[q.device.index][alpha]
        return rotate(q, table, position_ids), rotate(k, table, position_ids)

    def _fits(self, q: torch.Tensor) -> bool:
        whole = self._rotary.partial_rope == 1.0 and self._rotary.rope_type != "yarn"
        return whole and q.is_cuda and q.dtype in HALF and triton_block.available(q.device)


def fuse_rotary(module: nn.Module) -> None:
    """Give every attention in `module` the fused position encoder."""
    fused: dict[RotaryEmbedding, FusedRotaryEmbedding] = {}
    for attention in facts.attentions(module):
        rotary = attention.position_encoder
        if type(rotary) is RotaryEmbedding:
            attention.position_encoder = fused.setdefault(rotary, FusedRotaryEmbedding(rotary))
