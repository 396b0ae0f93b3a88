"""Means, spreads and intervals, against figures worked out by hand or by another formula."""

import math

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


def test_difference_of_single_figures_has_no_interval() -> None:
    gap, low, high = difference([1.0], [2.0, 3.0])
    assert gap == 1.5 and math.isnan(low) and math.isnan(high)


def test_difference_of_samples_without_spread_is_exact() -> None:
    assert difference([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0, 2.0)


def test_gain_is_shown_with_its_interval_where_there_is_one() -> None:
    base, found = Sample((70.0, 71.0)), Sample((72.0, 73.0))
    gap, low, high = difference(base.values, found.values)
    assert gain(base, found) == f"+{gap:.2f} [{low:.2f}, +{high:.2f}]"
    assert gain(found, base) == f"{-gap:.2f} [{-high:.2f}, +{-low:.2f}]"
    assert gain(base, Sample((69.0,))) == "-1.50 [n too small]"
    assert gain(None, found) == gain(base, None) == "-"
