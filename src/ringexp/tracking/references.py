"""What is measured once and remembered under outputs/references/: runs that others are measured against.

`single`: the same workload on one full-speed device, and that device's speed.
`homogeneous`: the same ring at full speed, split evenly.
`even`: the same throttled ring, split evenly.
`kernel`: not a run, but which kernel is the fastest; see `calibration.kernel_choice`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ringexp.config import Config
from ringexp.tracking.files import write_atomically
from ringexp.tracking.metrics import References


class ReferenceStore:
    """Reference figures keyed by everything that decides them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, kind: str, facts: dict[str, Any]) -> Path:
        """Where a reference is kept: one file for each kind and set of facts."""
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return self._root / f"{kind}-{digest}.json"

    def get(self, kind: str, facts: dict[str, Any]) -> dict[str, Any] | None:
        path = self.path(kind, facts)
        return json.loads(path.read_text(encoding="utf-8"))["measured"] if path.exists() else None

    def put(self, kind: str, facts: dict[str, Any], measured: dict[str, Any]) -> None:
        """Remember `measured`; the first measurement of a key stays."""
        path = self.path(kind, facts)
        if not path.exists():
            write_atomically(path, json.dumps({"facts": facts, "measured": measured}, indent=2) + "\n")

    def collect(self, config: Config, machine: dict[str, Any]) -> References:
        """All references of a run that are remembered."""
        single = self.get("single", single_facts(config, machine)) or {}
        equal = not config.hetero.is_measured
        homogeneous = self.get("homogeneous", homogeneous_facts(config, machine)) if equal else None
        even = self.get("even", even_facts(config, machine)) or {}
        return References(
            homogeneous_ms=(homogeneous or {}).get("latency_ms_median"),
            even_ms=even.get("latency_ms_median"),
            single_ms=single.get("latency_ms_median"),
            single_back_to_back_ms=single.get("latency_ms_back_to_back"),
            single_speed_tflops=single.get("speed_tflops"),
            single_decode_ms=single.get("decode_ms_per_token"),
        )


def single_facts(config: Config, machine: dict[str, Any]) -> dict[str, Any]:
    """What decides the one-device reference; CPU ranks share a device, so how many they are counts there.

    Where devices of one name may differ, it is rank 0's device.
    """
    optional = {"decode_tokens": config.decode_tokens, "prompt_lengths": config.prompt_lengths}
    return {name: value for name, value in optional.items() if value} | {
        "machine": machine,
        "model": asdict(config.model),
        "seq_len": config.seq_len,
        "kernel": config.kernel.name,
        "cuda_graph": config.cuda_graph,
        "sharing": config.world_size if machine["device"] == "cpu" else 1,
        "measured": config.hetero.is_measured,
    }


def homogeneous_facts(config: Config, machine: dict[str, Any]) -> dict[str, Any]:
    """What decides the homogeneous reference: the machine and all settings but the profile's slowness."""
    return single_facts(config, machine) | {
        "layout": config.layout.name,
        "transport": asdict(config.transport),
        "world_size": config.world_size,
        "tile": config.tile,
    }


def even_facts(config: Config, machine: dict[str, Any]) -> dict[str, Any]:
    """What decides the even reference: that, and the throttled ranks."""
    return homogeneous_facts(config, machine) | {
        "percentages": config.hetero.percentages,
        "throttle": config.hetero.throttle,
        "shard": config.shard,
        **({"drift": asdict(config.hetero.drift), "prompts": config.repeats} if config.hetero.drift else {}),
    }
