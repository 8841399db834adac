"""One attention layer as a workload: an FMS module, or the ring alone on random queries, keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding
from torch.nn.functional import scaled_dot_product_attention

from ringexp.config import AttentionModelConfig
from ringexp.models.attention.model import AttentionModel
from ringexp.models.fms import facts
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.rotary import fuse_rotary
from ringexp.models.inputs import LocalInputs
from ringexp.models.weights import broadcast_weights
from ringexp.planning import MemoryNeed, Plan
from ringexp.ring.attention import ring_attention
from ringexp.ring.context import RingContext
from ringexp.ring.groups import broadcast
from ringexp.ring.shards import shard


class AttentionWorkload:
    """One FMS attention module: QKV projection, RoPE, ring, output projection; x is [B, S, E]."""

    text_model = None

    def __init__(self, config: AttentionModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        model = AttentionModel(config)
        self._config, self._device = config, device
        self.shape, self.speed_key = model.shape, model.speed_key
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        torch.manual_seed(seed)
        module = MultiHeadAttention(
            config.emb_dim,
            config.head_dim,
            config.head_dim,
            config.num_heads,
            config.num_kv_heads,
            position_encoder=RotaryEmbedding(config.head_dim, max_seq_len=seq_len),
        )
        module.reset_parameters()
        fuse_rotary(module)
        self._module = module.to(device, self.dtype).eval()
        broadcast_weights(self._module)

    @property
    def memory(self) -> MemoryNeed:
        return replace(self.shape.memory, fixed=facts.weight_bytes(self._module))

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        """Return random hidden states [B, S, E]."""
        shape = (self._config.batch_size, seq_len, self._config.emb_dim)
        return _random_inputs(shape, self.dtype, self._device, seed)

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        """Return the module's output [B, L, E] for this rank's tokens."""
        return self._module(local.x, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        """Return `forward`, the module's only layer."""
        return lambda: self.forward(local, ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Compute the module's output [B, S, E] with FMS's own attention."""
        module = copy.deepcopy(self._module).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        out, _ = module(  # with a cache FMS always knows which axis is which
            x.to(dtype),
            position_ids=positions,
            use_cache=True,
            attn_name="sdpa_causal" if self.shape.mask.is_causal else "sdpa_bidirectional",
        )
        return out

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor:
        """Return the rank's tokens of the reference."""
        return shard(reference, plan, rank)

    def flops(self, plan: Plan, rank: int) -> float:
        """Count the operations of the module on one rank."""
        return self.shape.layer_flops(plan, rank)


class BareAttentionWorkload:
    """Ring attention alone; x is [B, S, H + 2 Hkv, D]: the heads of queries, keys and values."""

    text_model = None

    def __init__(self, config: AttentionModelConfig, device: torch.device) -> None:
        model = AttentionModel(config)
        self.shape, self.speed_key, self.memory = model.shape, model.speed_key, model.shape.memory
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._device = device

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        """Return random queries, keys and values [B, S, H + 2 Hkv, D]."""
        heads = self.shape.num_heads + 2 * self.shape.num_kv_heads
        shape = (self.shape.batch_size, seq_len, heads, self.shape.head_dim)
        return _random_inputs(shape, self.dtype, self._device, seed)

    def heads_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries [B, S, H, D] and the keys and values [B, S, Hkv, D] in `x`."""
        q, k, v = x.split([self.shape.num_heads, self.shape.num_kv_heads, self.shape.num_kv_heads], dim=2)
        return q, k, v

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        """Return the attention output [B, L, H, D] of this rank's queries."""
        return ring_attention(*self.heads_of(local.x), ring)

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        """Return `forward`, the only layer."""
        return lambda: self.forward(local, ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Compute the attention output [B, S, H, D] with torch's own attention."""
        group = self.shape.num_heads // self.shape.num_kv_heads
        q, k, v = (part.transpose(1, 2).to(dtype) for part in self.heads_of(x))
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=self.shape.mask.is_causal).transpose(1, 2)

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor:
        """Return the rank's tokens of the reference."""
        return shard(reference, plan, rank)

    def flops(self, plan: Plan, rank: int) -> float:
        """Count the operations of attention on one rank."""
        return self.shape.layer_flops(plan, rank)


def build(
    config: AttentionModelConfig, seq_len: int, device: torch.device, seed: int
) -> AttentionWorkload | BareAttentionWorkload:
    """Build the module, or the bare ring, as `registry.build` says."""
    if config.projections:
        return AttentionWorkload(config, seq_len, device, seed)
    return BareAttentionWorkload(config, device)


def _random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor:
    """Return standard normal numbers, rank 0's on every rank."""
    x = torch.empty(shape, device=device, dtype=dtype)
    if not dist.is_initialized() or dist.get_rank() == 0:
        x.normal_(generator=torch.Generator(device).manual_seed(seed))
    if dist.is_initialized():
        broadcast(x, 0)
    return x
