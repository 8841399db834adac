"""The rows of the calibration table: one measured speed each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from ringexp.errors import UserError

CLOCK_SKEW = timedelta(minutes=1)
"""The largest accepted difference between the clocks of machines that share a table."""

Key = tuple[str, str, str, int, float, int, int, str, int]
"""The values that tell a row from others; see `SpeedRow.key`."""

Point = tuple[int, int, int]
"""The work that is measured: tokens of the prompt, the rank's own tokens, and the number of other ranks."""


@dataclass(frozen=True)
class SpeedRow:
    """One measured speed.

    Attributes:
        hardware: the device's name, as the driver reports it.
        throttle: the throttle of the rank; see `choices.THROTTLES`.
        percentage: the throttle's percentage, in (0, 100].
        ranks_per_device: the number of ranks that ran on the device at the same time.
        shape: a readable key of the work, such as attention-emb4096-h32-kv32-d128-bfloat16-cudnn.
        length: tokens of the prompt.
        tokens: tokens of the prompt that this rank had, under zigzag.
        speed_tflops: the speed, TFLOP/s.
        time_ms: the median time of one repetition.
        spread: the interquartile range of the times, divided by their median.
        samples: the number of repetitions.
        measured_at: an ISO 8601 time; UTC if it names no zone.
        versions: the software that was measured; may be empty.
        co_tenants: the percentages of the other ranks on the same GPU, such as 50+10; empty without any.
        others: the number of ranks that had the rest of the prompt, each one shard of it.

    Raises:
        ValueError: for a value that no measurement can give.
    """

    hardware: str
    throttle: str
    percentage: float
    ranks_per_device: int
    shape: str
    length: int
    tokens: int
    speed_tflops: float
    time_ms: float
    spread: float
    samples: int
    measured_at: str
    versions: str
    co_tenants: str = ""
    others: int = 1

    def __post_init__(self) -> None:
        for name in ("hardware", "throttle", "shape", "versions", "co_tenants"):
            text = getattr(self, name)
            if not text.isprintable() or not (text.strip() or name in ("versions", "co_tenants")):
                raise ValueError(f"{name}={text!r} must be one line of readable text")
        for name in ("ranks_per_device", "length", "tokens", "samples", "others"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.tokens > self.length:
            raise ValueError(f"tokens={self.tokens} must be at most length={self.length}")
        for name in ("speed_tflops", "time_ms"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)} must be positive and finite")
        if not 0 < self.percentage <= 100:
            raise ValueError(f"percentage={self.percentage} must be above 0 and at most 100")
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread={self.spread} must be finite and at least 0")
        _ = self.time

    @property
    def key(self) -> Key:
        """The circumstances of the measurement. A table holds one row per key."""
        return (
            self.hardware,
            self.shape,
            self.throttle,
            self.ranks_per_device,
            self.percentage,
            self.length,
            self.tokens,
            self.co_tenants,
            self.others,
        )

    @property
    def point(self) -> Point:
        """The work that was measured."""
        return self.length, self.tokens, self.others

    @property
    def is_half(self) -> bool:
        """Tell whether the rank was one of two equal ones.

        Speeds are read from such rows; the other rows tell what each part of the work costs.
        """
        return self.tokens == self.length // 2 and self.others == 1

    @property
    def time(self) -> datetime:
        """`measured_at` with its zone."""
        try:
            time = datetime.fromisoformat(self.measured_at.replace("Z", "+00:00"))
        except ValueError:
            raise ValueError(f"measured_at={self.measured_at!r} must be an ISO 8601 time") from None
        return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def newest(rows: Iterable[SpeedRow]) -> tuple[SpeedRow, ...]:
    """Return the newest row of each key, sorted by key; of two equally new rows the later one in `rows`.

    A row whose time lies in the future counts as the oldest, since its clock was wrong.
    """
    latest = datetime.now(timezone.utc) + CLOCK_SKEW
    kept: dict[Key, SpeedRow] = {}
    for row in rows:
        if row.key not in kept or _recency(row, latest) >= _recency(kept[row.key], latest):
            kept[row.key] = row
    return tuple(kept[key] for key in sorted(kept))


def _recency(row: SpeedRow, latest: datetime) -> tuple[bool, datetime]:
    return row.time <= latest, row.time


def rows_of_one_device(rows: Iterable[SpeedRow]) -> list[SpeedRow]:
    """Return rows as a list. Raises UserError for no rows, and for rows of several devices or shapes."""
    rows = list(rows)
    if not rows:
        raise UserError(
            "no calibration rows for this hardware, throttle and attention shape; calibrate first: "
            "calibration.mode=auto measures what is missing"
        )
    for name in ("hardware", "shape"):
        values = sorted({getattr(row, name) for row in rows})
        if len(values) > 1:
            raise UserError(
                f"calibration rows of more than one {name}: {', '.join(values)}; give those of one"
            )
    return rows


def check_query(length: int, percentage: float) -> None:
    """Raise UserError for a length or a percentage that no rank can have."""
    if not length >= 1:
        raise UserError(f"length={length} must be at least 1 token")
    if not 0 < percentage <= 100:
        raise UserError(f"percentage={percentage} must be above 0 and at most 100")
