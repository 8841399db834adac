"""What IPC decides by itself: in how many pieces a shard is sent."""

import pytest
import torch

from ringexp.ring.ipc import _pieces


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "head_dim", "pieces"),
    [
        (8192, 32, 128, 4),  # rows of 2 KiB
        (8192, 8, 128, 1),  # a token's keys are no longer than that
        (8192, 40, 128, 5),
        (8192, 128, 128, 8),  # no more
        (256, 32, 128, 2),  # copies of 1 MiB
        (1, 32, 128, 1),
        (8192, 7, 512, 1),  # whole heads, of each piece as many
    ],
)
def test_pieces_are_neither_narrow_nor_short(tokens, kv_heads, head_dim, pieces):
    assert _pieces(torch.empty(1, 3, kv_heads, head_dim, dtype=torch.bfloat16), tokens) == pieces
