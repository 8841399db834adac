"""Decoding over a cache that stays where prefill left it: partial results go round, not keys/values.

Every rank has the new token's query and the keys/values of its own slots. It attends to those, and the ranks'
results over disjoint keys are merged by their log-sum-exps. One rank, the owner, keeps the new token's keys
and values. All ranks merge in rank order, so they have the same bits. No host waits for a device. Shapes are
the same for every token, and what differs is in device memory, so a CUDA graph can hold the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ringexp.kernels.decode import DecodeKernel, Slots
from ringexp.planning import ring_members
from ringexp.ring.clock import Clock
from ringexp.ring.transport import RingPass, Transport


@dataclass(frozen=True)
class DecodeContext:
    """Everything that one rank needs to decode tokens. Only the content of `slots` differs between tokens.

    tokens: The number of the prompt's tokens per rank, 0 for ranks that are not in the ring.
    """

    tokens: Sequence[int]
    transport: Transport
    kernel: DecodeKernel
    clock: Clock
    slots: Slots


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    decode: DecodeContext,
    softmax_scale: float | None = None,
) -> torch.Tensor:
    """Compute exact attention of one token over the caches of all ranks.

    Args:
        q: The token's query, [B, 1, H, D], the same on all ranks.
        k: The keys of this rank's cache, [B, capacity, Hkv, D], the token's own included.
        v: The values, like k.
        decode: The surroundings of this rank.
        softmax_scale: Multiplies the scores; None means 1/sqrt(D).

    Returns:
        The output [B, 1, H, D] in q's dtype.
    """
    batch, _, heads, dim = q.shape
    kv_heads = k.shape[2]
    scale = 1.0 / math.sqrt(dim) if softmax_scale is None else softmax_scale
    queries = q.reshape(batch, kv_heads, heads // kv_heads, dim)
    parts = decode.kernel.attend(queries, k, v, decode.slots, scale)
    if len(ring_members(decode.tokens)) > 1:
        parts = gather(decode.kernel.merge(parts), decode.tokens, decode.transport, decode.clock)
    return decode.kernel.merge(parts, q.dtype).view(batch, 1, heads, dim)


def gather(x: torch.Tensor, tokens: Sequence[int], transport: Transport, clock: Clock) -> torch.Tensor:
    """Return the x of every member of the ring, stacked in rank order: [members, *x.shape]."""
    members = ring_members(tokens)
    if len(members) == 1:
        return x.unsqueeze(0)
    flat = x.reshape(-1)
    even = pad(flat, (0, 1)) if flat.numel() % 2 else flat
    halves = even.view(2, 1, 1, 1, -1)  # they travel as keys and values would
    lengths = [1 if rank in members else 0 for rank in range(len(tokens))]
    gathered = x.new_empty(len(members), *x.shape)
    for shard in transport.circulate(halves[0], halves[1], RingPass(lengths)):
        with clock.waiting(shard.source):
            received = shard.receive()
        place = members.index(shard.source)
        if shard.source == transport.rank:
            gathered[place] = x
        else:
            assert isinstance(received, torch.Tensor)
            gathered[place] = received.reshape(-1)[: flat.numel()].view(x.shape)
    clock.attended()
    return gathered


def stored(cache: torch.Tensor | None, new: torch.Tensor, filled: int, capacity: int) -> torch.Tensor:
    """Write keys or values into the first free slots of a cache.

    Args:
        cache: [B, slots, Hkv, D]; None or empty: a new one of `capacity` slots, or of as many as are needed.
        new: What is written, [B, L, Hkv, D].
        filled: The number of slots that are filled already.
        capacity: The number of slots of a new cache.

    Returns:
        The cache.
    """
    needed = filled + new.shape[1]
    if cache is None or not cache.numel():
        cache = new.new_empty((new.shape[0], max(needed, capacity), *new.shape[2:]))
    cache[:, filled:needed] = new
    return cache
