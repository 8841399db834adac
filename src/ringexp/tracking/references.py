"""Reference runs, which others are compared with: measured once and stored under outputs/references/.

`single`: the same workload on one full-speed device, and that device's speed.
`homogeneous`: the same ring at full speed, split evenly.
`even`: the same throttled ring, split evenly.
`kernel`: not a run, but which kernel is the fastest; see `calibration.kernel_choice`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import ceil
from pathlib import Path

from ringexp.choices import measures_each_device
from ringexp.config import Config
from ringexp.stored import (
    JsonObject,
    JsonValue,
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
from ringexp.tracking.results import References

Facts = JsonObject
"""Everything that decides a reference."""

RING_KINDS = ("homogeneous", "even")
RUN_KINDS = ("single", *RING_KINDS)


@dataclass(frozen=True)
class ReferenceRun:
    """The figures of a reference run.

    Attributes:
        latency_ms_median: None only for a single device that the prompt does not fit.
        latency_ms_back_to_back: of a single device, with iterations in a row.
        speed_tflops: of a single device, maybe on a shorter prompt.
        decode_ms_per_token: of a single device; None: not decoded.
        spread: interquartile range / median of the latencies.
    """

    latency_ms_median: float | None
    latency_ms_back_to_back: float | None = None
    speed_tflops: float | None = None
    decode_ms_per_token: float | None = None
    spread: float = 0.0


@dataclass(frozen=True)
class KernelTimes:
    """Which kernel is the fastest for a shape, and the time of each one that was tried."""

    kernel: str
    times_ms: dict[str, float]


class ReferenceStore:
    """Stored reference figures, keyed by everything that decides them. Damaged entries are set aside."""

    def __init__(self, root: Path, warn: Warn = to_stderr) -> None:
        self._root, self._warn = root, warn

    def path(self, kind: str, facts: Facts) -> Path:
        """Return where a reference is kept: one file for each kind and set of facts."""
        return self._root / f"{kind}-{digest(facts)}.json"

    def get(self, kind: str, facts: Facts, invocation: str | None = None) -> ReferenceRun | None:
        """Return the checked measurement for these facts; None if there is none.

        Args:
            kind: single, homogeneous or even.
            facts: everything that decides the reference.
            invocation: the invocation that has to have measured it; None for any.
        """
        entry = self._read(kind, facts)
        if entry is None or invocation not in (None, entry.get("invocation")):
            return None
        return _reference_run(kind, an_object(entry["measured"], "measured"))

    def get_kernel(self, facts: Facts) -> KernelTimes | None:
        """Return the stored choice of a kernel for these facts; None if there is none."""
        entry = self._read("kernel", facts)
        return _kernel_times(an_object(entry["measured"], "measured")) if entry else None

    def _read(self, kind: str, facts: Facts) -> JsonObject | None:
        return read_checked(
            self.path(kind, facts), lambda value: _checked_entry(kind, facts, value), self._warn
        )

    def put(self, kind: str, facts: Facts, measured: Mapping[str, object], invocation: str = "") -> None:
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
        measured_references = {kind: self.get(kind, facts, invocation) for kind, facts in wanted.items()}
        single, homogeneous, even = (measured_references.get(kind) for kind in RUN_KINDS)
        return References(
            homogeneous_ms=homogeneous.latency_ms_median if homogeneous else None,
            even_ms=even.latency_ms_median if even else None,
            single_ms=single.latency_ms_median if single else None,
            single_back_to_back_ms=single.latency_ms_back_to_back if single else None,
            single_speed_tflops=single.speed_tflops if single else None,
            single_decode_ms=single.decode_ms_per_token if single else None,
        )

    def missing(self, wanted: Mapping[str, Facts], invocation: str | None = None) -> list[str]:
        """Return the kinds that nobody has measured, by the rules of `collect`."""
        return [kind for kind, facts in wanted.items() if self.get(kind, facts, invocation) is None]

    def forget(self, machine: Facts) -> int:
        """Remove all reference runs of a machine because they are off. Return how many there were."""
        paths = [path for kind in RUN_KINDS for path in self._root.glob(f"{kind}-*.json")]
        old = [path for path in paths if read_checked(path, _machine, self._warn) == machine]
        for path in old:
            with suppress(OSError):
                path.unlink()
        return len(old)


def _checked_entry(kind: str, facts: Facts, value: JsonValue) -> JsonObject:
    entry = an_object(value, "the entry")
    if digest(entry["facts"]) != digest(facts):
        raise ValueError("it is about something else")
    measured = an_object(entry["measured"], "measured")
    if kind == "kernel":
        _kernel_times(measured)
    else:
        _reference_run(kind, measured)
    return entry


def _machine(value: JsonValue) -> JsonObject:
    return an_object(an_object(an_object(value, "the entry")["facts"], "facts")["machine"], "machine")


def _reference_run(kind: str, measured: JsonObject) -> ReferenceRun:
    """Check the figures of a reference run. A prompt that does not fit one device has only a speed."""
    latency_ms, spread = measured["latency_ms_median"], measured.get("spread", 0)
    relative_spread = 0.0 if spread == 0 else positive(spread, "spread")
    if kind in RING_KINDS:
        return ReferenceRun(positive(latency_ms, "latency_ms_median"), spread=relative_spread)
    back_to_back_ms = measured.get("latency_ms_back_to_back")
    if latency_ms is not None:
        positive(back_to_back_ms, "latency_ms_back_to_back")
    return ReferenceRun(
        latency_ms_median=positive_or_none(latency_ms, "latency_ms_median"),
        latency_ms_back_to_back=positive_or_none(back_to_back_ms, "latency_ms_back_to_back"),
        speed_tflops=positive(measured["speed_tflops"], "speed_tflops"),
        decode_ms_per_token=positive_or_none(measured.get("decode_ms_per_token"), "decode_ms_per_token"),
        spread=relative_spread,
    )


def _kernel_times(measured: JsonObject) -> KernelTimes:
    times = an_object(measured["times_ms"], "times_ms")
    kernel = text(measured["kernel"], "kernel")
    if kernel not in times:
        raise ValueError(f"kernel={kernel} has no time")
    return KernelTimes(kernel, {name: positive(time_ms, name) for name, time_ms in times.items()})


def ranks_per_device(config: Config, machine: Facts) -> int:
    """Return how many ranks share each GPU, by the facts of the machine. CPU ranks all share one device."""
    if machine["device"] != "cuda":
        return config.world_size
    nodes = machine.get("nodes")
    gpus = [
        node.get("gpus")
        for node in (nodes if isinstance(nodes, list) else [machine])
        if isinstance(node, dict)
    ]
    count = sum(len(names) for names in gpus if isinstance(names, list))
    return ceil(config.world_size / max(count, 1))


def single_facts(config: Config, machine: Facts, content: Mapping[str, str]) -> Facts:
    """Return what decides the one-device reference. CPU ranks share one device, so their number counts.

    Where devices of one name may differ, the reference is rank 0's device.
    """
    model: JsonObject = asdict(config.model)
    lengths: list[JsonValue] | None = None if config.prompt_lengths is None else [*config.prompt_lengths]
    model.pop("checkpoint", None)  # whose content counts
    return {
        "machine": machine,
        "code": code_identity(),
        "content": dict(content),
        "model": model,
        "seq_len": config.seq_len,
        "prompt_lengths": lengths,
        "decode_tokens": config.decode_tokens,
        "kernel": config.kernel.name,
        "cuda_graph": config.cuda_graph,
        "sharing": config.world_size if machine["device"] == "cpu" else 1,
        "measured": measures_each_device(config.hetero.throttle),
    }


def homogeneous_facts(config: Config, machine: Facts, content: Mapping[str, str]) -> Facts:
    """Return what decides the homogeneous reference: the machine, and all settings but the profile."""
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
    """Return what decides the even reference: the same, and the throttled ranks."""
    return homogeneous_facts(config, machine, content) | {
        "percentages": [float(percentage) for percentage in config.hetero.percentages],
        "throttle": config.hetero.throttle,
        "split": config.split,
        **({"drift": asdict(config.hetero.drift), "prompts": config.repeats} if config.hetero.drift else {}),
    }
