"""A study's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from ..records.sample import Sample
from ..search.fronts import Axis, Point, front
from ..search.trials import COMPLETE, FAILED, PRUNED, RUNNING, TrialRecord
from .plot import ACCENT, BAD, BEST, FAINT, MUTED, PAPER, TEXT, Drawing, Plot, Points
from .stages import best_quarter, choice_of, importances, label, means, parameters
from .study_data import StudyData

MOST_BEST = 30  # trials of the best quarter side by side; more would hide each other
_KINDS = {RUNNING: MUTED, PRUNED: FAINT, FAILED: BAD, COMPLETE: ACCENT}
_SMALL = {"fontsize": 8.5, "color": TEXT}


def epochs_figure(study: StudyData) -> Drawing:
    """Return every trial's accuracy by epoch, with the rungs and how many reached them."""
    plot = Plot(300, "epoch", "validation top-1 %")
    best = study.best[0]
    for kind, color in _KINDS.items():
        trials = [trial for trial in study.trials if trial.state == kind and trial is not best]
        found = [list(trial.values.items()) for trial in trials if trial.values]
        plot.lines(kind, found, color, dots=3, linewidth=0.8, alpha=0.5)
    shown = f"best: trial {best.number}"
    plot.lines(shown, [best.values.items()], BEST, dots=6, linewidth=2.4)
    for trial in study.trials:
        for epoch, value in trial.values.items():
            plot.say(epoch, value, trial.number)
    plot.axes.set_xscale("log")
    plot.axes.set_xticks(list(study.stages), labels=list(map(str, study.stages)))
    plot.axes.xaxis.set_minor_locator(NullLocator())
    plot.axes.grid(axis="x", color=FAINT, linestyle=":", linewidth=1.4)
    for epoch, reached in study.stages.items():
        foot = {"xytext": (3, 2), "textcoords": "offset points"}
        where = plot.axes.get_xaxis_transform()
        plot.axes.annotate(f"{len(reached):,}", (epoch, 0), xycoords=where, **foot, **_SMALL)
    return plot.drawing("Accuracy of every trial by epoch")


def parallel_figure(trials: Sequence[TrialRecord], epoch: int) -> Drawing:
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

    plot = Plot(320)
    groups: list[tuple[str, Sequence[TrialRecord], str, float, float]] = [
        ("others", others, FAINT, 0.7, 0.3),
        (f"best {len(top)}", top[1:], ACCENT, 0.8, 0.8),
        (f"best: trial {top[0].number}", top[:1], BEST, 2.4, 1.0),
    ]
    for name, group, color, width, alpha in groups:
        found = [list(line(trial)) for trial in group]
        plot.lines(name, found, color, linewidth=width, alpha=alpha)
        for trial, points in zip(group, found, strict=True):
            # Of the others only the accuracy, or the page would be large.
            for point in points if group is not others else points[-1:]:
                plot.say(*point, trial.number)
    _parallel_axes(plot.axes, axes, (low, high), epoch)
    return plot.drawing("Choices of each trial and its accuracy")


def _parallel_axes(
    plot: Any, axes: Mapping[str, Sequence[str]], ends: tuple[float, float], epoch: int
) -> None:
    """Draw an axis for each parameter, its categories from bottom to top, and one for accuracy."""
    names = [label(name).replace(" → ", " →\n").replace(" of ", " of\n") for name in axes]
    names.append(f"top-1 %\nepoch {epoch}")
    plot.set_xticks(range(len(names)), labels=names, fontsize=8)
    plot.set_xlim(-0.05, len(names) - 0.6)
    plot.set_ylim(-0.02, 1.02)
    plot.grid(axis="x", color=MUTED)
    plot.grid(visible=False, axis="y")
    plot.get_yaxis().set_visible(False)
    plot.spines[:].set_visible(False)
    texts = [
        (place, (index + 0.5) / len(choices), choice)
        for place, choices in enumerate(axes.values())
        for index, choice in enumerate(choices)
    ]
    texts += [(len(axes), height, f"{end:.1f}") for height, end in enumerate(ends)]
    for place, y, text in texts:
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.85}
        plot.text(place + 0.03, y, text, va="center", bbox=box, fontsize=8, color=TEXT)


