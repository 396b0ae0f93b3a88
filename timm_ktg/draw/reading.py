"""Reads the inputs of a picture: the graph of a recipe and the results of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe.graph_config import GraphConfig
from ..recipe.recipe import Recipe, check_section, read_recipe
from ..records.metrics import (
    Metrics,
    mean_weights,
    newest_watched,
    top1_by_node,
    watched_split,
)
from ..records.reader import read_epochs, read_result, runs_in
from ..records.run_directory import RunDirectory
from .scene import Results


def load_graph(path: Path) -> GraphConfig:
    """Return the graph of a recipe, even if its weights are missing.

    Args:
        path: The file of the recipe.

    Raises:
        RecipeError: There is no graph, or the graph is wrong; lists all problems.
    """
    values = read_recipe(path)
    if "graph" not in values:
        found = ", ".join(map(str, values))
        raise RecipeError([f"{path}: should hold a graph. Found sections: {found}."])
    return check_section(Recipe, {"graph": _without_files(values["graph"])}).graph


def measured_epochs(run: RunDirectory) -> list[Metrics]:
    """Return the metrics of each epoch of a run, at least one.

    Raises:
        RecipeError: There is no epoch yet, or metrics.jsonl cannot be read.
    """
    epochs = read_epochs(run)
    if not epochs:
        names = ", ".join(each.path.name for each in runs_in(run.path) if each != run)
        seeds = f" Its runs are {names}." if names else ""
        where = f"{run.path}: should hold {run.metrics.name}"
        raise RecipeError([f"{where}, a line an epoch. Found none.{seeds}"])
    return epochs


def results_of(path: Path) -> Results:
    """Return the result of a run, or its last measured epoch if it is not complete.

    Args:
        path: The directory of the run.

    Raises:
        RecipeError: The run has measured nothing yet, or its files cannot be read.
    """
    run = RunDirectory(path)
    epochs = measured_epochs(run)
    last, watched = epochs[-1], newest_watched(epochs)
    result = read_result(run)
    if result is None:
        split = watched_split(watched)
        return Results(top1_by_node(watched, split), mean_weights(last), split)
    top1 = {name: accuracy.top1 for name, accuracy in result.nodes.items()}
    return Results(top1, mean_weights(last), result.split)


def _without_files(graph: Any) -> Any:
    """Return an unchecked graph without file names, because the files may be elsewhere."""
    nodes = graph.get("nodes") if isinstance(graph, Mapping) else None
    if not isinstance(nodes, Mapping):
        return graph  # the schema reports it
    return {**graph, "nodes": {name: _without_file(node) for name, node in nodes.items()}}


def _without_file(node: Any) -> Any:
    if not isinstance(node, Mapping) or not node.get("checkpoint_path"):
        return node
    return {**node, "checkpoint_path": None, "pretrained": True}
