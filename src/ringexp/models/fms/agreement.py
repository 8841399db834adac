"""The ranks of a ring model keep in step: they pass the same tokens, and they draw the same ones.

Every rank calls the model with the whole prompt and gets the whole result, so each could go on with a token
of its own. Drawing is therefore made alike beforehand, and tokens are compared when they come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

from ringexp.errors import UserError
from ringexp.ring.ring_group import RingGroup

_PRIME = 2_654_435_761


def check_same_tokens(ids: torch.Tensor, starts: Sequence[int], ring_group: RingGroup) -> None:
    """Raise UserError on every rank of the group if one of them passes other tokens than the others.

    Args:
        ids: token ids [B, S] of this rank.
        starts: the first slot of each sequence that is no padding, as this rank sees it.
        ring_group: the ranks that compare. All of them call this together.
    """
    if ring_group.size == 1:
        return
    place = ring_group.place(ids.device)
    summary = torch.tensor([ids.shape[0], ids.shape[-1], hash((*ids.shape, *starts)) % 2**62], device=place)
    summary = torch.cat([summary, _checksum(ids).to(place)])
    extremes = torch.cat([summary, -summary])
    ring_group.all_reduce(extremes, dist.ReduceOp.MAX)
    most, least = extremes.view(2, -1).tolist()
    if any(high != -low for high, low in zip(most, least, strict=True)):
        raise UserError(
            f"the ranks pass different tokens, this one {list(ids.shape)}; every rank must pass the same "
            "whole prompt, and after that the same token (draw it on one rank and broadcast it)"
        )


def _checksum(ids: torch.Tensor) -> torch.Tensor:
    """Return a number [1] that other ids of this shape have only by chance.

    Each place has a weight of its own without a pattern. Overflow wraps around, on all ranks alike.
    """
    weights = _PRIME * torch.arange(1, ids.numel() + 1, device=ids.device)
    for shift in (15, 13):
        weights = (weights ^ (weights >> shift)) * _PRIME
    return (ids.flatten().long() * (weights | 1)).sum().remainder(2**62).view(1)


def share_random_state(device: torch.device, ring_group: RingGroup) -> None:
    """Give every rank of the group the state of rank 0's default random generators.

    What ranks then draw from equal logits is equal, whatever draws it: torch.multinomial in FMS's `generate`
    has no generator that could be passed in.

    Args:
        device: where the logits are. Its generator is shared, and the CPU's.
        ring_group: the ranks that draw. All of them call this together.
    """
    if ring_group.size == 1:
        return
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    shared = torch.cat(states).to(ring_group.place(device))
    ring_group.broadcast(shared, 0)
    host, *on_device = shared.cpu().split([len(state) for state in states])
    torch.set_rng_state(host.clone())
    for state in on_device:
        torch.cuda.set_rng_state(state.clone(), device)


def check_same_settings(settings: str, ring_group: RingGroup) -> None:
    """Raise UserError on every rank of the group unless all of them have the same settings of the model."""
    if ring_group.size == 1:
        return
    number = int.from_bytes(hashlib.sha256(settings.encode()).digest()[:7], "big")
    extremes = torch.tensor([number, -number])
    extremes = extremes.to(ring_group.place(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    ring_group.all_reduce(extremes, dist.ReduceOp.MAX)
    if int(extremes[0]) != -int(extremes[1]):
        raise UserError(
            "the ranks pass different speeds, block_lens, layout, kernel or transport to get_model"
        )
