"""The search for the SM count at which cuBLAS is right; what cuBLAS does is for the gpu tests."""

import pytest

from ringexp.hetero.blas import largest_right_target


class Library:
    """A cuBLAS that is right at some SM counts only."""

    def __init__(self, right_at):
        self._right_at = right_at
        self.target = "never set"

    def set_target(self, target):
        self.target = target

    def is_right(self, target):
        assert target == self.target
        return target in self._right_at


@pytest.mark.parametrize(
    ("sm_count", "right_at", "expected"),
    [(66, {None, 64}, None), (78, {64, 32, 2}, 64), (64, {32}, 32), (18, {12, 4}, 12), (2, {1}, 1)],
)
def test_the_largest_right_limit_is_found_and_left_set(sm_count, right_at, expected):
    library = Library(right_at)
    assert largest_right_target(sm_count, library.set_target, library.is_right) == expected
    assert library.target == expected


def test_no_limit_that_is_right_is_an_error_with_a_way_out():
    library = Library({78})
    with pytest.raises(RuntimeError, match=r"wrong products with 78 SMs.*green_context"):
        largest_right_target(78, library.set_target, library.is_right)
