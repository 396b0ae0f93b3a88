"""What a picture is made from: the graph of a recipe, the measures of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe.graph_config import GraphConfig
from ..recipe.recipe import Recipe, check_section, read_recipe
from ..records.metrics import Metrics
from ..records.run_directory import RunDirectory
from .scene import Results

_PASSED = "train/passed/"


def load_graph(path: Path) -> GraphConfig:
    """Return the graph of a recipe, whether or not the weights that it names are there.

    Args:
        path: The recipe's file.

    Raises:
        RecipeError: It has no graph, or all that is wrong with it.
    """
    values = read_recipe(path)
    if "graph" not in values:
        found = ", ".join(map(str, values))
        raise RecipeError([f"{path}: should hold a graph. Found sections: {found}."])
    return check_section(Recipe, {"graph": _without_files(values["graph"])}).graph


def read_epochs(run: Path) -> list[Metrics]:
    """Return the lines of a run's metrics.jsonl.

    Args:
        run: The run's directory.

    Raises:
        RecipeError: There are none, or they cannot be read.
    """
    directory = RunDirectory(run)
    try:
        epochs = directory.read_metrics()
    except ValueError as error:
        raise RecipeError([f"{directory.metrics}: cannot be read: {error}."]) from None
    if not epochs:
        seeds = ", ".join(sorted(path.name for path in run.glob("seed-*")))
        runs = f" Its runs are {seeds}." if seeds else ""
        raise RecipeError([f"{run}: should hold metrics.jsonl, a line an epoch. Found none.{runs}"])
    return epochs


def results_of(run: Path) -> Results:
    """Return what a run measured: its result, or its last epoch's as long as there is none.

    Args:
        run: The run's directory.

    Raises:
        RecipeError: It holds no measures, or they cannot be read.
    """
    last = read_epochs(run)[-1]
    passed = by_name(last, _PASSED)
    summary = RunDirectory(run).summary
    if not summary.is_file():
        split = "val" if any(key.startswith("val/top1/") for key in last) else "train"
        return Results(by_name(last, f"{split}/top1/"), passed, split)
    try:
        result = json.loads(summary.read_text(encoding="utf-8"))
        top1 = {name: float(node["top1"]) for name, node in result["nodes"].items()}
        return Results(top1, passed, str(result["split"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError([f"{summary}: cannot be read: {error!r}."]) from None


def by_name(metrics: Metrics, prefix: str) -> dict[str, float]:
    """Return the measures under a prefix, such as `train/loss/`, by what comes after it."""
    return {
        key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)
    }


def _without_files(graph: Any) -> Any:
    """Return an unchecked graph whose weights are no files, which may lie on another machine."""
    nodes = graph.get("nodes") if isinstance(graph, Mapping) else None
    if not isinstance(nodes, Mapping):
        return graph  # the schema's to report
    return {**graph, "nodes": {name: _without_file(node) for name, node in nodes.items()}}


def _without_file(node: Any) -> Any:
    if not isinstance(node, Mapping) or not node.get("checkpoint_path"):
        return node
    return {**node, "checkpoint_path": None, "pretrained": True}
