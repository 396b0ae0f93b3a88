"""The study's own run in Weights & Biases: what the search came to, and how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optuna import Study

from ..draw.picture import draw_graph
from ..errors import one_line
from ..recipe.graph_config import GraphConfig
from ..records.sample import Sample
from ..tracking.wandb_run import WandbRun
from .result import Result, Row
from .tracking import StudyTracking

COLUMNS = ("graph", "trial", "validation top-1", "test top-1", "std", "n", "edges")

_logger = logging.getLogger(__name__)


def show_study(
    tracking: StudyTracking,
    study: Study,
    result: Result,
    best: GraphConfig,
    files: Sequence[Path],
) -> None:
    """Show a search's result: leaderboard, Optuna's plots, the best graph and its weights.

    Args:
        tracking: Where to show it.
        study: The study.
        result: The search's result.
        best: The best graph.
        files: The best graph's recipe and weights, if they are on this machine.
    """
    rows, samples = result.rows, result.samples
    run = tracking.open_study({"best": str(rows[0].graph)})
    found = [_cells(row, samples[row.name]) for row in rows]
    run.table("leaderboard", COLUMNS, found)
    for name, plot in _plots().items():
        _chart(run, name, lambda plot=plot: plot(study))  # type: ignore[misc]
    run.picture("best graph", lambda path: draw_graph(best, path))
    there = [path for path in files if path.is_file()]
    for path in set(files) - set(there):  # trained on another machine
        _logger.warning("Not sent to Weights & Biases, because it is not on this machine: %s", path)
    run.artifact(f"{tracking.run_ids.id}-best", "model", there)
    summary: dict[str, Any] = {f"spent/{what}": count for what, count in result.spent.items()}
    sample = samples[rows[0].name]
    if sample is not None:
        summary["test/top1/mean"] = sample.mean
    run.finish({**summary, "val/top1/best": rows[0].value, "state": "complete"}, exit_code=0)


def _cells(row: Row, sample: Sample | None) -> list[Any]:
    test = [None, None, None] if sample is None else [sample.mean, sample.std, sample.n]
    return [row.name, row.trial, row.value, *test, str(row.graph)]


def _plots() -> dict[str, Callable[[Study], Any]]:
    from optuna import visualization

    return {
        "optuna/history": visualization.plot_optimization_history,
        "optuna/epochs": visualization.plot_intermediate_values,
        "optuna/importances": visualization.plot_param_importances,
        "optuna/parallel": visualization.plot_parallel_coordinate,
    }


def _chart(run: WandbRun, name: str, plot: Callable[[], Any]) -> None:
    """Log one of Optuna's plots, or why there is none: there may be too few trials."""
    try:
        run.chart(name, plot())
    except (ValueError, RuntimeError) as error:
        _logger.warning("No plot %s: %s", name, one_line(error))
