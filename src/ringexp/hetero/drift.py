"""Drift: percentages that change in mid-run, as a function of the prompt's number.

    drift = DriftConfig("step", to=[100, 50], at=10)
    percentages_at(drift, [100, 100], 9)   ->  [100.0, 100.0]
    percentages_at(drift, [100, 100], 10)  ->  [100.0, 50.0]

Timed prompts are counted from 0; warm-up prompts have negative numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ringexp.choices import AUTO, THROTTLES
from ringexp.config import DriftConfig
from ringexp.errors import UserError
from ringexp.hetero.profiles import MAX_LABEL, label, validate_percentages

PARTS: dict[str, Callable[[int, int], float]] = {
    "none": lambda since, over: 0.0,
    "step": lambda since, over: 1.0,
    "ramp": lambda since, over: min((since + 1) / over, 1.0),
    "flapping": lambda since, over: float(since // over % 2 == 0),
    "recovery": lambda since, over: float(since < over),
}
"""Per kind of drift, the part of the way from the profile's percentages to `to`, from 0 to 1.

Arguments are the number of prompts since the first change, and `hetero.drift.over`.
"""


def percentages_at(drift: DriftConfig, percentages: Sequence[float], prompt: int) -> list[float]:
    """Return the percentages of all ranks at one prompt. Those of a ramp are rounded to whole percents."""
    if not drift or prompt < drift.at:
        return [float(value) for value in percentages]
    part = PARTS[drift.kind](prompt - drift.at, drift.over)
    return [
        float(end if part == 1 else round(start + part * (end - start)) if part else start)
        for start, end in zip(percentages, drift.to, strict=True)
    ]


def levels(drift: DriftConfig, percentages: Sequence[float], prompts: int) -> list[list[float]]:
    """Return the different percentages at which the first `prompts` prompts run, in their order."""
    distinct = {tuple(percentages_at(drift, percentages, prompt)): None for prompt in range(prompts)}
    return [list(level) for level in distinct]


def drift_label(percentages: Sequence[float], drift: DriftConfig | None = None) -> str:
    """Return a profile's label with its drift, "100_100_step_100_50", in at most MAX_LABEL characters."""
    if not drift:
        return label(percentages)
    whole = f"{label(percentages)}_{drift.kind}_{label(drift.to)}"
    if len(whole) <= MAX_LABEL:
        return whole
    limit = (MAX_LABEL - len(drift.kind) - 2) // 2
    return f"{label(percentages, limit)}_{drift.kind}_{label(drift.to, limit)}"


def validate_drift(drift: DriftConfig, percentages: Sequence[float], throttle: str) -> None:
    """Raise UserError for a drift that no run could have."""
    if drift.kind not in PARTS:
        raise UserError(f"hetero.drift.kind={drift.kind} is unknown; choose one of {', '.join(PARTS)}")
    if not drift:
        return
    if len(drift.to) != len(percentages):
        raise UserError(
            f"hetero.drift.to={list(drift.to)} must have one percentage per rank, as "
            f"hetero.percentages={list(percentages)} has"
        )
    validate_percentages(drift.to, "hetero.drift.to")
    for name in ("at", "over"):
        least = {"at": 0, "over": 1}[name]
        if getattr(drift, name) < least:
            raise UserError(f"hetero.drift.{name}={getattr(drift, name)} must be at least {least}")
    spec = None if throttle == AUTO else THROTTLES[throttle]
    if spec and not spec.changes_in_mid_run:
        changeable = [other.name for other in THROTTLES if other.changes_in_mid_run]
        raise UserError(
            f"hetero.throttle={throttle} cannot drift ({spec.why_fixed}): use "
            f"{', '.join(changeable)} or auto, or hetero.drift.kind=none"
        )
