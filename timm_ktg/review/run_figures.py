"""The figures of runs: each node's accuracy and loss by epoch, and what each gate lets through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from .figures import figure
from .run_data import Curve, RunData

COLOURS = [f"var(--series-{number})" for number in range(1, 7)]


def targets_figure(runs: Sequence[RunData]) -> go.Figure:
    """Return the accuracy of every run's target by epoch, on the images that watch it."""
    plot = figure(380, xaxis_title="epoch", yaxis_title="target's top-1 %")
    for index, run in enumerate(runs):
        split = _watched(run)
        curve = run.curves(f"{split}/top1/")[run.target]
        plot.add_trace(_line(f"{run.name} ({split})", curve, COLOURS[index % len(COLOURS)]))
    return plot


def accuracy_figure(run: RunData) -> go.Figure:
    """Return the accuracy of every node by epoch: training dotted, validation and test full."""
    plot = figure(360, xaxis_title="epoch", yaxis_title="top-1 %")
    for split in ("train", "val", "test"):
        for colour, (node, curve) in _coloured(run, run.curves(f"{split}/top1/")):
            plot.add_trace(_line(f"{node} {split}", curve, colour, dotted=split == "train"))
    return plot


def loss_figure(run: RunData) -> go.Figure:
    """Return the loss of every node that learns by epoch."""
    plot = figure(320, xaxis_title="epoch", yaxis_title="training loss")
    nodes = {name: curve for name, curve in run.curves("train/loss/").items() if "->" not in name}
    for colour, (node, curve) in _coloured(run, nodes):
        plot.add_trace(_line(node, curve, colour))
    return plot


def passed_figure(run: RunData) -> go.Figure:
    """Return the share of samples that each gate lets through by epoch, in percent."""
    plot = figure(320, xaxis_title="epoch", yaxis_title="share passed, %")
    plot.update_yaxes(range=[-3, 103])
    for index, (edge, curve) in enumerate(run.curves("train/passed/").items()):
        colour = COLOURS[index % len(COLOURS)]
        shown = edge.replace("->", " → ")
        plot.add_trace(_line(shown, curve, colour, scale=100, dotted=index >= len(COLOURS)))
    return plot


def _watched(run: RunData) -> str:
    """Return the split that the run is watched by; without validation images that of training."""
    return "val" if run.target in run.curves("val/top1/") else "train"


def _coloured(run: RunData, curves: dict[str, Curve]) -> Iterator[tuple[str, tuple[str, Curve]]]:
    """Yield the curves of nodes, each with the colour that its node has in all figures."""
    names = list(run.graph["nodes"])
    for name, curve in curves.items():
        yield COLOURS[names.index(name) % len(COLOURS)], (name, curve)


def _line(
    name: str, curve: Curve, colour: str, scale: float = 1, dotted: bool = False
) -> go.Scatter:
    """Return the means of a curve by epoch; their range over the seeds is shown on a hover."""
    hover = []
    for epoch, sample in curve.items():
        values = [scale * value for value in sample.values]
        spread = f"<br>{min(values):.4g} to {max(values):.4g}, n={sample.n}" * (sample.n > 1)
        hover.append(f"<b>{name}</b><br>epoch {epoch}: {scale * sample.mean:.4g}{spread}")
    return go.Scatter(
        x=list(curve), y=[round(scale * sample.mean, 5) for sample in curve.values()],
        name=name, mode="lines+markers", marker={"size": 4},
        line={"color": colour, "width": 2, "dash": "dot" if dotted else "solid"},
        hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
