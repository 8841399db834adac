"""Rings of devices by their spec sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ringexp.errors import UserError
from ringexp.models.shape import ModelShape
from ringexp.planning import EqualLinks, Link, Links
from ringexp.simulate.hardware import Device, Hardware, node_links
from ringexp.simulate.heads import group_costs, group_links
from ringexp.simulate.rings import KnownSpeeds, Ring


def ring_of_devices(
    devices: Sequence[Device],
    hardware: Hardware,
    model: ModelShape,
    seq_len: int,
    *,
    per_node: int = 8,
    across: str = "ib400",
    link: Link | None = None,
    direct: bool = False,
    heads_over: int = 1,
) -> Ring:
    """Return a ring of devices by their data sheets. `uneven` splits by the sheets' peaks.

    Args:
        devices: the devices, in the order of the ring.
        hardware: the links, by name.
        model: the model's shape.
        seq_len: tokens of the prompt.
        per_node: devices per node.
        across: the name of the link between nodes.
        link: the link of every hop, in place of all others.
        direct: whether each shard is copied from its owner, over the slowest link of one node.
        heads_over: neighbours that share heads and form one rank.

    Raises:
        UserError: such a ring cannot exist.
    """
    nodes = node_links(devices, hardware, model, per_node, across)
    if link:
        of_tokens = link.scaled(model.kv_token_bytes)
        nodes = replace(nodes, within=[of_tokens] * len(devices), across=of_tokens)
    costs = group_costs(devices, hardware, model, heads_over, per_node)
    links: Links = group_links(nodes, heads_over)
    if direct and len(devices) > per_node:
        raise UserError(f"--transport ipc is for one node, which has {per_node} of {len(devices)} devices")
    if direct:
        slowest = max(links.within, key=lambda link: link.time_ms(seq_len))
        links = EqualLinks(slowest, direct=True)
    firsts = devices[::heads_over]
    names = [device.name if heads_over == 1 else f"{heads_over} {device.name}" for device in firsts]
    fastest = max(device.peak_tflops for device in devices)
    percentages = [100 * device.peak_tflops / fastest for device in firsts]
    alone = {device: device.cost(model) for device in set(devices)}
    return Ring(
        names,
        KnownSpeeds(percentages, costs, seq_len),
        links,
        model.layers,
        model.mask,
        [alone[device] for device in devices],
    )
