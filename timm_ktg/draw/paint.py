"""Paints a graph with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .geometry import Curve, Rect, Size, around
from .hull import BAND, PAD, Hull
from .layout import Layout, NodePlace, NodeSize, Sizes, lay_out
from .scene import Scene, SceneEdge, SceneNode
from .texts import (
    CHIP,
    PALE,
    Piece,
    box_pieces,
    measure,
    under_pieces,
    word_piece,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN = 16.0
_PAD = 7.0  # between a box's border and its text
_LINE = 3.0  # between two lines in a box
_TIE = "#6E7A88"  # color of lines that are no edges
_REGION = ("#C9B8E8", "#F4EFFC")  # border and fill of the region around an ensemble's members
_DPI = 144  # resolution of a PNG

# Fill, and color, thickness and style of the border, by role.
_BOXES: dict[str, tuple[str, str, float, Any]] = {
    "target": ("#FFE7A8", "#C77700", 2.6, "-"),
    "frozen": ("#E8F1FA", "#5A6472", 1.4, (0, (4, 2.5))),
    "left out": ("#FAFBFC", "#CDD3DA", 1.0, "-"),
    "ensemble": ("#F1ECFA", "#7A5FB0", 1.6, "-"),
    "slow copy": ("#EAF6F1", "#2F8266", 1.6, (0, (1, 1.6))),
    "": ("#F3F5F8", "#7A8594", 1.2, "-"),
}


def paint(scene: Scene) -> Figure:
    """Return the picture of a scene, on a white background.

    Args:
        scene: The scene.
    """
    from matplotlib.figure import Figure

    layout = lay_out(_sizes(scene))
    caption = _below(layout.bounds, _caption(scene))
    bounds = around([layout.bounds, caption]).grown(_MARGIN)
    figure = Figure((bounds.size.width / 72, bounds.size.height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(bounds.left, bounds.right))
    axes.set_ylim(bounds.bottom, bounds.top)
    axes.set_axis_off()
    for name, hull in layout.hulls.items():
        _paint_hull(axes, hull, name)
    _paint_ties(axes, layout)
    for edge in scene.edges:
        _paint_arrow(axes, edge, layout.arrows[edge.link])
    for node in scene.nodes:
        _paint_node(axes, node, layout.nodes[node.name])
    _paint_label(axes, layout)
    for edge in scene.edges:
        _paint_word(axes, edge, layout.words[edge.link])
    if scene.caption:
        axes.text(*_xy(caption.center), **_caption(scene).style)
    return figure


def rendered(figure: Figure, ending: str) -> bytes:
    """Return a figure as the content of a file.

    Args:
        figure: The figure.
        ending: `svg` or `png`.
    """
    import matplotlib

    # The same figure gives the same file, so it holds no date and no random names.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "timm_ktg", "svg.fonttype": "path"}):
        if ending == "svg":
            figure.savefig(buffer, format="svg", metadata=nothing)
        else:
            figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _sizes(scene: Scene) -> Sizes:
    """Return the sizes of everything in the layout."""
    words = measure([word_piece(edge) for edge in scene.edges])
    (chip,) = measure([CHIP])
    return Sizes(
        {node.name: _node_size(node) for node in scene.nodes},
        dict(zip([edge.link for edge in scene.edges], words, strict=True)),
        Size(chip.width + 12, chip.height + 8),
        scene.ensembles,
        scene.copies,
    )


def _node_size(node: SceneNode) -> NodeSize:
    texts = measure(box_pieces(node))
    height = sum(text.height for text in texts) + _LINE * (len(texts) - 1)
    box = Size(max(text.width for text in texts) + 2.5 * _PAD, height + 2 * _PAD)
    under = measure(under_pieces(node))
    return NodeSize(box, under[0] if under else Size(0, 0))


def _paint_node(axes: Any, node: SceneNode, place: NodePlace) -> None:
    _paint_box(axes, place.box, *_BOXES[node.role], gid=f"node-{node.name}")
    _paint_lines(axes, box_pieces(node), place.box.center.real, place.box.top - _PAD)
    _paint_lines(axes, under_pieces(node), place.under.center.real, place.under.top)


def _paint_lines(axes: Any, pieces: Sequence[Piece], x: float, top: float) -> None:
    """Paint pieces of text from the top down, starting at `top`."""
    for piece, size in zip(pieces, measure(pieces), strict=True):
        axes.text(x, top - size.height / 2, **piece.style, zorder=5)
        top -= size.height + _LINE


def _paint_label(axes: Any, layout: Layout) -> None:
    for link, chip in layout.chips.items():
        gid = _gid("label", link.destination, link.tag)
        _paint_box(axes, chip, "#E4E8ED", "#E4E8ED", 1, "-", gid)
        axes.text(*_xy(chip.center), **CHIP.style, zorder=5)


def _paint_box(
    axes: Any, box: Rect, fill: str, border: str, thickness: float, style: Any, gid: str
) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (box.left, box.bottom),
            box.size.width,
            box.size.height,
            boxstyle="round,pad=0,rounding_size=7",
            facecolor=fill,
            edgecolor=border,
            linewidth=thickness,
            linestyle=style,
            zorder=3,
            gid=gid,
        )
    )


def _paint_hull(axes: Any, hull: Hull, name: str) -> None:
    """Paint the region around an ensemble's members and its band as one shape with a border."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    for color, more in zip(_REGION, (2.4, 0.0), strict=True):
        for part, points, width in (
            ("hull", [*hull.corners, *hull.corners[:2]], 2 * PAD),  # round at the start, too
            ("band", hull.band, BAND),
        ):
            patch = PathPatch(
                Path([_xy(point) for point in points]),
                facecolor=color if part == "hull" else "none",
                edgecolor=color,
                linewidth=width + more,
                joinstyle="round",
                capstyle="butt",
                zorder=1,
                gid=_gid(part, name, "" if more else "fill"),
            )
            axes.add_patch(patch)


