"""The difference of two arms against the size: the line, its band and its verdict."""

import math

import numpy as np
import pytest
from scipy import stats

from smolctl.analysis.ladder_notes import parsed_size, size_text
from smolctl.analysis.size_ladder import Lack, Line, Rung, Trend, judged_trend, trend_at
from smollm2.errors import UserError

SIZES = (5e5, 1e6, 2e6)
LEVEL = 0.025


def line(means, error=0.001, df=9, seeds=(10, 10, 10), gaps=(0.0, 0.0), sizes=SIZES):
    rungs = zip(sizes, means, seeds, strict=False)
    return Line(tuple(Rung(size, mean, error, df, n, gaps) for size, mean, n in rungs), LEVEL)


def test_the_line_is_that_of_weighted_least_squares():
    means, seeds = (0.01, 0.03, 0.02), (10, 6, 3)
    found = line(means, seeds=seeds)
    b, a = np.polyfit(np.log(SIZES), means, 1, w=np.sqrt(seeds))
    assert found.slope().mean == pytest.approx(b)
    for size in (*SIZES, 135e6):
        assert found.at(size).mean == pytest.approx(a + b * math.log(size))


def test_the_band_of_two_sizes_is_that_of_their_differences():
    found = line((0.01, 0.03), seeds=(5, 5))
    half = 0.001 * stats.t.isf(LEVEL / 2, 9)
    assert found.at(5e5).low == pytest.approx(0.01 - half)
    assert found.at(1e6).high == pytest.approx(0.03 + half)
    slope = found.slope()
    assert slope.mean == pytest.approx(0.02 / math.log(2))
    assert slope.high - slope.mean == pytest.approx(math.sqrt(2) * half / math.log(2))


def test_a_tuning_gap_widens_the_side_on_which_it_could_move_the_difference():
    tight, wide = line((0.01, 0.01, 0.01)), line((0.01, 0.01, 0.01), gaps=(0.002, 0.005))
    assert wide.at(1e6).low == pytest.approx(tight.at(1e6).low - 0.005)
    assert wide.at(1e6).high == pytest.approx(tight.at(1e6).high + 0.002)
    # A slope rises if the large arm's base and the small arm improve: both gaps count.
    span = math.log(SIZES[-1] / SIZES[0])
    assert wide.slope().high == pytest.approx(tight.slope().high + 0.007 / span)
    assert wide.slope().low == pytest.approx(tight.slope().low - 0.007 / span)


@pytest.mark.parametrize(
    ("means", "at", "expected"),
    [
        ((0.05, 0.05, 0.05), 2e6, Trend.PERSISTS),
        ((-0.05, -0.05, -0.05), 2e6, Trend.PERSISTS),
        ((0.03, 0.04, 0.05), 2e6, Trend.GROWS),
        ((-0.03, -0.04, -0.05), 135e6, Trend.GROWS),
        ((0.05, 0.04, 0.03), 2e6, Trend.SHRINKS),
        ((-0.05, -0.025, 0.0), 2e6, Trend.SHRINKS),  # to nothing
        ((0.05, 0.03, 0.01), 135e6, Trend.SHRINKS),  # beyond nothing: to a sign never measured
        ((0.0, 0.0, 0.0), 2e6, Trend.UNKNOWN),
        ((0.0, 0.02, 0.04), 5e5, Trend.UNKNOWN),  # none at the size asked about
    ],
)
def test_trends(means, at, expected):
    assert judged_trend(line(means), at)[0] is expected


def test_what_is_missing_for_a_trend():
    assert judged_trend(line((0.0, 0.0, 0.0)), 2e6) == (Trend.UNKNOWN, (Lack.SEEDS,))
    wide = line((0.05, 0.05, 0.05), gaps=(0.1, 0.1))
    assert judged_trend(wide, 2e6) == (Trend.UNKNOWN, (Lack.TUNING,))
    two = line((0.05, 0.05), seeds=(5, 5))
    assert judged_trend(two, 1e6)[0] is Trend.PERSISTS
    assert judged_trend(two, 135e6) == (Trend.UNKNOWN, (Lack.SIZES,))
    assert judged_trend(two, 1e5) == (Trend.UNKNOWN, (Lack.SIZES,))
    bent = line((0.05, 0.09, 0.05))
    assert bent.misses() == list(SIZES)
    assert judged_trend(bent, 2e6) == (Trend.UNKNOWN, (Lack.LINE,))


def test_a_line_of_another_sign_at_a_measured_size_does_not_persist():
    """The band at the last size excludes 0, the slope is open, and the line crosses zero."""
    first, second = Rung(1e6, -0.001, 0.02, 30, 10), Rung(1e7, 0.03, 0.001, 30, 10)
    found = Line((first, second), LEVEL)
    assert (found.at(1e7).side, found.slope().side) == (1, 0)
    assert trend_at(found, 1e7) is Trend.UNKNOWN


def test_weights_from_estimated_errors_would_not_cover():
    """Why a rung weighs as many seeds as it has."""
    rng = np.random.default_rng(3)
    sizes = np.geomspace(5e5, 6.4e7, 8)
    missed = {True: 0, False: 0}
    for _ in range(1500):
        runs = rng.normal(size=(8, 3))
        errors = runs.std(axis=1, ddof=1) / math.sqrt(3)
        for estimated in missed:
            weights = 1 / errors**2 if estimated else np.full(8, 3)
            rungs = zip(sizes, runs.mean(axis=1), errors, weights, strict=True)
            one = Line(tuple(Rung(size, m, e, 2, w) for size, m, e, w in rungs), LEVEL)
            missed[estimated] += one.at(6e6).side != 0
    assert missed[False] / 1500 <= LEVEL
    assert missed[True] / 1500 > 1.5 * LEVEL


@pytest.mark.parametrize(
    ("text", "number"), [("0.5M", 5e5), ("1M", 1e6), ("135M", 1.35e8), ("1.5B", 1.5e9), ("2k", 2e3)]
)
def test_sizes_are_read_as_they_are_written(text, number):
    assert parsed_size(text) == number
    assert size_text(number) in (text, "500k")


@pytest.mark.parametrize("text", ["", "M", "1", "1 M", "1m", "1e6", "-1M", "1.M", None, 5, "1G"])
def test_other_texts_are_no_sizes(text):
    with pytest.raises(UserError, match="is a number of parameters such as"):
        parsed_size(text)
