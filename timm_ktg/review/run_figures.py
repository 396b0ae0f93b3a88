"""The figures of runs: accuracy and loss of each node, and the weight of each edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from ..records.metrics import (
    ALL_NETWORKS,
    mean_weights,
    newest_watched,
    node_losses,
    shares_passed,
    val_losses,
    watched_split,
)
from .figures import figure
from .run_data import Curve, RunData

COLORS = [f"var(--series-{number})" for number in range(1, 7)]


def targets_figure(runs: Sequence[RunData]) -> go.Figure:
    """Return the accuracy of each run's target by epoch, on the images that watch it."""
    plot = figure(380, xaxis_title="epoch", yaxis_title="target's top-1 %")
    for index, run in enumerate(runs):
        split = watched_split(newest_watched(run.metrics[0]))
        # An average that teaches nobody is measured on validation images only.
        curve = run.top1_curves(split).get(run.target, {})
        plot.add_trace(_line(f"{run.path} ({split})", curve, COLORS[index % len(COLORS)]))
    return plot


def accuracy_figure(run: RunData) -> go.Figure:
    """Return the accuracy of each node by epoch: training dotted, validation and test solid."""
    plot = figure(360, xaxis_title="epoch", yaxis_title="top-1 %")
    for split in ("train", "val", "test"):
        for color, (node, curve) in _colored(run, run.top1_curves(split)):
            plot.add_trace(_line(f"{node} {split}", curve, color, dotted=split == "train"))
    return plot


def loss_figure(run: RunData) -> go.Figure:
    """Return the loss by epoch: training, of nodes that learn, dotted; validation solid.

    A node's training loss is the sum over what it learns from; the other is its cross-entropy.
    """
    plot = figure(320, xaxis_title="epoch", yaxis_title="loss")
    for split, curves in (("train", run.curves(node_losses)), ("val", run.curves(val_losses))):
        for color, (node, curve) in _colored(run, curves):
            plot.add_trace(_line(f"{node} {split}", curve, color, dotted=split == "train"))
    return plot


def weight_figure(run: RunData) -> go.Figure:
    """Return the mean weight of each edge by epoch; dotted, the share of samples that passed."""
    plot = figure(320, xaxis_title="epoch", yaxis_title="mean weight")
    plot.update_yaxes(rangemode="tozero")
    shares = run.curves(shares_passed)
    for index, (edge, curve) in enumerate(run.curves(mean_weights).items()):
        color = COLORS[index % len(COLORS)]
        shown = edge.replace("->", " → ")
        plot.add_trace(_line(shown, curve, color))
        if edge in shares:
            plot.add_trace(_line(f"{shown}: share of samples", shares[edge], color, dotted=True))
    return plot


def _colored(run: RunData, curves: dict[str, Curve]) -> Iterator[tuple[str, tuple[str, Curve]]]:
    """Yield the curves of nodes, each with the color that the node has in all figures."""
    names = [*run.graph["nodes"], ALL_NETWORKS]
    for name, curve in curves.items():
        yield COLORS[names.index(name) % len(COLORS)], (name, curve)


def _line(name: str, curve: Curve, color: str, dotted: bool = False) -> go.Scatter:
    """Return the means of a curve by epoch; hovering shows their range over the seeds."""
    hover = []
    for epoch, sample in curve.items():
        values = sample.values
        spread = f"<br>{min(values):.4g} to {max(values):.4g}, n={sample.n}" * (sample.n > 1)
        hover.append(f"<b>{name}</b><br>epoch {epoch}: {sample.mean:.4g}{spread}")
    return go.Scatter(
        x=list(curve), y=[round(sample.mean, 5) for sample in curve.values()],
        name=name, mode="lines+markers", marker={"size": 4},
        line={"color": color, "width": 2, "dash": "dot" if dotted else "solid"},
        hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
