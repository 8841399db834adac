"""Head-parallel groups as members of a ring (Ulysses within, ring across).

Jacobs et al. 2023 split heads instead of tokens: before attention each device of a group swaps its tokens'
queries, keys and values for those of all the group's tokens with its own heads, and swaps outputs back after.
The group then is one member of a ring, whose devices each pass on the keys and values of their own heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ringexp.errors import UserError
from ringexp.models.shape import ModelShape
from ringexp.planning import NodeLinks, RankCost
from ringexp.simulate.hardware import Device, Hardware


def group_costs(
    devices: Sequence[Device], hardware: Hardware, model: ModelShape, size: int, per_node: int
) -> list[RankCost]:
    """Return what work costs each group of `size` neighbours, both swaps included.

    Raises UserError where the devices do not make such groups.
    """
    if size > 1 and (len(devices) % size or per_node % size or model.num_kv_heads % size):
        raise UserError(
            f"--heads-over {size} must divide the {len(devices)} devices, the {per_node} of a node and the "
            f"model's {model.num_kv_heads} key/value heads"
        )
    groups = [devices[start : start + size] for start in range(0, len(devices), size)]
    for group in groups:
        if len(set(group)) > 1:
            raise UserError(
                f"--heads-over {size} needs equal neighbours, got {', '.join(d.name for d in group)}"
            )
    made = {device: _group_cost(device, hardware, model, size) for device in set(devices)}
    return [made[group[0]] for group in groups]


def _group_cost(device: Device, hardware: Hardware, model: ModelShape, size: int) -> RankCost:
    cost = device.cost(model)
    if size == 1:
        return cost
    link = hardware.link(device.link)
    heads = 2 * model.num_heads + 2 * model.num_kv_heads  # queries, keys, values, and the output back
    swapped_bytes = model.batch_size * heads * model.head_dim * model.itemsize * (size - 1) / size
    return replace(
        cost,
        fixed_ms=cost.fixed_ms + 2 * link.latency_ms,
        token_ms=(cost.token_ms + link.unit_ms * swapped_bytes) / size,
        pair_ms=cost.pair_ms / size,
        diagonal_ms=cost.diagonal_ms / size,
        hop_token_ms=cost.hop_token_ms / size,
    )


def group_links(links: NodeLinks, size: int) -> NodeLinks:
    """Return the links of a ring of such groups: a shard goes over `size` links at a time."""
    return NodeLinks(
        nodes=links.nodes[::size],
        within=[link.scaled(1 / size) for link in links.within[::size]],
        across=links.across.scaled(1 / size),
    )
