"""The study's own run in Weights & Biases: what the search came to, and how."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna import Study

from ..draw.picture import draw_graph
from ..errors import one_line
from ..recipe.graph_config import GraphConfig
from ..tracking.wandb_run import WandbRun
from .cost_plots import cost_plots
from .result import Result
from .tracking import StudyTracking
from .trials import records

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
    table = []
    for row in rows:
        sample = samples[row.name]
        test = [None, None, None] if sample is None else [sample.mean, sample.std, sample.n]
        table.append([row.name, row.trial, row.value, *test, str(row.graph)])
    run.table("leaderboard", COLUMNS, table)
    _show_plots(run, study)
    for name, plot in cost_plots(records(study)).items():
        run.chart(f"search/{name}", plot)
    run.picture("best graph", lambda path: draw_graph(best, path))
    there = [path for path in files if path.is_file()]
    for path in set(files) - set(there):  # trained on another machine
        _logger.warning("Not sent to Weights & Biases, because it is not on this machine: %s", path)
    run.artifact(f"{tracking.run_ids.id}-best", "model", there)
    summary: dict[str, Any] = {f"spent/{what}": count for what, count in result.spent.items()}
    sample = samples[rows[0].name]
    if sample is not None:
        summary |= {"test/top1/mean": sample.mean, "test/seen": result.looks.seen}
    summary |= {"val/top1/best": rows[0].value, "state": "complete"}
    first = {"verdict": result.verdict, "control wins": result.control_wins}
    run.finish({**first, **summary}, exit_code=0)


def _show_plots(run: WandbRun, study: Study) -> None:
    """Log Optuna's plots, or why one is not there: there may be too few trials."""
    from optuna import visualization

    plots = {
        "optuna/history": visualization.plot_optimization_history,
        "optuna/epochs": visualization.plot_intermediate_values,
        "optuna/importances": visualization.plot_param_importances,
        "optuna/parallel": visualization.plot_parallel_coordinate,
    }
    for name, plot in plots.items():
        try:
            run.chart(name, plot(study))
        except (ValueError, RuntimeError) as error:
            _logger.warning("No plot %s: %s", name, one_line(error))
