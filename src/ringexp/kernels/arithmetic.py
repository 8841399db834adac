"""Numbers and a division that several kernels need."""

from __future__ import annotations

import math

LN2 = math.log(2)
LOG2E = math.log2(math.e)
"""Kernels compute exponentials to base 2: scores are multiplied with this, log-sum-exps with LN2."""


def ceil_div(length: int, tile: int) -> int:
    """Return how many tiles cover a length."""
    return -(-length // tile)
