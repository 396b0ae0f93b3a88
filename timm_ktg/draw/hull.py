"""The region around the members of an ensemble: the convex hull of their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Curve, Points, Rect, Size

PAD = 9.0  # from the boxes of the members to the border of their region
BAND = 14.0  # thickness of the band from the region to the box of the ensemble


@dataclass(frozen=True)
class Hull:
    """The region around the members of an ensemble, and the band that joins it to the ensemble.

    Args:
        corners: Corners of the convex hull of the members' boxes, counterclockwise; the region
            is larger by `PAD`.
        band: Both ends of the band: the middle of the members, and a point of the ensemble.
    """

    corners: Points
    band: Points

    @classmethod
    def of(cls, members: Sequence[Rect], box: Rect, texts: Sequence[Rect]) -> Hull:
        """Return the region around these members.

        Args:
            members: Boxes of the members, with the texts under them.
            box: Box of the ensemble; the band ends behind its border.
            texts: Texts under the box; the band ends before them.
        """
        from scipy.spatial import ConvexHull

        points = np.array([corner for member in members for corner in member.corners])
        found = ConvexHull(np.column_stack([points.real, points.imag]))
        corners = points[found.vertices]
        middle = complex(corners.mean())
        line = Curve(middle, (middle + box.center) / 2, box.center)
        ends = (box.grown(-BAND / 2), *texts)
        band = line.outside([Rect(middle, Size(0, 0))], ends)
        return cls(corners, np.array([band.start, band.end]))

    def touches(self, rect: Rect) -> bool:
        """Return whether the region or the band touches a rectangle."""
        parts = ((self.corners, PAD), (self.band, BAND / 2))
        return any(overlap(part, np.array(rect.grown(by).corners)) for part, by in parts)

    def holds(self, rect: Rect) -> bool:
        """Return whether the region touches a rectangle; the band may."""
        return overlap(self.corners, np.array(rect.grown(PAD).corners))

    def overlaps(self, other: Hull) -> bool:
        """Return whether two regions share something."""
        return overlap(self.corners, other.corners)


def overlap(first: Points, second: Points) -> bool:
    """Return whether two convex shapes overlap: no edge of either is between them.

    Args:
        first: The corners of a shape in order; two for a line.
        second: The corners of the other.
    """
    for corners in (first, second):
        for normal in 1j * (np.roll(corners, -1) - corners):
            one, other = ((each * normal.conjugate()).real for each in (first, second))
            if one.max() <= other.min() or other.max() <= one.min():
                return False
    return True
