"""One attention layer as a workload: an FMS module, or the ring alone on random queries, keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.distributed as dist
from fms.modules.attention import MultiHeadAttention
from fms.modules.positions import RotaryEmbedding
from torch.nn.functional import scaled_dot_product_attention

from ringexp.config import AttentionModelConfig
from ringexp.models.fms import facts
from ringexp.models.fms.attention_op import ATTN_NAME
from ringexp.models.fms.rotary import fuse_rotary
from ringexp.models.shapes import shape_of
from ringexp.models.workload import LocalInputs, broadcast_weights
from ringexp.planning import MemoryNeed, Plan, attention_token_bytes, ring_token_bytes, rotation_bytes
from ringexp.ring.attention import ring_attention
from ringexp.ring.context import RingContext
from ringexp.ring.groups import broadcast
from ringexp.ring.shards import shard


class AttentionWorkload:
    """One FMS attention module: QKV projection, RoPE, ring, output projection; x is [B, S, E]."""

    num_units = 1
    only_attention = False

    def __init__(self, config: AttentionModelConfig, seq_len: int, device: torch.device, seed: int) -> None:
        self._config = config
        self.causal = config.causal
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = getattr(torch, config.dtype)
        self._device = device
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
    def shape(self) -> str:
        return shape_of(self._config)

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        shape = (self._config.batch_size, seq_len, self._config.emb_dim)
        return _random_inputs(shape, self.dtype, self._device, seed)

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        return self._module(local.x, position_ids=local.positions, attn_name=ATTN_NAME, ring=ring)

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        return lambda: self.forward(local, ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        module = copy.deepcopy(self._module).to(dtype)
        positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        out, _ = module(  # with a cache FMS always knows which axis is which
            x.to(dtype),
            position_ids=positions,
            use_cache=True,
            attn_name="sdpa_causal" if self.causal else "sdpa_bidirectional",
        )
        return out

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor:
        return shard(reference, plan, rank)

    def flops(self, plan: Plan, rank: int) -> float:
        per_token = facts.linear_flops_per_token(self._module)
        per_pair = facts.attention_flops_per_pair(self._module)
        return self._config.batch_size * (per_token * plan.tokens[rank] + per_pair * plan.pairs(rank))

    unit_flops = flops

    @property
    def memory(self) -> MemoryNeed:
        batch, itemsize = self._config.batch_size, self.dtype.itemsize
        x_bytes = self._config.emb_dim * itemsize
        attention = attention_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, itemsize)
        return MemoryNeed(
            fixed=facts.weight_bytes(self._module),
            prompt_token=batch * x_bytes + rotation_bytes(self.head_dim),
            own_token=batch * (2 * x_bytes + attention),  # this iteration's input, the last one's output
            kv_token=2 * batch * self.num_kv_heads * self.head_dim * itemsize,
        )


class BareAttentionWorkload:
    """Ring attention alone; x is [B, S, H + 2 Hkv, D]: the heads of queries, keys and values."""

    num_units = 1
    only_attention = True

    def __init__(self, config: AttentionModelConfig, device: torch.device) -> None:
        self._config = config
        self.causal = config.causal
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = getattr(torch, config.dtype)
        self._device = device

    @property
    def shape(self) -> str:
        return shape_of(self._config)

    def inputs(self, seq_len: int, seed: int) -> torch.Tensor:
        heads = self.num_heads + 2 * self.num_kv_heads
        shape = (self._config.batch_size, seq_len, heads, self.head_dim)
        return _random_inputs(shape, self.dtype, self._device, seed)

    def heads_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries [B, S, H, D] and the keys and values [B, S, Hkv, D] in `x`."""
        q, k, v = x.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        return q, k, v

    def forward(self, local: LocalInputs, ring: RingContext) -> torch.Tensor:
        return ring_attention(*self.heads_of(local.x), ring)

    def unit(self, local: LocalInputs, ring: RingContext) -> Callable[[], torch.Tensor]:
        return lambda: self.forward(local, ring)

    def reference(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        group = self.num_heads // self.num_kv_heads
        q, k, v = (part.transpose(1, 2).to(dtype) for part in self.heads_of(x))
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        return scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2)

    def part_of(self, reference: torch.Tensor, plan: Plan, rank: int) -> torch.Tensor:
        return shard(reference, plan, rank)

    def flops(self, plan: Plan, rank: int) -> float:
        return 4.0 * self._config.batch_size * self.num_heads * self.head_dim * plan.pairs(rank)

    unit_flops = flops

    @property
    def memory(self) -> MemoryNeed:
        batch, itemsize = self._config.batch_size, self.dtype.itemsize
        x_bytes = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * itemsize
        last_output = self.num_heads * self.head_dim * itemsize
        ring = ring_token_bytes(self.num_heads, self.num_kv_heads, self.head_dim, itemsize)
        return MemoryNeed(
            fixed=0,
            prompt_token=batch * x_bytes,
            own_token=batch * (x_bytes + last_output + ring),
            kv_token=2 * batch * self.num_kv_heads * self.head_dim * itemsize,
        )


def _random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor:
    """Standard normal numbers, rank 0's on every rank."""
    x = torch.empty(shape, device=device, dtype=dtype)
    if not dist.is_initialized() or dist.get_rank() == 0:
        x.normal_(generator=torch.Generator(device).manual_seed(seed))
    if dist.is_initialized():
        broadcast(x, 0)
    return x
