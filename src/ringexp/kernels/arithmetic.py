"""Numbers and a division that several kernels need."""

from __future__ import annotations

import math

LN2 = math.log(2)
LOG2E = math.log2(math.e)
"""Kernels compute exponentials to base 2: they multiply scores by LOG2E, and log-sum-exps by LN2."""


def ceil_div(length: int, tile: int) -> int:
    """Return the number of tiles that cover a length."""
    return -(-length // tile)
