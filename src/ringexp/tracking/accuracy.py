"""The check of an output against one process: how far off it is, and how far off it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPREAD_BOUND = 1e-5
"""An exact output in float32 differs by no more than this part of the reference's spread."""
TOKEN_BOUND = 1e-4
"""Each token of an exact output in float32 differs by no more than this part of its size."""
PRECISION_SLACK = 1.5
"""An exact output in a lower precision is at most this much further from float32 than one process is."""


def error_bounds(spread: float, single_max_abs: float, single_token: float) -> tuple[float, float]:
    """Return the largest `error_max_abs` and the largest `error_token` that an exact output may have.

    Args:
        spread: largest minus smallest value of one process in float32.
        single_max_abs: the largest difference of one process in the run's precision from float32.
        single_token: the same for the worst token, relative to its size.
    """
    of_output = max(SPREAD_BOUND * spread, PRECISION_SLACK * single_max_abs)
    return of_output, max(TOKEN_BOUND, PRECISION_SLACK * single_token)


@dataclass(frozen=True)
class Accuracy:
    """The distance of the output from that of one process computing in float32 on the same inputs.

    error_token: the worst token's distance relative to its size, by Euclidean norms. Outputs of early tokens
    are large, so the largest difference tends to be theirs. error_single_*: the same for one process in the
    run's precision. reference_spread: largest minus smallest value in float32. not_finite: how many values of
    the output are NaN or infinite; single_*, reference_*: of one process in that precision and in float32.
    """

    error_max_abs: float
    error_single_max_abs: float
    error_token: float
    error_single_token: float
    reference_spread: float
    not_finite: int = 0
    single_not_finite: int = 0
    reference_not_finite: int = 0

    @property
    def exact(self) -> bool:
        """Tell if the output is right: all is finite, and both errors are within `error_bounds`."""
        of_single = self.reference_spread, self.error_single_max_abs, self.error_single_token
        if self.not_finite or self.single_not_finite or self.reference_not_finite:
            return False
        if not all(map(math.isfinite, of_single)):  # what is infinite or NaN bounds nothing
            return False
        of_output, of_token = error_bounds(*of_single)
        return self.error_max_abs <= of_output and self.error_token <= of_token  # False for NaN

    @property
    def why_inexact(self) -> str | None:
        """Say in one line why the output is not exact, and if the ring is at fault; None if it is exact."""
        if self.exact:
            return None
        if self.reference_not_finite:
            return (
                f"one process in float32 computes {self.reference_not_finite} NaN or infinite values itself, "
                "so nothing can be checked: the model, its weights or its inputs are at fault, not the ring"
            )
        if self.single_not_finite:
            return (
                f"one process in this precision computes {self.single_not_finite} NaN or infinite values "
                "itself, and none in float32: this dtype's range is too small for the model, and the ring is "
                "not at fault; use another model.dtype"
            )
        if self.not_finite:
            return (
                f"{self.not_finite} values of the output are NaN or infinite, and none of one process: "
                "do not use it"
            )
        return (
            f"the output is off by {self.error_max_abs:.3g} from one process in float32, a token by "
            f"{self.error_token:.1%} of its size, but one process in this precision only by "
            f"{self.error_single_max_abs:.3g} and {self.error_single_token:.1%}: do not use it"
        )
