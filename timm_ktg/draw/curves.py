"""A run's curves: the nodes' losses and top-1, and the share of samples that each gate passed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..records.files import replace_whole
from ..records.metrics import Metrics
from ..records.run_directory import RunDirectory
from .reading import by_name, load_graph, read_epochs
from .scene import Scene, scene_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TARGET = "#1B2430"
_NODES = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A8A8A")
_STYLES = ("-", "--", "-.", ":")
_ROWS = 14  # of a legend
_MARKED = 20  # epochs up to which each has a mark; a single one is nothing but its mark


class Line(NamedTuple):
    """A curve.

    Args:
        name: What the legend calls it; None: it is not there.
        values: By epoch; None where there is no value.
        style: Arguments of matplotlib's plot.
    """

    name: str | None
    values: list[float | None]
    style: Mapping[str, Any]


def draw_curves(run: Path) -> None:
    """Write a run's curves.png.

    Args:
        run: The run's directory.

    Raises:
        RecipeError: The run has no measures, or its files cannot be read.
    """
    epochs = read_epochs(run)
    directory = RunDirectory(run)
    figure = plot_curves(epochs, scene_of(load_graph(directory.recipe)))
    with replace_whole(directory.curves) as partial:
        # Tight: the legends, however wide, lie outside of the figure.
        figure.savefig(partial, format="png", dpi=120, bbox_inches="tight")


def plot_curves(epochs: Sequence[Metrics], scene: Scene) -> Figure:
    """Return the curves as a figure.

    Args:
        epochs: What every epoch measured.
        scene: The graph, for its target and the colours of its gates.
    """
    from matplotlib.figure import Figure

    figure = Figure((6.5, 9.5))
    loss, top1, passed = figure.subplots(3, 1, sharex=True, gridspec_kw={"hspace": 0.08})
    numbers = [epoch["epoch"] for epoch in epochs]
    _plot(loss, numbers, _losses(epochs, scene), "training loss")
    _plot(top1, numbers, _accuracies(epochs, scene), "top-1 %")
    _plot(passed, numbers, _shares(epochs, scene), "share passed by the gate")
    passed.set_ylim(-0.03, 1.03)
    passed.set_xlim(numbers[0] - 0.5, numbers[-1] + 0.5)
    passed.set_xlabel("epoch")
    figure.align_ylabels()
    return figure


def _plot(axes: Any, numbers: Sequence[float], lines: Iterator[Line], name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = {"marker": "o", "markersize": 3} if len(numbers) <= _MARKED else {}
    named = 0
    for line in lines:
        values = [float("nan") if value is None else value for value in line.values]
        # A name that begins with _ is not in the legend, says matplotlib.
        axes.plot(numbers, values, label=line.name or "_", **marker, **line.style)
        named += line.name is not None
    axes.set_ylabel(name)
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
    losses = [by_name(epoch, "train/loss/") for epoch in epochs]
    for name, shown, style in _nodes(scene):
        if any(name in epoch for epoch in losses):  # frozen nodes have none
            yield Line(shown, [epoch.get(name) for epoch in losses], style)


def _accuracies(epochs: Sequence[Metrics], scene: Scene) -> Iterator[Line]:
    """Yield top-1: validation as the losses are drawn, and training thin beside it."""
    train = [by_name(epoch, "train/top1/") for epoch in epochs]
    val = [by_name(epoch, "val/top1/") for epoch in epochs]
    for name, shown, style in _nodes(scene):
        if not any(name in epoch for epoch in train):
            continue  # left out
        watched = any(name in epoch for epoch in val)
        thin = {**style, "linewidth": 0.7, "alpha": 0.6} if watched else style
        yield Line(
            f"{shown}: train" if not watched else None, [epoch.get(name) for epoch in train], thin
        )
        if watched:
            yield Line(f"{shown}: val (train thin)", [epoch.get(name) for epoch in val], style)


def _shares(epochs: Sequence[Metrics], scene: Scene) -> Iterator[Line]:
    """Yield the share passed on every edge, in its gate's colour; like gates differ in dashes."""
    shares = [by_name(epoch, "train/passed/") for epoch in epochs]
    styles = {edge.color: cycle(_STYLES) for edge in scene.edges}
    for edge in scene.edges:
        name = edge.link.name
        if any(name in epoch for epoch in shares):
            style = {"color": edge.color, "linestyle": next(styles[edge.color]), "linewidth": 1.3}
            shown = f"{edge.source} → {edge.destination}: {edge.word}"
            yield Line(shown, [epoch.get(name) for epoch in shares], style)


def _nodes(scene: Scene) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield every node's name, how the legend shows it, and how its curves are drawn."""
    colours = cycle(_NODES)
    for node in scene.nodes:
        if node.role == "target":
            yield node.name, f"{node.name} (target)", {"color": _TARGET, "linewidth": 2.4}
        else:
            frozen = " (frozen)" if node.role == "frozen" else ""
            yield node.name, node.name + frozen, {"color": next(colours), "linewidth": 1.5}
