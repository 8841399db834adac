"""Decisions of IPC: how a shard is cut, and which memory it keeps."""

import pytest
import torch

from ringexp.ring.ipc_pieces import pieces_of
from support.ring_ranks import slots_over_stand_ins


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "head_dim", "pieces", "copies"),
    [
        (8192, 32, 128, 32, 4),  # rows of 2 KiB
        (8192, 8, 128, 8, 1),  # a token's keys are no longer than that
        (8192, 40, 128, 20, 5),
        (8192, 128, 128, 32, 8),  # no more
        (256, 32, 128, 32, 2),  # copies of 1 MiB
        (1, 32, 128, 32, 1),
        (8192, 7, 512, 7, 1),  # whole heads, of each copy as many
        (8192, 34, 128, 2, 2),  # and whole pieces
    ],
)
def test_copies_are_neither_narrow_nor_short(tokens, kv_heads, head_dim, pieces, copies):
    k = torch.empty(1, 3, kv_heads, head_dim, dtype=torch.bfloat16)
    assert pieces_of(k, tokens) == (pieces, copies)


@pytest.mark.parametrize(("devices", "slots"), [(1, 1), (2, 2), (3, 2)])
def test_shards_have_slots_besides_where_gpus_differ(pools, devices, slots):
    assert pools[3].run(slots_over_stand_ins, devices) == [slots] * 3
