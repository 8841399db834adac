"""What is measured once and remembered under outputs/references/: runs that others are measured against.

`single`: the same workload on one full-speed device, and that device's speed.
`homogeneous`: the same ring at full speed, split evenly.
`even`: the same throttled ring, split evenly.
`kernel`: not a run, but which kernel is the fastest; see `calibration.kernel_choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ringexp.choices import measures_each_device
from ringexp.config import Config
from ringexp.stored import (
    Warn,
    an_object,
    digest,
    positive,
    positive_or_none,
    read_checked,
    text,
    to_stderr,
    write_json,
)
from ringexp.tracking.environment import code_identity
from ringexp.tracking.metrics import References

Facts = dict[str, Any]
"""Everything that decides a reference."""

SINGLE_FIGURES = ("latency_ms_median", "latency_ms_back_to_back", "speed_tflops", "decode_ms_per_token")


class ReferenceStore:
    """Stored reference figures, keyed by everything that decides them. Damaged entries are set aside."""

    def __init__(self, root: Path, warn: Warn = to_stderr) -> None:
        self._root, self._warn = root, warn

    def path(self, kind: str, facts: Facts) -> Path:
        """Where a reference is kept: one file for each kind and set of facts."""
        return self._root / f"{kind}-{digest(facts)}.json"

    def get(self, kind: str, facts: Facts, invocation: str | None = None) -> dict[str, Any] | None:
        """Return the checked measurement for these facts; None if there is none.

        Args:
            kind: single, homogeneous, even or kernel.
            facts: everything that decides the reference.
            invocation: the invocation that has to have measured it; None for any.
        """
        entry = read_checked(self.path(kind, facts), lambda value: _entry(kind, facts, value), self._warn)
        if entry is None or invocation not in (None, entry["invocation"]):
            return None
        return entry["measured"]

    def put(self, kind: str, facts: Facts, measured: dict[str, Any], invocation: str = "") -> None:
        """Remember `measured` in place of what was measured before; warn if that cannot be written."""
        entry = {
            "facts": facts,
            "measured": measured,
            "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "invocation": invocation,
        }
        try:
            write_json(self.path(kind, facts), entry)
        except OSError as error:
            self._warn(f"{self._root} cannot be written ({error.strerror}): the {kind} reference is not kept")

    def collect(self, wanted: Mapping[str, Facts], invocation: str | None = None) -> References:
        """Return all references of a run that are stored.

        Args:
            wanted: the facts of each kind, by `reference_facts`.
            invocation: the invocation that has to have measured them; None for any.
        """
        known = {kind: self.get(kind, facts, invocation) or {} for kind, facts in wanted.items()}
        single = known.get("single", {})
        return References(
            homogeneous_ms=known.get("homogeneous", {}).get("latency_ms_median"),
            even_ms=known.get("even", {}).get("latency_ms_median"),
            single_ms=single.get("latency_ms_median"),
            single_back_to_back_ms=single.get("latency_ms_back_to_back"),
            single_speed_tflops=single.get("speed_tflops"),
            single_decode_ms=single.get("decode_ms_per_token"),
        )

    def missing(self, wanted: Mapping[str, Facts], invocation: str | None = None) -> list[str]:
        """Return the kinds that nobody has measured, by the rules of `collect`."""
        return [kind for kind, facts in wanted.items() if self.get(kind, facts, invocation) is None]

    def forget(self, machine: Facts) -> int:
        """Remove all reference runs of a machine because they are off. Return how many there were."""
        paths = [path for kind in _CHECKS for path in self._root.glob(f"{kind}-*.json") if kind != "kernel"]
        old = [path for path in paths if read_checked(path, _machine, self._warn) == machine]
        for path in old:
            with suppress(OSError):
                path.unlink()
        return len(old)


def _entry(kind: str, facts: Facts, value: Any) -> dict[str, Any]:
    entry = an_object(value, "the entry")
    if digest(entry["facts"]) != digest(facts):
        raise ValueError("it is about something else")
    measured = _CHECKS[kind](an_object(entry["measured"], "measured"))
    return {"measured": measured, "invocation": entry.get("invocation")}


def _machine(value: Any) -> Facts:
    return an_object(an_object(value, "the entry")["facts"], "facts")["machine"]


def _check_single(measured: dict[str, Any]) -> dict[str, Any]:
    """Check a one-device measurement. A prompt that does not fit has only the speed of a shorter prompt."""
    latency_ms = positive_or_none(measured["latency_ms_median"], "latency_ms_median")
    positive(measured["speed_tflops"], "speed_tflops")
    figures = {name: positive_or_none(measured.get(name), name) for name in SINGLE_FIGURES}
    if latency_ms is not None:
        positive(measured["latency_ms_back_to_back"], "latency_ms_back_to_back")
    return figures | _spread(measured)


def _check_ring(measured: dict[str, Any]) -> dict[str, Any]:
    return {"latency_ms_median": positive(measured["latency_ms_median"], "latency_ms_median")} | _spread(
        measured
    )


def _spread(measured: dict[str, Any]) -> dict[str, Any]:
    spread = measured.get("spread", 0)
    return {"spread": 0.0 if spread == 0 else positive(spread, "spread")}


def _check_kernel(measured: dict[str, Any]) -> dict[str, Any]:
    times = an_object(measured["times_ms"], "times_ms")
    kernel = text(measured["kernel"], "kernel")
    if kernel not in times:
        raise ValueError(f"kernel={kernel} has no time")
    return {"kernel": kernel, "times_ms": {name: positive(time_ms, name) for name, time_ms in times.items()}}


_CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "single": _check_single,
    "homogeneous": _check_ring,
    "even": _check_ring,
    "kernel": _check_kernel,
}


def ranks_per_device(config: Config, machine: Mapping[str, Any]) -> int:
    """Return how many ranks share each GPU, by the facts of the machine. CPU ranks all share one device."""
    if machine["device"] != "cuda":
        return config.world_size
    nodes = machine.get("nodes", [machine])
    return -(-config.world_size // max(sum(len(node.get("gpus", [])) for node in nodes), 1))


def single_facts(config: Config, machine: Facts, content: Mapping[str, str]) -> Facts:
    """What decides the one-device reference; CPU ranks share a device, so how many they are counts there.

    Where devices of one name may differ, it is rank 0's device.
    """
    model = asdict(config.model)
    model.pop("checkpoint", None)  # whose content counts
    return {
        "machine": machine,
        "code": code_identity(),
        "content": dict(content),
        "model": model,
        "seq_len": config.seq_len,
        "prompt_lengths": config.prompt_lengths,
        "decode_tokens": config.decode_tokens,
        "kernel": config.kernel.name,
        "cuda_graph": config.cuda_graph,
        "sharing": config.world_size if machine["device"] == "cpu" else 1,
        "measured": measures_each_device(config.hetero.throttle),
    }


def homogeneous_facts(config: Config, machine: Facts, content: Mapping[str, str]) -> Facts:
    """What decides the homogeneous reference: the machine and all settings but the profile's slowness."""
    sharing = ranks_per_device(config, machine)
    on_gpu = machine["device"] == "cuda"
    return single_facts(config, machine, content) | {
        "layout": config.layout.name,
        "split": "tokens",
        "transport": asdict(config.transport),
        "world_size": config.world_size,
        "ranks_per_device": sharing,
        "throttle": config.hetero.throttle if on_gpu and sharing > 1 else "none",
        "tile": config.tile,
    }


def even_facts(config: Config, machine: Facts, content: Mapping[str, str]) -> Facts:
    """What decides the even reference: that, and the throttled ranks."""
    return homogeneous_facts(config, machine, content) | {
        "percentages": [float(each) for each in config.hetero.percentages],
        "throttle": config.hetero.throttle,
        "split": config.split,
        **({"drift": asdict(config.hetero.drift), "prompts": config.repeats} if config.hetero.drift else {}),
    }
