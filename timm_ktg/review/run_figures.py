"""The figures of runs: accuracy and loss of each node, and the weight of each edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.ticker import MaxNLocator

from ..records.metrics import (
    ALL_NETWORKS,
    mean_weights,
    newest_watched,
    node_losses,
    shares_passed,
    val_losses,
    watched_split,
)
from .plot import SERIES, Drawing, Plot
from .run_data import Curve, RunData


def targets_figure(runs: Sequence[RunData]) -> Drawing:
    """Return the accuracy of each run's target by epoch, on the images that watch it."""
    plot = Plot(270, "epoch", "target's top-1 %")
    for index, run in enumerate(runs):
        split = watched_split(newest_watched(run.metrics[0]))
        # An average that teaches nobody is measured on validation images only.
        curve = run.top1_curves(split).get(run.target, {})
        color = SERIES[index % len(SERIES)]
        _accuracy(plot, f"{run.path} ({split})", curve, color)
    return plot.drawing("Accuracy of every run's target by epoch")


def accuracy_figure(run: RunData) -> Drawing:
    """Return the accuracy of each node by epoch: training dotted, validation and test solid."""
    plot = Plot(270, "epoch", "top-1 %")
    for split in ("train", "val", "test"):
        for color, (node, curve) in _colored(run, run.top1_curves(split)):
            _accuracy(plot, f"{node} {split}", curve, color, dotted=split == "train")
    return plot.drawing("Accuracy of each node by epoch")


def loss_figure(run: RunData) -> Drawing:
    """Return the loss by epoch: training, of nodes that learn, dotted; validation solid.

    A node's training loss is the sum over what it learns from; the other is its cross-entropy.
    """
    plot = Plot(230, "epoch", "loss")
    for split, curves in (("train", run.curves(node_losses)), ("val", run.curves(val_losses))):
        for color, (node, curve) in _colored(run, curves):
            name = f"{node} {split}"
            _line(plot, name, name, curve, color, dotted=split == "train")
    return plot.drawing("Loss of each node by epoch")


def weight_figure(run: RunData) -> Drawing:
    """Return the mean weight of each edge by epoch; dotted, the share of samples that passed."""
    plot = Plot(230, "epoch", "mean weight")
    shares = run.curves(shares_passed)
    for index, (edge, curve) in enumerate(run.curves(mean_weights).items()):
        color = SERIES[index % len(SERIES)]
        shown = edge.replace("->", " → ")
        _line(plot, shown, shown, curve, color)
        if edge in shares:
            name = f"{shown}: share of samples"
            _line(plot, name, name, shares[edge], color, dotted=True)
    plot.axes.set_ylim(bottom=0)
    return plot.drawing("Mean weight of each edge, by epoch")


def _colored(run: RunData, curves: dict[str, Curve]) -> Iterator[tuple[str, tuple[str, Curve]]]:
    """Yield the curves of nodes, each with the color that the node has in all figures."""
    names = [*run.graph["nodes"], ALL_NETWORKS]
    for name, curve in curves.items():
        yield SERIES[names.index(name) % len(SERIES)], (name, curve)


def _accuracy(plot: Plot, name: str, curve: Curve, color: str, dotted: bool = False) -> None:
    """Draw a curve that should be high. Its best epoch is marked, and named beside the last."""
    if not curve:
        return
    last = list(curve.values())[-1].mean
    best = max(curve, key=lambda epoch: curve[epoch].mean)
    top = curve[best].mean
    _line(plot, f"{name}: {last:.2f}, best {top:.2f} at {best}", name, curve, color, dotted)
    plot.lines(None, [[(best, top)]], color, dots=7, alpha=0.5 if dotted else 1)


def _line(
    plot: Plot, shown: str, name: str, curve: Curve, color: str, dotted: bool = False
) -> None:
    """Draw the means of a curve by epoch; hovering shows their range over the seeds."""
    points = [(epoch, sample.mean) for epoch, sample in curve.items()]
    plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style = {"linestyle": ":", "linewidth": 1.2} if dotted else {"linewidth": 1.6}
    plot.lines(shown, [points], color, dots=3, **style)
    for epoch, sample in curve.items():
        values = sample.values
        spread = f"\n{min(values):.4g} to {max(values):.4g}, n={sample.n}" * (sample.n > 1)
        plot.say(epoch, sample.mean, f"{name}\nepoch {epoch}: {sample.mean:.4g}{spread}")
