"""One table per kind of choice: kernels, transports, throttles, partitioners, layouts.

Code that depends on a choice asks its spec for a property; no code compares a name. A new choice is one file
with its code and one entry in `tables`, or an entry point of another distribution (see `registry`).
"""

from ringexp.choices.registry import AUTO, Choice, Registry
from ringexp.choices.specs import KernelSpec, LayoutSpec, PartitionerSpec, ThrottleSpec, TransportSpec
from ringexp.choices.suggestions import did_you_mean
from ringexp.choices.tables import (
    KERNELS,
    LAYOUTS,
    PARTITIONERS,
    THROTTLES,
    TRANSPORTS,
    baseline_partitioner,
    measures_each_device,
)

__all__ = [
    "AUTO",
    "KERNELS",
    "LAYOUTS",
    "PARTITIONERS",
    "THROTTLES",
    "TRANSPORTS",
    "Choice",
    "KernelSpec",
    "LayoutSpec",
    "PartitionerSpec",
    "Registry",
    "ThrottleSpec",
    "TransportSpec",
    "baseline_partitioner",
    "did_you_mean",
    "measures_each_device",
]
