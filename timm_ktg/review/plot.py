"""A figure of the page: SVG that needs no script to be seen, and what a hover over it says.

The colors are those of the light page. Where the page is dark, its style inverts the figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from ..draw.svg import inlined

TEXT, MUTED, FAINT, LINE = "#1b2027", "#5a6472", "#97a1ae", "#d9dee5"
ACCENT, BEST, BAD, PAPER = "#1763c6", "#c04a00", "#b3261e", "#ffffff"
SERIES = (
    *("#1763c6", "#c04a00", "#12805c", "#8b3fb8", "#8a6a00"),
    *("#b3265f", "#0089a3", "#5c5f66", "#6d8a00", "#7a4a2b"),
)

WIDTH = 700.0  # points, as all lengths here
_LEGEND_ROW = 15.0
_LETTER = 5.5  # an average letter of a legend
_STYLE: Any = {
    "font.size": 9.5,
    "text.color": TEXT,
    "text.parse_math": False,  # a name may contain dollars
    "axes.edgecolor": LINE,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",  # a line without length is a dot
    "path.simplify": False,
    "svg.fonttype": "none",  # the browser's own letters
    "svg.hashsalt": "timm_ktg",
}

Said = str | int  # what a hover says: lines of text, or the number of a trial of the table
Points = Iterable[tuple[float, float]]


class Drawing(NamedTuple):
    """A figure, ready for the page.

    Args:
        svg: An `<svg>` element.
        points: What a hover says, as JSON: `[[x, y, what], ...]`, in units of the element.
    """

    svg: str
    points: str


class Plot:
    """A figure that is being drawn. It keeps where its points are, so that a hover finds them.

    Args:
        height: Its height in points, without the legend.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
    """

    def __init__(self, height: float, x: str = "", y: str = "") -> None:
        self._height = height
        self._said: list[tuple[float, float, Said]] = []
        with matplotlib.rc_context(_STYLE):
            self._figure = Figure((WIDTH / 72, height / 72), dpi=72, layout="constrained")
            self._figure.patch.set_alpha(0)
            self.axes: Any = self._figure.add_subplot(facecolor="none", xlabel=x, ylabel=y)

    def lines(
        self,
        name: str | None,
        lines: Iterable[Points],
        color: str,
        *,
        dots: float = 0.0,
        **style: Any,
    ) -> None:
        """Draw lines as one path, because thousands of elements would be slow and large.

        A line of one point needs a dot to be seen.

        Args:
            name: Name in the legend; None: not there.
            lines: The points of each line.
            color: Their color.
            dots: Size of a dot at each point; 0: no dots.
            style: Further arguments of matplotlib's `plot`.
        """
        nothing = (float("nan"),) * 2
        separate = [[*line, nothing] for line in lines]
        path = [point for line in separate for point in line]
        if not path:
            return
        # matplotlib leaves names that begin with _ out of the legend.
        self._draw(path, label=name or "_", color=color, **style)
        if dots:
            ends = [each for point in path for each in (point, point, nothing)]
            alpha = style.get("alpha")
            self._draw(ends, label="_", color=color, alpha=alpha, linewidth=dots)

    def say(self, x: float, y: float, what: Said) -> None:
        """Let a hover near a point say something."""
        self._said.append((x, y, what))

    def drawing(self, label: str) -> Drawing:
        """Return the figure.

        Args:
            label: Description of the figure for screen readers.
        """
        with matplotlib.rc_context(_STYLE):
            self._add_legend()
            self._figure.draw_without_rendering()
            self._figure.set_layout_engine("none")  # or saving would move the points again
            points = self._points()
            buffer = BytesIO()
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self._figure.savefig(buffer, format="svg", metadata=nothing)
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", buffer.getvalue().decode())
        svg = re.sub(r' d="[^"]*"', lambda path: _shortened(path[0]), svg)
        return Drawing(inlined(svg, label), points)

    def _draw(self, path: Sequence[tuple[float, float]], **style: Any) -> None:
        with matplotlib.rc_context(_STYLE):
            self.axes.plot([x for x, _ in path], [y for _, y in path], **style)

    def _add_legend(self) -> None:
        handles, names = self.axes.get_legend_handles_labels()
        if not names:
            return
        columns = max(1, min(len(names), int(WIDTH / (_LETTER * max(map(len, names)) + 40))))
        rows = -(-len(names) // columns)
        self._figure.set_figheight((self._height + rows * _LEGEND_ROW) / 72)
        self._figure.legend(handles, names, loc="outside upper left", ncols=columns)

    def _points(self) -> str:
        if not self._said:
            return "[]"
        height = 72 * self._figure.get_figheight()
        places = self.axes.transData.transform([(x, y) for x, y, _ in self._said])
        found = [
            (round(float(x), 1), round(height - float(y), 1), what)
            for (x, y), (_, _, what) in zip(places, self._said, strict=True)
        ]
        return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")


def _shortened(path: str) -> str:
    """Return an SVG path in tenths of a point, which is exact enough and less than half as long."""
    tenths = re.sub(r"(\.\d)\d+", r"\1", path)
    return re.sub(r"\s*\n\s*", "", re.sub(r"([MLC]) |\.0\b", r"\1", tenths))
