"""The memory that a plan takes per rank, and the most tokens that a rank's memory therefore holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringexp.errors import UserError
from ringexp.planning.plan import Plan

GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a rank needs.

    Attributes:
        fixed: once, for the weights.
        prompt_token: per token of the prompt, on every rank.
        own_token: per token of the rank's own, at the peak of one layer.
        kv_token: per token of the other ranks, whose keys and values may all be there at a time.
    """

    fixed: int
    prompt_token: int
    own_token: int
    kv_token: int

    def bytes(self, tokens: int, seq_len: int) -> int:
        """Return the peak of a rank with `tokens` of seq_len tokens. A rank with none is not in the ring."""
        always = self.fixed + self.prompt_token * seq_len
        return always + (self.own_token * tokens + self.kv_token * (seq_len - tokens) if tokens else 0)

    def max_tokens(self, limit_bytes: float, seq_len: int) -> int:
        """Return the most tokens, of seq_len, that fit; 0 if not even one does."""
        left = limit_bytes - self.fixed - (self.prompt_token + self.kv_token) * seq_len
        token_bytes = self.own_token - self.kv_token
        return int(min(max(left // token_bytes, 0), seq_len))


def longest_context(need: MemoryNeed, limits: Sequence[float], shares: Sequence[float]) -> int:
    """Return the most tokens that fit if rank i holds the part shares[i] of them and has limits[i] bytes.

    One device alone is ([limit], [1.0]).
    """
    fits = []
    for limit, share in zip(limits, shares, strict=True):
        token_bytes = need.prompt_token + share * need.own_token + (1 - share) * need.kv_token
        if share:
            fits.append((limit - need.fixed) / token_bytes)
    return max(0, int(min(fits)))


def attention_token_bytes(num_heads: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes per own token at the peak of one FMS attention layer over the ring, without its input.

    The peak is in one of two places. RoPE: the projections, the rotations of the token, queries and keys in
    float32 unless they are already, the queries' products (twice their size) and sums. Ring: the projections,
    rotated queries and keys, and what the ring itself needs. Less where our kernel does RoPE.
    """
    queries, keys = num_heads * head_dim, num_kv_heads * head_dim
    projections = (queries + 2 * keys) * itemsize
    in_float32 = 4 * (queries + keys) if itemsize < 4 else 0
    rope = projections + rotation_bytes(head_dim) + in_float32 + 3 * 4 * queries
    ring = ring_token_bytes(num_heads, num_kv_heads, head_dim, itemsize)
    return max(rope, projections + (queries + keys) * itemsize + ring)


def ring_token_bytes(num_heads: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes per own token in the ring, without its queries, keys and values.

    The own shard to be sent; float32 output, one block's output and their difference, with two log-sum-exps.
    A kernel that merges by itself needs less.
    """
    shard = 2 * num_kv_heads * head_dim * itemsize
    return shard + (4 + itemsize + 4) * num_heads * head_dim + 2 * 4 * num_heads


def rotation_bytes(head_dim: int) -> int:
    """Return RoPE's bytes per position: a 2 x 2 rotation in float32 for every two elements of a head."""
    return 8 * head_dim


def check_memory(plan: Plan, max_tokens: list[int | None]) -> str | None:
    """Describe how a plan gives a rank more tokens than its memory holds; return None if it does not."""
    for rank, (count, most) in enumerate(zip(plan.tokens, max_tokens, strict=True)):
        if most is not None and count > most:
            return (
                f"rank {rank} gets {count} tokens, and its memory holds {most} by memory_limit_gib; "
                f"partitioner=balanced respects that"
            )
    return None


def validate_memory_limit(limit: object, world_size: int) -> None:
    """Raise UserError unless `memory_limit_gib` is null, a number above 0, or one such number per rank."""
    limits = limit if isinstance(limit, list | tuple) else [limit] * world_size
    positive = [isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in limits]
    if limit is not None and not (len(limits) == world_size and all(positive)):
        raise UserError(
            f"memory_limit_gib={limit}: give one number above 0 for all ranks, a list of {world_size}, one "
            "per rank, or null for what is free"
        )
