"""A study's figures. Colors are variables of the page's style, which is light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any

import plotly.graph_objects as go

from ..records.sample import Sample
from ..search.trials import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord
from .stages import best_quarter, choice_of, importances, label, means, parameters
from .study_data import StudyData

Points = Iterable[tuple[float, float]]

MOST_BEST = 30  # trials of the best quarter side by side; more would hide each other
CLEAR = "rgba(0,0,0,0)"
_KINDS = {
    RUNNING: "var(--muted)",
    PRUNED: "var(--faint)",
    FAILED: "var(--bad)",
    COMPLETE: "var(--accent)",
}


def figure(height: int, **layout: Any) -> go.Figure:
    """Return an empty figure in the style of the page."""
    plain = go.Figure()
    plain.update_layout(
        template="none",
        height=height,
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": "var(--text)", "family": "inherit", "size": 13},
        margin={"l": 56, "r": 16, "t": 8, "b": 48},
        hovermode="closest",
        hoverlabel={"bgcolor": "var(--panel)", "font": {"color": "var(--text)"}, "align": "left"},
        modebar={"bgcolor": CLEAR, "color": "var(--faint)", "activecolor": "var(--accent)"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    axis = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False}
    plain.update_xaxes(**axis)
    plain.update_yaxes(**axis)
    plain.update_layout(**layout)
    return plain


def epochs_figure(study: StudyData) -> go.Figure:
    """Return every trial's accuracy by epoch, with the rungs and how many reached them."""
    plot = figure(420, xaxis_title="epoch", yaxis_title="validation top-1 %")
    best = study.best[0]
    for kind, color in _KINDS.items():
        trials = [trial for trial in study.trials if trial.state == kind and trial is not best]
        if any(trial.values for trial in trials):
            look = {"line": {"color": color, "width": 1}, "opacity": 0.6, "marker": {"size": 4}}
            plot.add_trace(_lines(kind, [(trial, trial.values.items()) for trial in trials], look))
    look = {"line": {"color": "var(--best)", "width": 3}, "marker": {"size": 7}}
    plot.add_trace(_lines(f"best: trial {best.number}", [(best, best.values.items())], look))
    ticks = list(study.stages)
    plot.update_xaxes(
        type="log", tickvals=ticks, ticktext=list(map(str, ticks)), tickangle=0,
        gridcolor="var(--faint)", griddash="dot",
    )  # fmt: skip
    reached = [
        {"x": math.log10(epoch), "y": 0, "text": f"{len(trials):,}", "xanchor": "left"}
        for epoch, trials in study.stages.items()
    ]
    _write(plot, reached, yref="paper", yanchor="bottom")
    return plot


def parallel_figure(trials: Sequence[TrialRecord], epoch: int) -> go.Figure:
    """Return the choices of trials that reached an epoch side by side with their accuracy."""
    axes = parameters(trials)
    values = [trial.values[epoch] for trial in trials]
    low, high = min(values), max(values)
    top = best_quarter(trials, epoch)[:MOST_BEST]
    numbers = {trial.number for trial in top}
    others = [trial for trial in trials if trial.number not in numbers]

    def line(trial: TrialRecord) -> Points:
        # Lines of one choice lie side by side, not on top of each other.
        spread = Random(trial.number)
        for place, (name, choices) in enumerate(axes.items()):
            choice = choices.index(choice_of(trial, name))
            yield place, (choice + 0.2 + 0.6 * spread.random()) / len(choices)
        yield len(axes), (trial.values[epoch] - low) / (high - low or 1.0)

    plot = figure(460, margin={"l": 40, "r": 64, "t": 8, "b": 56})
    groups: list[tuple[str, Sequence[TrialRecord], str, float, float]] = [
        ("others", others, "var(--faint)", 1, 0.3),
        (f"best {len(top)}", top[1:], "var(--accent)", 1, 0.8),
        (f"best: trial {top[0].number}", top[:1], "var(--best)", 3, 1),
    ]
    for name, group, color, width, opacity in groups:
        look = {"line": {"color": color, "width": width}, "opacity": opacity}
        plot.add_trace(_lines(name, [(each, line(each)) for each in group], look, mode="lines"))
    _parallel_axes(plot, axes, (low, high), epoch)
    return plot


