"""The best epoch of a run: which it is, and what the run leaves of it."""

from __future__ import annotations

import math
import shutil

from ..records.files import writing
from ..records.metrics import EPOCH, Metrics, evaluated_loss_name, top1_name
from ..records.reader import read_epochs
from ..records.result import Best, RunResult
from ..records.run_directory import RunDirectory
from .training import Training


def note_best(training: Training, metrics: Metrics) -> None:
    """Note the epoch as the best so far, if it was evaluated, and its target is above all before.

    Args:
        training: The run after the epoch.
        metrics: The metrics of the epoch.
    """
    metric, target = training.recipe.train.eval_metric, training.graph.target
    names = {"top1": top1_name("val", target), "loss": evaluated_loss_name("val", target)}
    value = metrics.get(names[metric]) if metric else None
    if metric is None or value is None or not math.isfinite(value):
        return
    best, sign = training.state.best, -1 if metric == "loss" else 1
    if best is None or sign * value > sign * best.value:
        training.state.best = Best(metric, training.state.epochs, value)


def write_best(directory: RunDirectory, result: RunResult) -> None:
    """Make the folder of the best epoch, which already holds its nodes, a run of its own.

    All programs that take a finished run then take it, too.

    Args:
        directory: The directory of the run.
        result: What its nodes reached after the best epoch.

    Raises:
        StorageError: A file cannot be written.
    """
    best = directory.best
    with writing(best.path):
        shutil.copyfile(directory.recipe, best.recipe)
        best.metrics.unlink(missing_ok=True)
    for epoch in read_epochs(directory):
        if epoch[EPOCH] <= result.epochs:
            best.log(epoch)
    best.write_result(result)
