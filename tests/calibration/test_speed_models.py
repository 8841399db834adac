"""Speed models: exact where measured, monotone where the data are, positive and finite everywhere."""

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringexp.calibration.formula import FLOOR_FRACTION, FormulaModel
from ringexp.calibration.lookup_table import LookupTable
from ringexp.calibration.rows import SpeedRow
from ringexp.errors import UserError

FLASH = {100: 350.0, 90: 319.0, 50: 182.0, 25: 90.0, 10: 34.0}
"""MPS percentage -> TFLOP/s of one flash attention kernel on an H200."""
LENGTHS = (4096, 16384, 65536)
ASKED = (1, 3, 100, 1000, 4096, 5000, 16384, 30_011, 65536, 100_000, 10**7)


def row(percentage: float, length: int, speed: float, **values) -> SpeedRow:
    identity = {"hardware": "H200", "throttle": "mps", "ranks_per_device": 1, "shape": "attention"} | values
    return SpeedRow(
        percentage=percentage,
        length=length,
        tokens=max(length // 2, 1),
        speed_tflops=speed,
        time_ms=1.0,
        spread=0.0,
        samples=5,
        measured_at="2026-03-01T10:00:00",
        versions="",
        **identity,
    )


def grid(points: dict[int, float] = FLASH, lengths=LENGTHS) -> list[SpeedRow]:
    """Speeds that rise with the length to those of `points`."""
    return [row(p, n, s * (1 - 400 / n)) for p, s in points.items() for n in lengths]


percentages = st.lists(st.integers(1, 99), max_size=5, unique=True).map(lambda chosen: [*sorted(chosen), 100])
lengths = st.lists(st.integers(1, 200_000), min_size=1, max_size=5, unique=True).map(sorted)
speeds = st.floats(1e-4, 1e4)


@st.composite
def measured(draw, monotone=False):
    """Rows on a grid that ends at 100 %: ragged, or full with speeds that rise with the percentage."""
    asked, tokens = draw(percentages), draw(lengths)
    columns = [draw(st.lists(speeds, min_size=len(asked), max_size=len(asked))) for _ in tokens]
    columns = [sorted(column) for column in columns] if monotone else columns
    rows = [
        row(p, n, column[i]) for n, column in zip(tokens, columns, strict=True) for i, p in enumerate(asked)
    ]
    if monotone:
        return rows
    kept = [r for r in rows if draw(st.integers(0, 3))]
    return [*kept, *(r for r in rows if r.percentage == 100 and r.length == tokens[0] and r not in kept)]


@settings(max_examples=80, deadline=None)
@given(measured())
def test_lookup_is_exact_at_measured_points(rows):
    table = LookupTable(rows)
    assert [table.speed(r.length, r.percentage) for r in rows] == [r.speed_tflops for r in rows]


@settings(max_examples=40, deadline=None)
@given(measured(monotone=True), st.integers(1, 300_000))
def test_lookup_is_monotone_in_percentage_when_the_data_are(rows, length):
    table = LookupTable(rows)
    asked = sorted({0.5, 1e-9, *range(1, 101, 3), *(r.percentage for r in rows)})
    found = [table.speed(length, p) for p in asked]
    assert all(low <= high * (1 + 1e-9) for low, high in itertools.pairwise(found))


@settings(max_examples=40, deadline=None)
@given(measured(), st.integers(1, 10**9), st.floats(0, 100, exclude_min=True))
def test_lookup_stays_within_what_was_measured(rows, length, percentage):
    speed = LookupTable(rows).speed(length, percentage)
    assert 0 < speed <= max(r.speed_tflops for r in rows) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(measured(), st.integers(1, 10**9), st.floats(0, 100, exclude_min=True, allow_subnormal=False))
def test_formula_is_positive_and_finite(rows, length, percentage):
    speed = FormulaModel.fit(rows).speed(length, percentage)
    assert 0 < speed < math.inf


def test_lookup_interpolates_the_h200_curve():
    table = LookupTable(grid(lengths=(65536,)))
    full = 1 - 400 / 65536
    assert table.speed(65536, 50) == 182.0 * full
    assert 182 < table.speed(65536, 70) / full < 319
    assert table.speed(65536, 75) / full == pytest.approx(268, abs=3)
    assert table.speed(65536, 5) / full == pytest.approx(17, abs=1)


def test_lookup_is_constant_beyond_the_measured_lengths():
    table = LookupTable(grid())
    for percentage in (10, 33, 100):
        assert table.speed(1, percentage) == table.speed(4096, percentage)
        assert table.speed(10**8, percentage) == table.speed(65536, percentage)
        assert table.speed(4096, percentage) < table.speed(9000, percentage) < table.speed(16384, percentage)


def test_lookup_with_one_row_is_proportional_to_the_percentage():
    table = LookupTable([row(100, 4096, 350.0)])
    assert [table.speed(n, 100) for n in (1, 4096, 10**6)] == [350.0] * 3
    assert table.speed(7, 30) == pytest.approx(105)


def test_noise_does_not_make_the_speed_fall_between_percentages():
    table = LookupTable(grid({25: 90.0, 80: 300.0, 90: 290.0, 100: 350.0}, lengths=(4096,)))
    full = 1 - 400 / 4096
    assert table.speed(4096, 80) == 300.0 * full
    assert table.speed(4096, 90) == 290.0 * full
    between = [table.speed(4096, p) for p in (26, 50, 79, 81, 85, 89, 91, 95, 99)]
    assert all(low <= high * (1 + 1e-12) for low, high in itertools.pairwise(between))
    assert table.speed(4096, 85) == pytest.approx(295 * full)


def test_curves_that_cross_between_measured_lengths_do_not_cross_in_the_lookup():
    """PCHIP leaves (10, 109) steeply and (10, 110) flat, so the slower curve is ahead soon after."""
    slower = [row(50, n, s) for n, s in ((1, 100.0), (10, 109.0), (100, 119.0))]
    faster = [row(100, n, s) for n, s in ((1, 110.0), (10, 110.0), (100, 120.0))]
    assert LookupTable(slower).speed(20, 50) > LookupTable(faster).speed(20, 100) + 0.5
    both = LookupTable([*slower, *faster])
    assert both.speed(20, 50) == pytest.approx(both.speed(20, 100))


def test_noise_at_a_measured_percentage_is_kept_between_lengths():
    table = LookupTable([row(90, n, 300.0) for n in LENGTHS] + [row(100, n, 290.0) for n in LENGTHS])
    assert table.speed(9000, 90) == pytest.approx(300)
    assert table.speed(9000, 100) == pytest.approx(290)


def test_lookup_extrapolates_a_twentieth_above_the_largest_percentage_and_no_more():
    table = LookupTable(grid({50: 182.0, 80: 280.0}))
    assert table.speed(4096, 84) == table.speed(4096, 80)
    with pytest.raises(
        UserError, match=r"percentage=84.1 is above .*\(50, 80\); calibrate at 84.1 % .*calibration.mode=auto"
    ):
        table.speed(4096, 84.1)


def test_two_speeds_at_one_point_are_refused():
    with pytest.raises(UserError, match=r"two calibration rows .* 100 % and 64 tokens"):
        LookupTable([row(100, 64, 1.0), row(100, 64, 2.0, throttle="none")])


@pytest.mark.parametrize("build", [LookupTable, FormulaModel.fit], ids=["lut", "formula"])
@pytest.mark.parametrize("name", ["hardware", "shape"])
def test_rows_of_several_devices_or_shapes_are_refused(build, name):
    with pytest.raises(UserError, match=f"more than one {name}: .*other"):
        build([row(100, 64, 1.0), row(50, 64, 1.0, **{name: "other"})])


@pytest.mark.parametrize("build", [LookupTable, FormulaModel.fit], ids=["lut", "formula"])
def test_no_rows_are_refused(build):
    with pytest.raises(UserError, match="calibrate first"):
        build([])


@pytest.mark.parametrize("build", [LookupTable, FormulaModel.fit], ids=["lut", "formula"])
@pytest.mark.parametrize(
    ("length", "percentage", "message"),
    [
        (0, 50, "length=0 "),
        (64, 0, "percentage=0 "),
        (64, 101, "percentage=101"),
        (64, math.nan, "percentage=nan"),
    ],
)
def test_impossible_question_is_refused(build, length, percentage, message):
    with pytest.raises(UserError, match=message):
        build(grid()).speed(length, percentage)


def quadratic(length: int, percentage: float) -> float:
    x = math.log10(length)
    return 5 + 4 * x + 0.3 * percentage - 0.2 * x * x + 0.5 * x * percentage + 0.004 * percentage**2


def test_formula_recovers_a_quadratic():
    model = FormulaModel.fit([row(p, n, quadratic(n, p)) for p in FLASH for n in LENGTHS])
    assert model.r_squared == pytest.approx(1, abs=1e-12)
    assert model.worst_error < 1e-9
    assert model.num_rows == 15
    for length, percentage in itertools.product(ASKED, (1, 10, 33, 100)):
        assert model.speed(length, percentage) == pytest.approx(quadratic(length, percentage), rel=1e-9)
    assert model.describe() == (
        "speed [TFLOP/s] = +5 +4*L +0.3*p -0.2*L^2 +0.5*L*p +0.004*p^2, L = log10(tokens), p = percentage; "
        "R^2 = 1.0000, worst error 0.0%, 15 rows"
    )


def test_formula_fits_the_h200_curve_at_small_percentages_too():
    model = FormulaModel.fit(grid())
    assert model.r_squared > 0.99
    assert model.worst_error < 0.05
    assert model.speed(16384, 10) == pytest.approx(34 * (1 - 400 / 16384), rel=0.05)


def test_weights_make_relative_errors_count():
    """Two contradicting rows at one point: the answer lies near the smaller, as 1/speed^2 weighs it."""
    model = FormulaModel.fit([row(100, 64, 1.0), row(100, 64, 3.0)])
    assert model.speed(64, 100) == pytest.approx((1 / 1 + 3 / 9) / (1 / 1 + 1 / 9))


@pytest.mark.parametrize("count", range(1, 6))
def test_formula_with_few_rows_passes_through_them(count):
    rows = [row(p, n, s) for (p, s), n in zip(FLASH.items(), (64, 4096, 1000, 300, 9000), strict=True)][
        :count
    ]
    model = FormulaModel.fit(rows)
    assert [model.speed(r.length, r.percentage) for r in rows] == pytest.approx(
        [r.speed_tflops for r in rows]
    )
    assert "R^2 says nothing" in model.describe()
    assert all(0 < model.speed(n, p) < math.inf for n in ASKED for p in (0.1, 10, 100))


def test_formula_below_zero_is_floored_in_proportion_to_the_percentage():
    model = FormulaModel.fit([row(p, 4096, s) for p, s in ((60, 10.0), (80, 200.0), (100, 350.0))])
    floor = FLOOR_FRACTION * 10.0 / 60
    assert model.speed(4096, 20) == pytest.approx(floor * 20)
    assert model.speed(4096, 1) == pytest.approx(floor)


def test_equal_speeds_are_fitted_wholly():
    model = FormulaModel.fit([row(p, n, 0.1) for p in (50, 90) for n in LENGTHS])
    assert model.r_squared == 1.0


def test_importing_calibration_stays_light():
    code = (
        "import sys, ringexp.calibration.formula, ringexp.calibration.lookup_table\n"
        "print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    heavy = ["torch", "numpy", "scipy", "sklearn", "pandas", "filelock"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_linear_interpolation_goes_straight_between_points():
    table = LookupTable([row(p, n, p * n / 1000) for p in (50, 100) for n in (1000, 4000)], "linear")
    assert table.speed(2000, 100) == pytest.approx(250)  # 2000 is half-way between them in log(length)
    assert table.speed(1000, 25) == pytest.approx(25)
    assert table.speed(4000, 100) == 400


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_polynomial_of_its_own_degree_is_found(degree):
    def speed(p: float, n: int) -> float:
        return 1 + math.log10(n) ** degree + p

    lengths = (512, 1024, *LENGTHS)  # a polynomial of degree 3 needs four
    model = FormulaModel.fit([row(p, n, speed(p, n)) for p in (25, 50, 75, 100) for n in lengths], degree)
    assert model.r_squared == pytest.approx(1)
    assert model.speed(3000, 60) == pytest.approx(speed(60, 3000), rel=1e-6)
    assert (f"*L^{degree}" in model.describe()) == (degree > 1)
