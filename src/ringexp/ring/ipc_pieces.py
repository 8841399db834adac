"""Cutting a shard into pieces of heads, so that its first heads arrive long before its last."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ringexp.ring.ipc_memory import MAX_PIECES

MAX_COPIES = 8
COPY_ROW_BYTES = 2048
"""The shortest row of a copy, one token's keys or values: copy engines are slower with shorter rows."""
COPY_BYTES = 1 << 20
"""The least bytes of keys, or of values, in a copy: each copy costs some us."""


class Pieces(NamedTuple):
    """The cut of a shard. All pieces have equally many heads, and all copies bring equally many pieces."""

    number: int
    copies: int


WHOLE = Pieces(1, 1)


def pieces_of(k: torch.Tensor, tokens: int) -> Pieces:
    """Return the pieces of a shard of `tokens` tokens, for the model of the keys k [B, L, Hkv, D].

    Pieces cost next to nothing, so there are many.
    """
    heads, row_bytes = k.shape[2], k[0, 0].nbytes
    most = min(MAX_COPIES, row_bytes // COPY_ROW_BYTES, k.shape[0] * tokens * row_bytes // COPY_BYTES)
    copies = next(count for count in range(max(most, 1), 0, -1) if heads % count == 0)
    most = min(MAX_PIECES, heads)
    return Pieces(next(n for n in range(most, 0, -1) if heads % n == n % copies == 0), copies)


def shard_bytes(k: torch.Tensor, tokens: int) -> int:
    """Return the bytes of the keys and values of `tokens` tokens, for the model of the keys k."""
    return 2 * k.nbytes // k.shape[1] * tokens
