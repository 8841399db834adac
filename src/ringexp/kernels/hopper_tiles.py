"""Divide the work of a Hopper launch into tiles, bands of heads, and programs that send."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ringexp.kernels.arithmetic import ceil_div
from ringexp.kernels.contract import KeySpan
from ringexp.planning import BlockShape
from ringexp.planning.flops import pair_flops

ROWS = 64
"""Query rows per consumer warpgroup: the rows of one wgmma."""
BLOCK_N = 128
"""Keys per tile."""
RUN = 8
"""The most tiles that a courier sends at a time."""
MOST_COURIERS = 48
"""The most programs that send. More would slow the loads, since an SM's stores delay its loads."""
REGISTERS = {2: (240, 24), 3: (160, 32)}
"""By consumer warpgroups: the registers per thread of a consumer and of the producer, 65,536 in all."""

_L2_BYTES = 32 << 20  # keys and values that stay in the L2 cache for query tiles of several heads
_FEWEST_COURIERS = 16
_COURIER_GBPS = 9.0
_SM_TFLOPS = 5.0
_SENDING_SHARE = 0.5  # of a launch's time; a smaller share would keep more SMs busy with sending
_THIRD_CONSUMER = 1.1  # speedup by a third consumer, measured at 16,384 tokens


def num_consumers(q_len: int, heads: int, head_dim: int, staggered: bool, num_sms: int) -> int:
    """Return the number of warpgroups that compute, each on ROWS query rows of a tile.

    At head_dim 64 a third warpgroup hides more of the exponentials and makes full tiles faster. But larger
    tiles may leave more SMs idle at the end.

    Args:
        q_len: query rows.
        heads: query heads, over the batch.
        head_dim: 64 or 128.
        staggered: whether tiles see different keys, or keys are sent. Tiles then have the rows of two
            consumers, since these divide the keys of a tile.
        num_sms: streaming multiprocessors of the GPU.
    """
    if head_dim != 64 or staggered:
        return 2

    def busy(consumers: int) -> float:
        """Return the share of all SMs' time that is spent on existing rows."""
        rows = consumers * ROWS
        waves = ceil_div(ceil_div(q_len, rows) * heads, num_sms)
        return q_len * heads / (waves * num_sms * rows)

    return 3 if _THIRD_CONSUMER * busy(3) > busy(2) else 2


def band_of_heads(heads: int, group: int, kv_bytes: int) -> int:
    """Return the number of heads whose tiles alternate: those whose keys fit the L2 cache. It divides
    `heads`.

    Args:
        heads: query heads, over the batch.
        group: query heads that share keys and values.
        kv_bytes: bytes of the keys and values of one group.
    """
    most = max(_L2_BYTES // kv_bytes, 1) * group
    return max(band for band in range(1, heads + 1) if heads % band == 0 and band <= most)


def num_couriers(sent_bytes: int, computing_ms: float) -> int:
    """Return the number of programs that send after the first runs: few, but enough to finish early.

    Args:
        sent_bytes: bytes that go to all destinations.
        computing_ms: the time that the launch computes.
    """
    sending_ms = sent_bytes / _COURIER_GBPS / 1e6
    couriers = math.ceil(sending_ms / (_SENDING_SHARE * computing_ms))
    return min(max(couriers, _FEWEST_COURIERS), MOST_COURIERS)


def computing_ms(q_shape: Sequence[int], spans: Sequence[KeySpan], shape: BlockShape, num_sms: int) -> float:
    """Estimate the time in ms that a launch computes, for queries [B, H, Lq, D]."""
    batch, num_heads, q_len, head_dim = q_shape
    pairs = sum((q_len - span.from_row) * span.k.shape[2] for span in spans)
    if shape is BlockShape.CAUSAL:
        pairs -= q_len * (q_len - 1) / 2
    return pair_flops(num_heads, head_dim, batch) * pairs / (_SM_TFLOPS * num_sms) / 1e9
