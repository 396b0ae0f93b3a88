"""Methods compared: means, differences, and which of many differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..records.sample import FEWEST, Sample, difference, without_spread

Figures = Mapping[int, float]  # by planned seed


@dataclass(frozen=True)
class Interval:
    """A difference in percentage points with its 95 % interval, NaN if there are too few figures.

    Args:
        gap: How far the method's mean is above the base's.
        low: Lower end.
        high: Upper end.
    """

    gap: float
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        """Return `+1.20 [+0.31, +2.09]`."""
        ends = "n too small" if math.isnan(self.low) else f"{self.low:+.2f}, {self.high:+.2f}"
        return f"{self.gap:+.2f} [{ends}]"


@dataclass(frozen=True)
class Comparison:
    """A method beside the one that it is compared with.

    Args:
        welch: The difference of all figures (Welch's interval).
        paired: The difference seed by seed, of the seeds that both have.
        p: Welch's p-value, corrected for the number of methods compared with this base (Holm);
            None: too few figures.
    """

    welch: Interval
    paired: Interval
    p: float | None

    @property
    def is_clear(self) -> bool:
        """Whether it is more than chance, at 5 % for all comparisons with this base."""
        return self.p is not None and self.p < 0.05


def compare(base: str, figures: Mapping[str, Figures]) -> dict[str, Comparison]:
    """Compare every method with one of them.

    Args:
        base: Name of that one.
        figures: Test top-1 in percent by method.

    Returns:
        A comparison for each other method that has figures; none if the base has no figures.
    """
    of_base = figures.get(base, {})
    others = {name: each for name, each in figures.items() if name != base and each}
    if not of_base:
        return {}
    raw = {name: _p_value(of_base, each) for name, each in others.items()}
    corrected = holm({name: p for name, p in raw.items() if p is not None})
    return {
        name: Comparison(
            Interval(*difference([*of_base.values()], [*each.values()])),
            _paired(of_base, each),
            corrected.get(name),
        )
        for name, each in others.items()
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for how many there are.

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 1979.
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def sample_of(figures: Figures) -> Sample:
    """Return a method's figures as a sample."""
    return Sample(tuple(figures.values()))


def _p_value(base: Figures, found: Figures) -> float | None:
    """Return Welch's p-value, two-sided; None if there are too few figures, or no spread."""
    first, second = [*base.values()], [*found.values()]
    if min(len(first), len(second)) < FEWEST or len({*first}) == len({*second}) == 1:
        return None
    from scipy.stats import ttest_ind

    with without_spread():
        return float(ttest_ind(second, first, equal_var=False).pvalue)


def _paired(base: Figures, found: Figures) -> Interval:
    """Return the difference over the seeds that both have, with Student's interval."""
    gaps = [found[seed] - base[seed] for seed in found if seed in base]
    if not gaps:
        return Interval(float("nan"))
    mean = math.fsum(gaps) / len(gaps)
    if len(gaps) < FEWEST:
        return Interval(mean)
    if len({*gaps}) == 1:
        return Interval(mean, mean, mean)  # scipy would warn that there is no spread
    from scipy.stats import ttest_1samp

    with without_spread():
        interval = ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    return Interval(mean, float(interval.low), float(interval.high))
