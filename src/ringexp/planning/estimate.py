"""Estimate how much slower a rank is than its costs say, from its busy times.

The estimate is steady under noise and quick on a change.

The estimate is in the log domain, where a rank that got twice as slow and one that got twice as fast are
equally far away. Busy times near it are averaged, each of the first ones alike and in the end exponentially.
One that is far off, by more than `gate`, moves nothing; together with the next one, if that agrees with it,
it becomes the estimate. So one odd prompt leaves no trace, however odd, and a change is known after two
prompts. A rank that falls back to where it was before is believed at once: speeds that flip between two
levels are then known for what they are, while an odd prompt seldom hits such a level.

How far off is far depends on the noise, taken from the median of the latest distances, which a few odd ones
do not move. How sure the estimate is depends on it, too, and there distances from one prompt to the next
count where they are smaller: costs that are wrong from the start, or speeds that creep, are no noise.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SMOOTHING = 0.1
"""The least weight of a new busy time: noise of s leaves s x sqrt(.1 / 1.9) = .23 s in the estimate."""

LEAST_GATE = 0.08
"""Changes below 8 % are always averaged in."""

DEVIATIONS = 4.0
"""Standard deviations of noise that a change has to exceed."""

ALIKE = 0.1
"""Two far-off prompts agree if they differ by no more than this part of how far off they are."""

RECENT = 16
"""The noise is taken from this many distances."""

PRIOR_NOISE = 0.05
"""Taken for the noise, as a quarter of RECENT, until there are busy times."""

REMEMBERED = 3
"""Levels that a rank has left and may fall back to."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviation / median absolute deviation of normal noise."""


class FactorEstimate:
    """The estimate for one rank.

    Attributes:
        level: log(busy time / predicted time).
        changed: whether the latest prompt changed the level.
        returned: whether that change went back to a level that the rank had before.
    """

    def __init__(self) -> None:
        self.level = 0.0
        self.changed = self.returned = False
        self._count = 1  # the costs themselves are taken for one busy time
        self._odd: float | None = None
        self._left: deque[float] = deque(maxlen=REMEMBERED)
        self._distances, self._steps = (
            deque([PRIOR_NOISE / MAD_TO_DEVIATION] * (RECENT // 4), maxlen=RECENT) for _ in range(2)
        )
        self._latest: float | None = None

    @property
    def noise(self) -> float:
        """Standard deviation of one prompt's logarithm: of its busy time, as a fraction."""
        return MAD_TO_DEVIATION * median(self._distances)

    @property
    def error(self) -> float:
        """Standard deviation of `level`."""
        noise = min(self.noise, MAD_TO_DEVIATION * median(self._steps))
        return noise * max(SMOOTHING / (2 - SMOOTHING), 1 / self._count) ** 0.5

    @property
    def gate(self) -> float:
        """The distance from the level, up or down, beyond which a prompt may show a change."""
        return max(LEAST_GATE, DEVIATIONS * self.noise)

    def observe(self, seen: float) -> None:
        """Take in log(busy time / predicted time) of one prompt."""
        gate, distance, odd = self.gate, seen - self.level, self._odd
        self.changed = self.returned = False
        self._distances.append(abs(distance))
        if self._latest is not None:
            self._steps.append(abs(seen - self._latest) / 2**0.5)
        self._latest = seen
        if abs(distance) <= gate:
            self._count += 1
            self.level += max(SMOOTHING, 1 / self._count) * distance
            self._odd = None
        elif (earlier := self._fallen_back(seen, gate / 2)) is not None:
            self._change(seen, earlier)
        elif odd is not None and abs(seen - odd) <= max(gate, ALIKE * abs(distance)):
            self._change(seen, odd)
        else:
            self._odd = seen

    def _fallen_back(self, seen: float, tolerance: float) -> float | None:
        """Return the earlier level that a rank which got slower is on again, or None."""
        near = [level for level in self._left if abs(seen - level) <= tolerance]
        return near[-1] if near and seen > self.level else None

    def _change(self, seen: float, other: float) -> None:
        level = (seen + other) / 2
        self.returned = any(abs(level - left) <= self.gate for left in self._left)
        self._left.append(self.level)
        self.level, self._count, self._odd = level, 2, None
        self._distances[-1] = abs(seen - other) / 2
        self.changed = True
