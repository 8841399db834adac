"""Spec sheets of devices and links (hardware.yaml), and the costs of work and hops that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import TypeVar

from ringexp.choices import did_you_mean
from ringexp.errors import UserError
from ringexp.models.shape import ModelShape
from ringexp.planning import Link, NodeLinks, RankCost
from ringexp.stored import an_object

T = TypeVar("T")

MOST_DEVICES = 65_536
SHIPPED = Path(__file__).with_name("hardware.yaml")


@dataclass(frozen=True)
class Device:
    """A device as it is: what it reaches on long blocks, and what is paid however short they are."""

    name: str
    peak_tflops: float
    attention_tflops: float
    causal_tflops: float
    linear_tflops: float
    memory_gbps: float
    memory_gb: float
    layer_us: float
    hop_us: float
    link: str

    def cost(self, model: ModelShape) -> RankCost:
        """Return the cost of one layer. Raises UserError for a model that is not in 16 bits."""
        if model.itemsize != 2:
            raise UserError("spec sheets are of 16-bit models; simulate others with --costs or --runs")
        pair_ms = model.pair_flops / self.attention_tflops / 1e9
        return RankCost(
            fixed_ms=self.layer_us / 1e3 + model.layer_parameters * model.itemsize / self.memory_gbps / 1e6,
            token_ms=model.token_flops / self.linear_tflops / 1e9,
            pair_ms=pair_ms,
            diagonal_ms=model.pair_flops / self.causal_tflops / 1e9 - pair_ms,
            hop_ms=self.hop_us / 1e3,
            hop_token_ms=model.merged_token_bytes / self.memory_gbps / 1e6,
        )


@dataclass(frozen=True)
class Hardware:
    """All devices and links, by name."""

    devices: Mapping[str, Device]
    links: Mapping[str, Link]

    def ring(self, devices: str) -> list[Device]:
        """Parse `4xH100,A100` to five devices in ring order. Raises UserError for another text."""
        ring_devices: list[Device] = []
        for part in devices.split(","):
            match = re.fullmatch(r"(?:(\d+)x)?(.+)", part.strip())
            count = int(match[1] or 1) if match and len(match[1] or "") < 9 else 0
            if not match or not count:
                raise UserError(f"--devices {devices}: {part!r} is no COUNTxNAME, such as 4xH100")
            if len(ring_devices) + count > MOST_DEVICES:
                raise UserError(f"--devices {devices}: a ring of more than {MOST_DEVICES} is not simulated")
            ring_devices += [_known("device", match[2], self.devices)] * count
        return ring_devices

    def link(self, name: str) -> Link:
        return _known("link", name, self.links)


def load_hardware(extra: Path | None = None) -> Hardware:
    """Load the shipped spec sheets, and those of a file of the same form, which come first.

    Raises UserError for a file that is no such sheet.
    """
    devices, links = _read(SHIPPED)
    if extra:
        more_devices, more_links = _read(extra)
        devices, links = devices | more_devices, links | more_links
    for device in devices.values():
        _known("link", device.link, links)
    return Hardware(devices, links)


def node_links(
    devices: Sequence[Device], hardware: Hardware, model: ModelShape, per_node: int, across: str
) -> NodeLinks:
    """Return the links of nodes that have `per_node` devices each, in the order of the ring."""
    within = {device: hardware.link(device.link).scaled(model.kv_token_bytes) for device in set(devices)}
    return NodeLinks(
        nodes=[rank // per_node for rank in range(len(devices))],
        within=[within[device] for device in devices],
        across=hardware.link(across).scaled(model.kv_token_bytes),
    )


@cache
def _read(path: Path) -> tuple[dict[str, Device], dict[str, Link]]:
    from yaml import YAMLError, safe_load

    try:
        sheet = safe_load(path.read_text(encoding="utf-8")) or {}
        devices = {name: _device(name, given) for name, given in (sheet.get("devices") or {}).items()}
        links = {name: _link(given) for name, given in (sheet.get("links") or {}).items()}
    except OSError as error:
        raise UserError(f"--hardware {path} cannot be read: {error.strerror}") from error
    except (
        YAMLError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"--hardware {path}: {reason}; {SHIPPED} shows the form") from error
    return devices, links


def _device(name: str, given: Mapping[str, object]) -> Device:
    sheet, fraction = an_object(given["datasheet"], "datasheet"), an_object(given["fraction"], "fraction")
    peak = _positive(sheet["bf16_tflops"])
    return Device(
        name=str(name),
        peak_tflops=peak,
        attention_tflops=peak * _positive(fraction["attention"]),
        causal_tflops=peak * min(_positive(fraction["causal"]), _positive(fraction["attention"])),
        linear_tflops=peak * _positive(fraction["linear"]),
        memory_gbps=_positive(sheet["memory_gbps"]) * _positive(fraction["memory"]),
        memory_gb=_positive(sheet["memory_gb"]),
        layer_us=_finite(given["layer_us"]),
        hop_us=_finite(given["hop_us"]),
        link=str(given["link"]),
    )


def _link(given: Mapping[str, object]) -> Link:
    gbps = _positive(given["gbps"]) * _positive(given["fraction"])
    return Link.of_bandwidth(_finite(given["latency_us"]), gbps)


def _positive(value: object) -> float:
    return _finite(value, above=True)


def _finite(value: object, above: bool = False) -> float:
    """Return a finite number that is at least 0, or above 0 with `above`."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        number = float(value)
        if 0 <= number < inf and not (above and number == 0):
            return number
    raise ValueError(f"{value} must be {'above' if above else 'at least'} 0, and finite")


def _known(what: str, name: str, choices: Mapping[str, T]) -> T:
    """Return the device or link of a name. Raises UserError, with a suggestion, for another name."""
    if name not in choices:
        hint = did_you_mean(name, list(choices))
        raise UserError(f"{what} {name} is unknown; choose one of {', '.join(choices)}{hint}")
    return choices[name]
