"""The curves of a run: losses and top-1 of the nodes, and the mean weight of every edge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..records.files import replace_whole
from ..records.metrics import (
    ALL_NETWORKS,
    EPOCH,
    Metrics,
    mean_weights,
    node_losses,
    shares_passed,
    top1_by_node,
    val_losses,
)
from ..records.run_directory import RunDirectory
from .reading import load_graph, measured_epochs
from .scene import Scene, scene_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TARGET = "#1B2430"
_NODES = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A8A")
_TOGETHER = {"color": _TARGET, "linewidth": 1.2, "linestyle": ":"}  # all networks
_STYLES = ("-", "--", "-.", ":")
_ROWS = 14  # in a legend
_MARKED = 20  # up to this many epochs, each gets a marker; a single epoch has no line


class Line(NamedTuple):
    """A curve.

    Args:
        name: Name in the legend; None: not in the legend.
        values: The value of each epoch, None where there is none.
        style: Arguments of matplotlib's `plot`.
        best: Whether the largest value is marked, and named in the legend.
    """

    name: str | None
    values: list[float | None]
    style: Mapping[str, Any]
    best: bool = False


def draw_curves(path: Path, output: Path | None = None) -> None:
    """Write the curves of a run as PNG.

    Args:
        path: The directory of the run.
        output: The file; None: the run's curves.png.

    Raises:
        RecipeError: The run has measured nothing yet, or its files cannot be read.
    """
    run = RunDirectory(path)
    figure = plot_curves(measured_epochs(run), scene_of(load_graph(run.recipe)))
    with replace_whole(output or run.curves) as partial:
        # Tight, because the legends are outside the figure and can be wide.
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")


def plot_curves(epochs: Sequence[Metrics], scene: Scene) -> Figure:
    """Return the curves as a figure.

    Args:
        epochs: The metrics of each epoch.
        scene: The graph, for its target and the colors of its gates.
    """
    from matplotlib.figure import Figure

    figure = Figure((6.5, 9.5))
    loss, top1, weight = figure.subplots(3, 1, sharex=True, gridspec_kw={"hspace": 0.08})
    numbers = [epoch[EPOCH] for epoch in epochs]
    _plot(loss, numbers, _losses(epochs, scene), "loss")
    _plot(top1, numbers, _accuracies(epochs, scene), "top-1 %")
    _plot(weight, numbers, _weights(epochs, scene), "mean weight, gate times edge")
    weight.set_ylim(-0.03, max(1.03, weight.get_ylim()[1]))  # an edge may weigh more than 1
    weight.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    weight.set_xlabel("epoch")
    figure.align_ylabels()
    return figure


def _plot(axes: Any, numbers: Sequence[float], lines: Iterator[Line], what: str) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = {"marker": "o", "markersize": 3} if len(numbers) <= _MARKED else {}
    named = 0
    for line in lines:
        # An epoch that was not evaluated leaves no gap.
        points = [each for each in zip(numbers, line.values, strict=True) if each[1] is not None]
        shown = line.name or "_"  # matplotlib omits names that begin with _ from the legend
        if line.best:
            epoch, value = max(points, key=itemgetter(1))
            shown += f", best {value:.2f} at {epoch:.0f}"
            axes.scatter([epoch], [value], color=line.style["color"], s=30, zorder=4)
        axes.plot(*zip(*points, strict=True), label=shown, **marker, **line.style)
        named += line.name is not None
    axes.set_ylabel(what)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if named:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            borderaxespad=0,
            frameon=False,
            fontsize=8,
            ncols=-(-named // _ROWS),
        )


def _losses(epochs: Sequence[Metrics], scene: Scene) -> Iterator[Line]:
    """Yield the curves of the losses: training, of nodes that learn, and validation thin."""
    losses = [node_losses(epoch) for epoch in epochs]
    val = [val_losses(epoch) for epoch in epochs]
    for name, shown, style in _nodes(scene):
        if any(name in epoch for epoch in losses):  # frozen nodes have no loss
            watched = any(name in epoch for epoch in val)
            said = f"{shown}: train (val thin)" if watched else shown
            yield Line(said, [epoch.get(name) for epoch in losses], style)
        if any(name in epoch for epoch in val):
            thin = {**style, "linewidth": 0.7, "alpha": 0.6}
            yield Line(None, [epoch.get(name) for epoch in val], thin)


def _accuracies(epochs: Sequence[Metrics], scene: Scene) -> Iterator[Line]:
    """Yield the top-1 curves: validation in the style of the losses, training thin."""
    train = [top1_by_node(epoch, "train") for epoch in epochs]
    val = [top1_by_node(epoch, "val") for epoch in epochs]
    for name, shown, style in _nodes(scene):
        # One that is left out has neither; a slow copy that teaches nobody is only validated.
        trained, watched = (any(name in epoch for epoch in split) for split in (train, val))
        if trained:
            thin = {**style, "linewidth": 0.7, "alpha": 0.6} if watched else style
            values = [epoch.get(name) for epoch in train]
            yield Line(None if watched else f"{shown}: train", values, thin, best=not watched)
        if watched:
            said = f"{shown}: val (train thin)" if trained else f"{shown}: val"
            yield Line(said, [epoch.get(name) for epoch in val], style, best=True)
    if any(ALL_NETWORKS in epoch for epoch in val):
        values = [epoch.get(ALL_NETWORKS) for epoch in val]
        yield Line(f"{ALL_NETWORKS}: val", values, _TOGETHER, best=True)


def _weights(epochs: Sequence[Metrics], scene: Scene) -> Iterator[Line]:
    """Yield the mean weight on each edge, a color for each gate and dashes for each edge of it.

    A gate that stops samples also has the share that passed, thin beside it.
    """
    weights = [mean_weights(epoch) for epoch in epochs]
    shares = [shares_passed(epoch) for epoch in epochs]
    styles = {edge.color: cycle(_STYLES) for edge in scene.edges}
    for edge in scene.edges:
        if not any(edge.name in epoch for epoch in weights):
            continue
        style = {"color": edge.color, "linestyle": next(styles[edge.color]), "linewidth": 1.3}
        shown = f"{edge.source} → {edge.destination}: {edge.word}"
        if any(edge.name in epoch for epoch in shares):
            thin = {**style, "linewidth": 0.7, "alpha": 0.6}
            yield Line(None, [epoch.get(edge.name) for epoch in shares], thin)
            shown += " (samples thin)"
        yield Line(shown, [epoch.get(edge.name) for epoch in weights], style)


def _nodes(scene: Scene) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the name of each node, its name in the legend, and the style of its curves."""
    colors = cycle(_NODES)
    for node in scene.nodes:
        if node.role == "target":
            yield node.name, f"{node.name} (target)", {"color": _TARGET, "linewidth": 2.4}
        else:
            role = f" ({node.role})" if node.role else ""
            yield node.name, node.name + role, {"color": next(colors), "linewidth": 1.5}
