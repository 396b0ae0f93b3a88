"""Rectangles and curves. A position is a complex number x + iy, in 1/72 inch, y upward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.complex128]


@dataclass(frozen=True)
class Size:
    """Width and height."""

    width: float
    height: float


@dataclass(frozen=True)
class Rect:
    """A rectangle.

    Args:
        center: The center.
        size: Width and height.
    """

    center: complex
    size: Size

    @property
    def left(self) -> float:
        """The smallest x."""
        return self.center.real - self.size.width / 2

    @property
    def right(self) -> float:
        """The largest x."""
        return self.center.real + self.size.width / 2

    @property
    def bottom(self) -> float:
        """The smallest y."""
        return self.center.imag - self.size.height / 2

    @property
    def top(self) -> float:
        """The largest y."""
        return self.center.imag + self.size.height / 2

    @property
    def corners(self) -> tuple[complex, complex, complex, complex]:
        """The corners, counterclockwise from the lower left."""
        left, right, bottom, top = self.left, self.right, self.bottom, self.top
        return (
            complex(left, bottom),
            complex(right, bottom),
            complex(right, top),
            complex(left, top),
        )

    def grown(self, by: float) -> Rect:
        """Return the rectangle with a margin on each side."""
        return Rect(self.center, Size(self.size.width + 2 * by, self.size.height + 2 * by))

    def overlaps(self, other: Rect) -> bool:
        """Return whether two rectangles share more than a border."""
        apart = self.center - other.center
        return (
            2 * abs(apart.real) < self.size.width + other.size.width
            and 2 * abs(apart.imag) < self.size.height + other.size.height
        )

    def count(self, points: Points) -> int:
        """Return how many of the points lie inside."""
        apart = points - self.center
        inside = (2 * np.abs(apart.real) <= self.size.width) & (
            2 * np.abs(apart.imag) <= self.size.height
        )
        return int(np.count_nonzero(inside))


def around(rects: Sequence[Rect]) -> Rect:
    """Return the smallest rectangle that holds all given ones."""
    left, right = min(rect.left for rect in rects), max(rect.right for rect in rects)
    bottom, top = min(rect.bottom for rect in rects), max(rect.top for rect in rects)
    center = complex((left + right) / 2, (bottom + top) / 2)
    return Rect(center, Size(right - left, top - bottom))


@dataclass(frozen=True)
class Curve:
    """A quadratic Bezier curve.

    Args:
        start: The start.
        control: The control point, toward which it bends.
        end: The end.
    """

    start: complex
    control: complex
    end: complex

    def at(self, share: float) -> complex:
        """Return the point at a share of the way, in 0..1."""
        rest = 1 - share
        return rest**2 * self.start + 2 * rest * share * self.control + share**2 * self.end

    def points(self, number: int) -> Points:
        """Return points along the curve, both ends included."""
        return np.array([self.at(share) for share in np.linspace(0, 1, number)])

    def between(self, first: float, last: float) -> Curve:
        """Return the part from one share of the way to another."""
        control = (
            (1 - first) * (1 - last) * self.start
            + (first + last - 2 * first * last) * self.control
            + first * last * self.end
        )
        return Curve(self.at(first), control, self.at(last))

    def outside(self, source: Sequence[Rect], destination: Sequence[Rect]) -> Curve:
        """Return the part from the border of one shape to the border of another.

        Args:
            source: Rectangles that cover the start.
            destination: Rectangles that cover the end.
        """
        shares = np.linspace(0, 1, 201)
        points = [np.array([self.at(share)]) for share in shares]
        left = [any(rect.count(point) for rect in source) for point in points]
        reached = [any(rect.count(point) for rect in destination) for point in points]
        return self.between(float(shares[left].max()), float(shares[reached].min()))
