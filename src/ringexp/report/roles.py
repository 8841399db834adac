"""The part that each partitioner, also a plug-in, plays in comparisons, by its properties."""

from __future__ import annotations

from collections.abc import Iterable

from ringexp.choices import PARTITIONERS, PartitionerSpec


def baselines() -> list[str]:
    """Return the partitioners that speedups are relative to."""
    return [spec.name for spec in PARTITIONERS if spec.is_baseline]


def balancing() -> list[str]:
    """Return the partitioners that plan once, by what work costs: the ones that are recommended."""
    return [spec.name for spec in PARTITIONERS if _is_balancing(spec)]


def adapting() -> list[str]:
    """Return the partitioners that plan anew between prompts."""
    return [spec.name for spec in PARTITIONERS if spec.adapts]


def rivals(names: Iterable[str]) -> list[str]:
    """Return those of the names that are compared with the balancing ones, in the registry's order.

    They split by measured speed. A partitioner that is not installed here is taken for one of them.
    """
    specs = {name: PARTITIONERS.get(name) for name in dict.fromkeys(names)}
    installed = [spec.name for spec in PARTITIONERS if spec.name in specs and _is_rival(spec)]
    return installed + sorted(name for name, spec in specs.items() if spec is None)


def _is_balancing(spec: PartitionerSpec) -> bool:
    return spec.needs_costs and not spec.adapts


def _is_rival(spec: PartitionerSpec) -> bool:
    by_rule = spec.is_baseline or spec.needs_percentages
    return not (by_rule or spec.needs_costs or spec.adapts)
