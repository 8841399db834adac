"""The floating-point operations of attention."""

from __future__ import annotations


def pair_flops(num_heads: int, head_dim: int, batch: int = 1) -> int:
    """Count the operations that one query-key pair takes: 2 * head_dim per head for the score, and the same
    for the value."""
    return 4 * batch * num_heads * head_dim
