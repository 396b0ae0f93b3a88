"""Methods compared: the intervals and the correction are those of the literature."""

import math

import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from timm_ktg.suite.compare import compare, holm

BASE = {0: 28.1, 1: 29.4, 2: 27.7, 3: 28.9}
FOUND = {0: 30.2, 1: 30.9, 2: 30.1, 3: 30.4}


def test_holm_is_the_textbook_example() -> None:
    # Four hypotheses at 5 %: 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04, raised to the one before.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_holm_never_exceeds_one() -> None:
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


def test_intervals_are_welchs_and_students() -> None:
    found = compare("base", {"base": BASE, "new": FOUND})["new"]
    welch = ttest_ind([*FOUND.values()], [*BASE.values()], equal_var=False)
    paired = ttest_rel([*FOUND.values()], [*BASE.values()])
    assert found.welch.low == pytest.approx(welch.confidence_interval(0.95).low)
    assert found.welch.high == pytest.approx(welch.confidence_interval(0.95).high)
    assert found.paired.low == pytest.approx(paired.confidence_interval(0.95).low)
    assert found.paired.high == pytest.approx(paired.confidence_interval(0.95).high)
    assert found.p == pytest.approx(welch.pvalue)
    assert found.is_clear


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = compare("base", {"base": BASE, "new": {1: 30.0, 3: 30.0, 5: 99.0}})["new"]
    assert found.paired.gap == pytest.approx(((30 - 29.4) + (30 - 28.9)) / 2)
    assert math.isnan(found.paired.low)  # two pairs


def test_two_figures_say_nothing_about_chance() -> None:
    found = compare("base", {"base": BASE, "new": {0: 50.0, 1: 51.0}})["new"]
    assert found.p is None and not found.is_clear
    assert str(found.welch).endswith("[n too small]")


def test_methods_with_too_few_figures_do_not_count_in_the_correction() -> None:
    two = compare("base", {"base": BASE, "new": FOUND, "few": {0: 30.0}})
    one = compare("base", {"base": BASE, "new": FOUND})
    assert two["new"].p == one["new"].p


def test_nothing_is_compared_with_a_base_without_figures() -> None:
    assert compare("base", {"new": FOUND}) == {}


def test_methods_without_spread_have_intervals_of_no_width_and_no_p() -> None:
    same = dict.fromkeys(range(4), 97.5)
    found = compare("base", {"base": same, "new": {seed: 98.5 for seed in same}})["new"]
    assert (found.welch.low, found.welch.high) == (found.paired.low, found.paired.high) == (1, 1)
    assert found.p is None


def test_a_method_without_spread_is_compared_without_a_warning() -> None:
    same = dict.fromkeys(BASE, 30.0)
    found = compare("base", {"base": BASE, "new": same})["new"]
    paired = ttest_1samp([30.0 - value for value in BASE.values()], 0.0)
    assert found.p == pytest.approx(paired.pvalue)  # all spread is the base's
    assert found.welch.high == pytest.approx(paired.confidence_interval(0.95).high)