def _parallel_axes(
    plot: go.Figure, axes: Mapping[str, Sequence[str]], ends: tuple[float, float], epoch: int
) -> None:
    """Draw an axis for each parameter, its categories from bottom to top, and one for accuracy."""
    names = [label(name).replace(" → ", " →<br>").replace(" of ", " of<br>") for name in axes]
    names.append(f"top-1 %<br>epoch {epoch}")
    plot.update_xaxes(
        tickvals=list(range(len(names))), ticktext=names, gridcolor="var(--muted)",
        range=[-0.15, len(names) - 0.9], tickangle=0, fixedrange=True,
    )  # fmt: skip
    plot.update_yaxes(visible=False, range=[-0.02, 1.02], fixedrange=True)
    texts = [
        (place, (index + 0.5) / len(choices), choice)
        for place, choices in enumerate(axes.values())
        for index, choice in enumerate(choices)
    ]
    texts += [(len(axes), height, f"{end:.1f}") for height, end in enumerate(ends)]
    notes = [
        {"x": place, "y": y, "text": text, "xanchor": "left", "bgcolor": "var(--panel)"}
        for place, y, text in texts
    ]
    _write(plot, notes)


def _write(plot: go.Figure, notes: Sequence[Mapping[str, Any]], **common: Any) -> None:
    """Add texts all at once, because plotly checks all that exist for each one added."""
    font = {"size": 11, "color": "var(--text)"}
    common |= {"showarrow": False, "xshift": 3, "font": font}
    plot.update_layout(annotations=[{**common, **note} for note in notes])


def importance_figure(trials: Sequence[TrialRecord], epoch: int) -> go.Figure | None:
    """Return how much each choice mattered for the best quarter; None: too few trials."""
    shares = importances(trials, epoch)
    if not shares:
        return None
    names = list(reversed(shares))
    hover = []
    for name in names:
        found = sorted(means(trials, epoch, name).items(), key=lambda item: -item[1][0])
        lines = [f"{choice}: mean {mean:.2f} % (n={n})" for choice, (mean, n) in found]
        hover.append("<br>".join([f"<b>{label(name)}</b>: {100 * shares[name]:.0f} %", *lines]))
    plot = figure(
        70 + 26 * len(names), xaxis_title="share of the importance, %",
        margin={"l": 128, "r": 16, "t": 8, "b": 48},
    )  # fmt: skip
    plot.add_trace(
        go.Bar(
            x=[round(100 * shares[name], 2) for name in names],
            y=[label(name) for name in names],
            orientation="h",
            marker={"color": "var(--accent)"},
            hovertext=hover,
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    return plot


def tested_figure(samples: Mapping[str, Sample]) -> go.Figure:
    """Return the test figures of winners and controls: each seed, mean and standard deviation."""
    names = list(samples)[::-1]
    plot = figure(
        80 + 44 * len(names), xaxis_title="test top-1 %", showlegend=False,
        margin={"l": 128, "r": 16, "t": 8, "b": 48},
    )  # fmt: skip
    seeds = [(value, name) for name in names for value in samples[name].values]
    plot.add_trace(
        go.Scatter(
            x=[value for value, _ in seeds], y=[name for _, name in seeds], mode="markers",
            marker={"color": "var(--muted)", "size": 7, "symbol": "circle-open"},
            hovertemplate="%{y}, one seed: %{x:.2f} %<extra></extra>",
        )
    )  # fmt: skip
    colors = ["var(--best)" if name.startswith("best") else "var(--accent)" for name in names]
    plot.add_trace(
        go.Scatter(
            x=[samples[name].mean for name in names], y=names, mode="markers",
            marker={"color": colors, "size": 11, "symbol": "diamond"},
            error_x={"array": [samples[name].std or 0.0 for name in names], "color": "var(--text)"},
            hovertext=[f"{name}: {samples[name]}" for name in names],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )  # fmt: skip
    plot.update_yaxes(automargin=True)  # names of controls are long
    return plot


def _lines(
    name: str,
    trials: Sequence[tuple[TrialRecord, Points]],
    look: Mapping[str, Any],
    mode: str = "lines+markers",
) -> go.Scatter:
    """Return trials as one trace with gaps, because 1,500 traces would take the browser seconds.

    The points carry their trials' numbers, from which the page makes what a hover shows.
    """
    found: list[tuple[float | None, float | None, int | None]] = []
    for trial, points in trials:
        found += [(x, round(y, 4), trial.number) for x, y in points]
        found.append((None, None, None))
    return go.Scatter(
        x=[x for x, _, _ in found],
        y=[y for _, y, _ in found],
        customdata=[number for _, _, number in found],
        name=name,
        mode=mode,
        connectgaps=False,
        hovertemplate="%{text}<extra></extra>",
        **look,
    )
