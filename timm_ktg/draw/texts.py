"""Pieces of text: what they say, how they look, how large they are."""

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

_WORD, _NAME = 28, 36  # letters after which a line is broken


@dataclass(frozen=True)
class Piece:
    """A piece of text.

    Args:
        text: What it says, in one line or several.
        points: Size of the letters.
        color: Of the letters.
        bold: Whether they are bold.
    """

    text: str
    points: float
    color: str = INK
    bold: bool = False

    @property
    def style(self) -> dict[str, Any]:
        """Arguments of matplotlib's Text, centered, whatever a matplotlibrc says."""
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
            "parse_math": False,  # a $ is a $
            "usetex": False,
        }


CHIP = Piece("label", 8, INK, bold=True)


def box_pieces(node: SceneNode) -> list[Piece]:
    """Return what stands in a node's box, from the top: its role, its name, its model."""
    if node.role == "left out":
        role, ink, pale = [Piece(node.role, 7, PALE)], FADED, FADED
    else:
        color = TARGET if node.role == "target" else PALE
        role, ink, pale = [Piece(node.role, 7.5, color, bold=True)], INK, PALE
    name = Piece(_broken(node.name, _NAME), 10.5, ink, bold=True)
    model = Piece(_broken(node.model, _NAME), 7.5, pale)
    return [*role, name, model] if node.role else [name, model]


def under_pieces(node: SceneNode) -> list[Piece]:
    """Return what stands under a node's box: its top-1, where it is known."""
    color = TARGET if node.role == "target" else INK
    return [Piece(node.accuracy, 8, color, bold=True)] if node.accuracy else []


def word_piece(edge: SceneEdge) -> Piece:
    """Return an edge's word."""
    return Piece(_broken(edge.word, _WORD), 8, edge.color)


def _broken(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, letters, break_on_hyphens=False))


def measure(pieces: Sequence[Piece]) -> list[Size]:
    """Return how large matplotlib draws pieces of text, in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=72)  # where a pixel is a point
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    boxes = [figure.text(0, 0, **piece.style).get_window_extent(renderer) for piece in pieces]
    return [Size(box.width, box.height) for box in boxes]
