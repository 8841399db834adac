"""The reference runs that a run is compared with: which ones exist, and which ones have to be measured first.

A sweep measures its own references, each once. A single run uses stored references if its own ranks confirm
them: before the run, the ranks briefly run one reference again. Where they cannot, or the check fails, all
references are measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ringexp.choices import PARTITIONERS, baseline_partitioner, measures_each_device
from ringexp.config import Config, HeteroConfig
from ringexp.stored import JsonObject
from ringexp.tracking.references import Facts, ReferenceStore, even_facts, homogeneous_facts, single_facts

SPOT = "spot check of "
"""The beginning of the role of a job that runs a stored reference again. The kind of reference follows."""

SPOT_REPEATS = 5
"""Number of timed iterations of a job that checks a stored reference."""


@dataclass(frozen=True)
class Reference:
    """One reference of a run. is_run: the run itself measures this reference."""

    kind: str
    facts: Facts
    config: Config
    is_run: bool = False


def references_of(
    config: Config, machine: JsonObject, content: Mapping[str, str], device: str, num_gpus: int
) -> list[Reference]:
    """List all references of a run, in the order in which they are measured; none with references=false.

    Args:
        config: the run's settings.
        machine: what decides speed on the machine, as `machine_facts`.
        content: hashes of the run's prompt and checkpoint.
        device: cpu or cuda.
        num_gpus: GPUs of all nodes together.
    """
    if not config.references:
        return []
    even = replace(config, partitioner=replace(config.partitioner, name=baseline_partitioner()), check=False)
    even = replace(even, memory_limit_gib=None)
    single = replace(even, hetero=_one_device(config, device), split="tokens")
    found = [Reference("single", single_facts(config, machine, content), single)]
    # Devices that are each measured by themselves have no ring of equal devices to be compared with.
    if not measures_each_device(config.hetero.throttle):
        homogeneous = replace(even, hetero=_full_speed(config, device, num_gpus), split="tokens")
        found.append(Reference("homogeneous", homogeneous_facts(config, machine, content), homogeneous))
    is_run = PARTITIONERS[config.partitioner.name].is_baseline
    return [*found, Reference("even", even_facts(config, machine, content), even, is_run)]


def to_measure(
    references: list[Reference],
    store: ReferenceStore,
    shares_ranks: Callable[[Config], bool],
    spot_check: bool,
) -> tuple[Reference | None, list[Reference]]:
    """Decide for a single run which stored reference to check, and which references to measure.

    Args:
        references: all of the run.
        store: the stored references.
        shares_ranks: whether a config can run on the ranks of the run itself.
        spot_check: the setting `calibration.spot_check`; without it every stored reference is trusted.

    Returns:
        The reference that the run's ranks run again before the run, or None; and the missing references.
    """
    to_run = [each for each in references if not each.is_run]
    known = [each for each in references if store.get(each.kind, each.facts)]
    missing = [each for each in to_run if each not in known]
    if not spot_check or len(missing) == len(to_run):
        return None, missing
    rings = [each for each in reversed(known) if each.kind != "single" and shares_ranks(each.config)]
    drifts = any(each.config.hetero.drift for each in references)  # a few prompts would not meet all of it
    if not rings or drifts or not all(shares_ranks(each.config) for each in missing):
        return None, to_run
    return rings[0], missing


def brief(config: Config) -> Config:
    """Return a config of the same ring with just enough iterations to check a stored time."""
    return replace(config, warmup=max(config.warmup, 1), repeats=SPOT_REPEATS, decode_tokens=0)


def _one_device(config: Config, device: str) -> HeteroConfig:
    """Return the profile that measures one full-speed device.

    It has a single rank, or on CPU all ranks, each measured by itself.
    """
    throttle = "measured" if measures_each_device(config.hetero.throttle) else "none"
    return HeteroConfig([100.0] * (1 if device == "cuda" else config.world_size), throttle)


def _full_speed(config: Config, device: str, num_gpus: int) -> HeteroConfig:
    """Return the profile of ranks that nothing slows: whole devices, or equal parts of shared GPUs."""
    gpus = num_gpus if device == "cuda" else config.world_size
    sharing = -(-config.world_size // max(gpus, 1))
    throttle = config.hetero.throttle if sharing > 1 else "none"
    return HeteroConfig([100.0 / sharing] * config.world_size, throttle)
