"""Plots of accuracy over cost for Weights & Biases; they need plotly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .fronts import Axis, Point, best_so_far, compared_costs, front
from .trials import COMPLETE, PRUNED, TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLORS = {COMPLETE: "#1763c6", PRUNED: "#97a1ae", "front": "#c04a00"}


def cost_plots(trials: Sequence[TrialRecord]) -> dict[str, go.Figure]:
    """Return accuracy over inference cost, over training cost, and over the epochs spent, by name.

    A plot without anything to compare is left out.

    Args:
        trials: The trials of a study.
    """
    found = {
        name: _front_plot(points, axis) for name, (axis, points) in compared_costs(trials).items()
    }
    best = best_so_far(trials)
    if best:
        found["best-so-far"] = _best_plot(best, trials)
    return found


def _front_plot(points: Sequence[Point], axis: Axis) -> go.Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    for state in (PRUNED, COMPLETE):
        some = [point for point in points if point.trial.state == state]
        if some:
            marker = {"color": COLORS[state], "size": 6, "opacity": 0.7}
            _add(plot, state, some, mode="markers", marker=marker)
    _add(plot, "no cheaper trial is better", front(points), **_steps(COLORS["front"]))
    plot.update_layout(xaxis_title=axis.title, yaxis_title="validation top-1 %")
    plot.update_xaxes(type="log")
    return plot


def _best_plot(best: list[Point], trials: Iterable[TrialRecord]) -> go.Figure:
    import plotly.graph_objects as go

    plot = go.Figure()
    last = best[-1]._replace(cost=sum(trial.epochs for trial in trials))
    _add(plot, "best so far", [*best, last], **_steps(COLORS["front"]))
    plot.update_layout(xaxis_title="epochs of all trials", yaxis_title="validation top-1 %")
    return plot


def _steps(color: str) -> dict[str, Any]:
    line = {"shape": "hv", "color": color, "width": 2}
    return {"mode": "lines+markers", "line": line, "marker": {"color": color, "size": 7}}


def _add(plot: go.Figure, name: str, points: Sequence[Point], **look: Any) -> None:
    import plotly.graph_objects as go

    plot.add_trace(
        go.Scatter(
            x=[float(f"{point.cost:.5g}") for point in points],
            y=[round(point.value, 4) for point in points],
            customdata=[point.trial.number for point in points],
            text=[f"trial {point.trial.number}" for point in points],
            hovertemplate="%{text}<br>%{x}<extra></extra>",
            name=name,
            **look,
        )
    )