def _paint_ties(axes: Any, layout: Layout) -> None:
    """Paint the lines that are no edges: from members to ensembles, and to slow copies."""
    for pair, curve in layout.members.items():
        _paint_curve(axes, curve, _gid("member", *pair), arrowstyle="-", linewidth=1.0, color=_TIE)
    for pair, curve in layout.copies.items():
        _paint_curve(
            axes,
            curve,
            _gid("copy", *pair),
            arrowstyle="-|>,head_length=0.45,head_width=0.22",
            mutation_scale=11,
            linewidth=1.5,
            linestyle=(0, (1, 2)),
            color=_TIE,
        )


def _paint_arrow(axes: Any, edge: SceneEdge, curve: Curve) -> None:
    _paint_curve(
        axes,
        curve,
        _gid("edge", *edge.link[:3]),
        arrowstyle="-|>,head_length=0.5,head_width=0.25",
        mutation_scale=10 + 1.5 * edge.width,
        linewidth=edge.width,
        color=edge.color,
        alpha=0.3 if edge.left_out else 1,
    )


def _paint_curve(axes: Any, curve: Curve, gid: str, **style: Any) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points = [_xy(point) for point in (curve.start, curve.control, curve.end)]
    path = Path(points, [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    fixed: dict[str, Any] = {"joinstyle": "miter", "capstyle": "butt", "zorder": 2, "gid": gid}
    axes.add_patch(FancyArrowPatch(path=path, **style, **fixed))


def _paint_word(axes: Any, edge: SceneEdge, place: Rect) -> None:
    word = axes.text(*_xy(place.center), **word_piece(edge).style, zorder=4)
    word.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    word.set_alpha(0.5 if edge.left_out else 1)
    word.set_gid(_gid("word", *edge.link[:3]))


def _gid(*parts: str) -> str:
    """Return the id of an element, made of the parts that are not empty."""
    return "-".join(part for part in parts if part)


def _caption(scene: Scene) -> Piece:
    return Piece(scene.caption, 7.5, PALE)


def _below(bounds: Rect, piece: Piece) -> Rect:
    """Return the place of a text below everything else."""
    (size,) = measure([piece])
    gap = _MARGIN if size.height else 0
    return Rect(complex(bounds.center.real, bounds.bottom - gap - size.height / 2), size)


def _xy(point: complex) -> tuple[float, float]:
    return point.real, point.imag
