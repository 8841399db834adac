"""Decoding over a cache that lies where prefill left it: here partial results go round, not keys/values.

Every rank has the new token's query and the keys/values of its own slots. It attends to those, and the ranks'
results over disjoint keys are merged by their log-sum-exps. One rank, the owner, keeps the token's own keys
and values. Results are merged in rank order, so all ranks have the same bits; no host waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ringexp.kernels import Kernel
from ringexp.planning import ring_members
from ringexp.ring.clock import Clock
from ringexp.ring.prefill import runs
from ringexp.ring.transport import Transport

GROWTH = 256
"""Slots added at once to a cache that is full."""


@dataclass(frozen=True)
class DecodeContext:
    """What one rank needs to decode one token.

    held: slots each rank's cache has filled before it, 0 for ranks that are not in the ring. owner: the rank
    that keeps it. firsts: of each sequence the first slot of this rank's cache that is no padding.
    """

    rank: int
    held: Sequence[int]
    owner: int
    transport: Transport
    kernel: Kernel
    clock: Clock
    firsts: Sequence[int]


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decode: DecodeContext,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """Exact attention of one token over the caches of all ranks.

    q: [B, 1, H, D], the same on all ranks. k and v: [B, L, Hkv, D], this rank's slots, the new one if it owns
    it. Returns [B, 1, H, D] in q's dtype. `softmax_scale` as in `ring_attention`.
    """
    batch, _, heads, dim = q.shape
    kv_heads = k.shape[2]
    scale = 1.0 / math.sqrt(dim) if softmax_scale is None else softmax_scale
    # The token sees all keys, so the query heads of one KV head can be the rows of one full block.
    queries = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    partial = queries.new_zeros((*queries.shape[:3], dim + 1), dtype=torch.float32)  # out, lse
    partial[..., -1] = float("-inf")
    for sequence, first in runs(decode.firsts):
        if first < k.shape[1]:
            keys, values = (x[sequence, first:].transpose(1, 2) for x in (k, v))
            out, lse = decode.kernel.block(queries[sequence], keys, values, False, scale)
            partial[sequence, ..., :-1] = out
            partial[sequence, ..., -1] = lse
    partials = gather(partial, decode.held, decode.transport, decode.clock)
    weights = partials[..., -1:].softmax(0)
    merged = (weights * partials[..., :-1]).sum(0)
    return merged.to(q.dtype).view(batch, 1, heads, dim)


def gather(x: torch.Tensor, held: Sequence[int], transport: Transport, clock: Clock) -> torch.Tensor:
    """The x of every member of the ring, stacked in rank order, on each of them: [members, *x.shape]."""
    flat = x.reshape(-1)
    halves = pad(flat, (0, flat.numel() % 2)).view(2, 1, 1, 1, -1)  # they travel as keys and values would
    members = ring_members(held)
    lengths = [1 if rank in members else 0 for rank in range(len(held))]
    found = {}
    for source, arrival in transport.circulate(halves[0], halves[1], lengths, None):
        with clock.waiting(source):
            shard = arrival()
        own = isinstance(shard, tuple)
        found[source] = x if own else shard.reshape(-1)[: flat.numel()].view(x.shape)
    clock.attended()
    return torch.stack([found[member] for member in members])


def stored(cache: torch.Tensor | None, new: torch.Tensor, held: int, capacity: int) -> torch.Tensor:
    """The cache [B, slots, Hkv, D] with `new` [B, L, Hkv, D] behind the `held` slots that are filled.

    Without a cache, one of `capacity` slots is made; one that is too small is replaced by a larger one.
    """
    needed = held + new.shape[1]
    if cache is None or not cache.numel():
        cache = new.new_empty((new.shape[0], max(needed, capacity), *new.shape[2:]))
    elif cache.shape[1] < needed:
        larger = cache.new_empty((cache.shape[0], needed + GROWTH, *cache.shape[2:]))
        larger[:, :held] = cache[:, :held]
        cache = larger
    cache[:, held:needed] = new
    return cache
