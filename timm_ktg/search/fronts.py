"""Where accuracy meets cost: the trials that nothing cheaper beats, and what the search spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .trials import COMPLETE, INFERENCE, PRUNED, TRAINING, TrialRecord


class Axis(NamedTuple):
    """A cost of a trial.

    Args:
        title: What it is called, with its unit.
        name: Its name in `TrialRecord.cost`.
        unit: What it is divided by.
    """

    title: str
    name: str
    unit: float


class Point(NamedTuple):
    """A trial in a plot of accuracy over a cost.

    Args:
        cost: The cost.
        value: Validation top-1 in percent.
        trial: The trial.
    """

    cost: float
    value: float
    trial: TrialRecord


PER_IMAGE = Axis("inference, MFLOPs an image", INFERENCE, 1e6)
IN_TRAINING = Axis("training, GFLOPs in all", TRAINING, 1e9)
AXES = {"front-inference": PER_IMAGE, "front-training": IN_TRAINING}  # by the name of the plot


def points_of(trials: Iterable[TrialRecord], axis: Axis) -> list[Point]:
    """Return the trials with an accuracy and a known cost, each at its last accuracy."""
    return [
        Point(cost / axis.unit, trial.last, trial)
        for trial in trials
        if trial.state in (COMPLETE, PRUNED)
        and trial.last is not None
        and (cost := trial.cost.get(axis.name)) is not None
    ]


def compared_costs(trials: Sequence[TrialRecord]) -> dict[str, tuple[Axis, list[Point]]]:
    """Return what there is to plot over each cost, by the name of the plot.

    A cost that is the same for all trials is left out: trials of earlier versions have none, and a
    target whose model is fixed has one inference cost.
    """
    found = {name: (axis, points_of(trials, axis)) for name, axis in AXES.items()}
    return {
        name: (axis, points)
        for name, (axis, points) in found.items()
        if len({point.cost for point in points}) > 1
    }


def front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats at the same cost or a lower one, the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.value, each.trial.number)):
        if not found or point.value > found[-1].value:
            found.append(point)
    return found


def best_so_far(trials: Iterable[TrialRecord]) -> list[Point]:
    """Return the complete trials that were the best when they ended, by the epochs spent by then.

    The epochs are those of all trials that had ended, stopped and failed ones included.
    """
    found: list[Point] = []
    ended = [
        (end, trial.number, trial) for trial in trials if (end := trial.trial.datetime_complete)
    ]
    epochs = 0
    for _, _, trial in sorted(ended):
        epochs += trial.epochs
        if trial.state == COMPLETE and trial.last is not None:
            if not found or trial.last > found[-1].value:
                found.append(Point(epochs, trial.last, trial))
    return found
