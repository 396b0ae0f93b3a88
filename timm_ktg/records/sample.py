"""The mean and spread of a few figures, and the interval of a difference."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

FEWEST = 3  # figures in a sample whose spread says anything


@dataclass(frozen=True)
class Sample:
    """Figures of runs that differ only by chance, such as one for every seed.

    Args:
        values: The figures, at least one.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """The standard deviation, with n - 1 degrees of freedom; None for a single figure."""
        return statistics.stdev(self.values) if self.n > 1 else None

    def __str__(self) -> str:
        """Return `97.20 ± 0.31 (n=5)`."""
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"

    def error_of_test_set(self, images: int) -> float:
        """Return the standard error that the size of a test set alone makes, in percentage points.

        It is that of a binomial share. All figures are of the same images, so it does not become
        smaller with n.

        Args:
            images: How many images the figures, accuracies in percent, are measured on.
        """
        share = self.mean / 100
        return 100 * math.sqrt(share * (1 - share) / images)

    def as_json(self) -> dict[str, Any]:
        """Return mean, std, n and the values."""
        return {"mean": self.mean, "std": self.std, "n": self.n, "values": list(self.values)}


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return how far the mean of `second` is above that of `first`, and the 95 % interval.

    The interval is Welch's: the samples are independent and may have different spreads. It is NaN
    if one of them has fewer than three figures.

    Args:
        first: The figures to compare with.
        second: The figures to compare.

    Returns:
        The difference, and the lower and upper end of the interval.

    Reference:
        Welch, "The generalization of Student's problem when several different population
        variances are involved", Biometrika 1947.
    """
    gap = statistics.fmean(second) - statistics.fmean(first)
    if min(len(first), len(second)) < FEWEST:
        return gap, float("nan"), float("nan")
    if len({*first}) == len({*second}) == 1:
        return gap, gap, gap  # scipy would warn that there is no spread
    from scipy.stats import ttest_ind

    with without_spread():
        interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    return gap, float(interval.low), float(interval.high)


@contextmanager
def without_spread() -> Iterator[None]:
    """Silence scipy's warning about figures that are all equal, as on small test sets."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        yield


def gain(base: Sample | None, found: Sample | None, images: int | None = None) -> str:
    """Return how far `found` is above `base`, such as `+1.20 [+0.31, +2.09]`.

    Args:
        base: The sample to compare with, if there is one.
        found: The sample to compare, if there is one.
        images: How many images both are measured on, if that is known.

    Returns:
        The difference, its 95 % interval, and the standard error that the number of images alone
        makes, as if the two were wrong on unrelated ones; `-` if there is nothing to compare.
    """
    if base is None or found is None:
        return "-"
    gap, low, high = difference(base.values, found.values)
    interval = "n too small" if math.isnan(low) else f"{low:+.2f}, {high:+.2f}"
    shown = f"{gap:+.2f} [{interval}]"
    if images is None:
        return shown
    error = math.hypot(base.error_of_test_set(images), found.error_of_test_set(images))
    return f"{shown}, test set ± {error:.2f}"
