"""Means, spreads and intervals, against figures worked out by hand or by another formula."""

import math
import statistics

import numpy as np
import pytest
from scipy.stats import t

from timm_ktg.records.sample import Sample, difference, gain


def test_sample_has_the_mean_and_the_spread_with_n_minus_1() -> None:
    sample = Sample((1.0, 2.0, 4.0))
    assert (sample.n, sample.mean) == (3, pytest.approx(7 / 3))
    assert sample.std == pytest.approx(math.sqrt((16 + 1 + 25) / 9 / 2))
    assert str(sample) == "2.33 ± 1.53 (n=3)"
    assert sample.as_json() == {"mean": sample.mean, "std": sample.std, "n": 3, "values": [1, 2, 4]}


def test_sample_of_one_has_no_spread() -> None:
    assert Sample((3.0,)).std is None
    assert str(Sample((3.0,))) == "3.00 (n=1)"


def test_difference_has_welchs_interval() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(70, 0.4, 5), generator.normal(71, 1.2, 4)
    parts = [each.var(ddof=1) / len(each) for each in (first, second)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 3)
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    gap = second.mean() - first.mean()
    assert difference(first.tolist(), second.tolist()) == pytest.approx(
        (gap, gap - half, gap + half)
    )


def test_difference_of_fewer_than_three_figures_has_no_interval() -> None:
    for first in ([1.0], [1.0, 1.0]):  # two that are equal had an interval of zero width
        gap, low, high = difference(first, [2.0, 3.0, 4.0])
        assert gap == 2.0 and math.isnan(low) and math.isnan(high)


def test_difference_of_samples_without_spread_is_exact() -> None:
    assert difference([1.0, 1.0, 1.0], [3.0, 3.0, 3.0]) == (2.0, 2.0, 2.0)


def test_error_of_a_test_set_is_that_of_a_share() -> None:
    # 360 images, 90 % right: the standard deviation of a draw of 360 labels is 30 of 100 points.
    assert Sample((88.0, 92.0)).error_of_test_set(360) == pytest.approx(30 / math.sqrt(360))
    drawn = np.random.default_rng(0).binomial(360, 0.9, 100_000) / 3.6
    assert Sample((90.0,)).error_of_test_set(360) == pytest.approx(drawn.std(), rel=0.01)


def test_gain_is_shown_with_its_interval_where_there_is_one() -> None:
    base, found = Sample((70.0, 71.0, 70.5)), Sample((72.0, 73.0, 72.5))
    gap, low, high = difference(base.values, found.values)
    assert gain(base, found) == f"{gap:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert gain(found, base) == f"{-gap:+.2f} [{-high:+.2f}, {-low:+.2f}]"
    assert gain(base, Sample((69.0,))) == "-1.50 [n too small]"
    errors = [each.error_of_test_set(100) for each in (base, found)]
    shown = f"{gain(base, found)}, test set ± {math.hypot(*errors):.2f}"
    assert gain(base, found, images=100) == shown
    assert gain(None, found) == gain(base, None) == "-"


def test_difference_to_a_sample_without_spread_is_welchs_without_a_warning() -> None:
    # All spread is the second's, so this is Student's interval with its 2 degrees: t = 4.3027.
    gap, low, high = difference([97.5, 97.5, 97.5], [97.0, 98.0, 98.5])
    half = 4.302653 * statistics.stdev([97.0, 98.0, 98.5]) / math.sqrt(3)
    assert (gap, low, high) == pytest.approx((1 / 3, 1 / 3 - half, 1 / 3 + half))


def test_difference_of_figures_that_are_equal_but_for_rounding_has_no_width() -> None:
    third = 0.1 + 0.2
    gap, low, high = difference([third, 0.3, 0.3], [1.3, 1.0 + third, 1.3])
    assert (gap, low, high) == pytest.approx((1.0, 1.0, 1.0))
