"""Pieces of text: their content, look and size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .geometry import Size
from .scene import SceneEdge, SceneNode

INK = "#1B2430"
PALE = "#5A6472"
FADED = "#A3ABB6"
TARGET = "#8A4B00"
ENSEMBLE = "#5B3FA0"
COPY = "#1F6B52"

_WORD, _NAME = 28, 36  # letters after which a line breaks


@dataclass(frozen=True)
class Piece:
    """A piece of text.

    Args:
        text: The text, in one line or several.
        points: Font size.
        color: Color of the letters.
        bold: Whether the letters are bold.
    """

    text: str
    points: float
    color: str = INK
    bold: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Arguments of matplotlib's Text, centered, independent of any matplotlibrc."""
        return {
            "s": self.text,
            "size": self.points,
            "color": self.color,
            "weight": "bold" if self.bold else "normal",
            "family": "DejaVu Sans",  # comes with matplotlib
            "ha": "center",
            "va": "center",
            "multialignment": "center",
            "linespacing": 1.1,
            "parse_math": False,  # a $ stays a $
            "usetex": False,
        }


CHIP = Piece("label", 8, INK, bold=True)


def box_pieces(node: SceneNode) -> list[Piece]:
    """Return the texts in a node's box, from the top: its role, name and model."""
    if node.role == "left out":
        role, ink, pale = [Piece(node.role, 7, PALE)], FADED, FADED
    else:
        color = {"target": TARGET, "ensemble": ENSEMBLE, "slow copy": COPY}.get(node.role, PALE)
        role, ink, pale = [Piece(node.role, 7.5, color, bold=True)], INK, PALE
    name = Piece(_broken(node.name, _NAME), 10.5, ink, bold=True)
    model = Piece(_broken(node.model, _NAME), 7.5, pale)
    return [*role, name, model] if node.role else [name, model]


def under_pieces(node: SceneNode) -> list[Piece]:
    """Return the text under a node's box: its top-1, if known."""
    color = TARGET if node.role == "target" else INK
    return [Piece(node.accuracy, 8, color, bold=True)] if node.accuracy else []


def word_piece(edge: SceneEdge) -> Piece:
    """Return the word of an edge."""
    return Piece(_broken(edge.word, _WORD), 8, edge.color)


def _broken(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, letters, break_on_hyphens=False))


def measure(pieces: Sequence[Piece]) -> list[Size]:
    """Return the sizes at which matplotlib draws pieces of text, in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=72)  # at 72 dpi a pixel is a point
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    boxes = [figure.text(0, 0, **piece.style).get_window_extent(renderer) for piece in pieces]
    return [Size(box.width, box.height) for box in boxes]