def importance_figure(trials: Sequence[TrialRecord], epoch: int) -> Drawing | None:
    """Return how much each choice mattered for the best quarter; None: too few trials."""
    shares = importances(trials, epoch)
    if not shares:
        return None
    names = list(reversed(shares))
    plot = Plot(50 + 20 * len(names), "share of the importance, %")
    percent = [100 * shares[name] for name in names]
    plot.axes.barh(range(len(names)), percent, color=ACCENT, height=0.7)
    plot.axes.set_yticks(range(len(names)), labels=[label(name) for name in names])
    plot.axes.grid(visible=False, axis="y")
    step = max(percent) / 40 or 1.0
    for place, (name, share) in enumerate(zip(names, percent, strict=True)):
        found = sorted(means(trials, epoch, name).items(), key=lambda item: -item[1][0])
        lines = [f"{choice}: mean {mean:.2f} % (n={n})" for choice, (mean, n) in found]
        said = "\n".join([f"{label(name)}: {share:.0f} %", *lines])
        for part in range(int(share / step) + 1):  # all along the bar
            plot.say(part * step, place, said)
    return plot.drawing("Importance of each choice")


def samples_figure(samples: Mapping[str, Sample], title: str, text: str) -> Drawing:
    """Return figures beside each other: each seed, mean and standard deviation, within 0..100.

    Args:
        samples: The figures in percent, by name. Names that begin with `best` stand out.
        title: What they are.
        text: Description of the figure for screen readers.
    """
    names = list(samples)[::-1]
    plot = Plot(60 + 30 * len(names), title)
    for place, name in enumerate(names):
        sample, color = samples[name], BEST if name.startswith("best") else ACCENT
        seeds = {"facecolor": "none", "edgecolor": MUTED, "s": 26, "zorder": 3}
        plot.axes.scatter(sample.values, [place] * sample.n, **seeds)
        ends = [[min(sample.std or 0.0, room)] for room in (sample.mean, 100 - sample.mean)]
        plot.axes.errorbar(
            [sample.mean], [place], xerr=ends, fmt="D", color=color,
            ecolor=TEXT, elinewidth=1.2, capsize=3, markersize=6, zorder=4,
        )  # fmt: skip
        for value in sample.values:
            plot.say(value, place, f"{name}, one seed: {value:.2f} %")
        plot.say(sample.mean, place, f"{name}: {sample}")
    plot.axes.set_yticks(range(len(names)), labels=names)
    plot.axes.set_ylim(-0.6, len(names) - 0.4)
    plot.axes.grid(visible=False, axis="y")
    return plot.drawing(text)


def front_figure(points: Sequence[Point], axis: Axis) -> Drawing:
    """Return the accuracy of trials over a cost, and those that no cheaper trial beats."""
    plot = Plot(270, axis.title, "validation top-1 %")
    for state, color in ((PRUNED, FAINT), (COMPLETE, ACCENT)):
        some = [[(each.cost, each.value)] for each in points if each.trial.state == state]
        plot.lines(state, some, color, dots=4.5, linewidth=4.5, alpha=0.7)
    _steps(plot, "no cheaper trial is better", front(points))
    _say_all(plot, points)
    plot.axes.set_xscale("log")
    plot.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    plot.axes.xaxis.set_minor_formatter(NullFormatter())
    return plot.drawing(f"Accuracy of each trial over {axis.title}")


def best_figure(best: Sequence[Point], trials: Sequence[TrialRecord]) -> Drawing:
    """Return the best accuracy so far by the epochs of all trials."""
    plot = Plot(270, "epochs of all trials", "validation top-1 %")
    last = best[-1]._replace(cost=sum(trial.epochs for trial in trials))
    _steps(plot, "best so far", [*best, last])
    _say_all(plot, best)
    return plot.drawing("Best accuracy so far by epochs spent")


def _steps(plot: Plot, name: str, points: Sequence[Point]) -> None:
    line = [(point.cost, point.value) for point in points]
    plot.lines(name, [line], BEST, dots=5, linewidth=1.5, drawstyle="steps-post")


def _say_all(plot: Plot, points: Sequence[Point]) -> None:
    for point in points:
        plot.say(point.cost, point.value, point.trial.number)
