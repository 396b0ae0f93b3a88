"""A node of a finished run, to predict with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import RecipeError, did_you_mean, located
from ..graph.node import Network, Place
from ..graph.predictor import Predictor
from ..records.reader import read_result, runs_in
from ..records.result import DataFacts
from ..records.run_directory import RunDirectory
from .build import build_ensemble, build_network
from .graph_config import EmaConfig, EnsembleConfig, GraphConfig, NodeConfig
from .recipe import check_recipe, read_recipe


def load_run(path: str | Path, node: str | None = None) -> Predictor:
    """Return a node of a finished run, in evaluation mode, with its trained weights.

    Args:
        path: The directory of the run.
        node: Name of the node; None: the target.

    Returns:
        A module that maps images [B, 3, H, W] to logits [B, C], on the CPU. Normalize the images
        with its `mean` and `std`; `class_names` says what the logits stand for.

    Raises:
        RecipeError: The run is not complete, lacks a file, or has no such node.
    """
    directory = RunDirectory(Path(path))
    result = read_result(directory)
    if result is None:
        runs = ", ".join(str(run.path) for run in runs_in(directory.path) if run != directory)
        hint = f" Its runs are {runs}." if runs else ""
        raise RecipeError([f"{path}: should be a finished run (summary.json). Found none.{hint}"])
    if not result.data.class_names:
        raise RecipeError([f"{path}: does not say its classes. An earlier version made it."])
    graph = _graph_of(directory)
    name = graph.target if node is None else node
    if name not in result.nodes or name not in graph.nodes:
        nodes = [each for each in graph.nodes if each in result.nodes]
        near = did_you_mean(name, nodes)
        raise RecipeError([f"{path}: has no node `{name}`. Nodes: {', '.join(nodes)}.{near}"])
    data, members = result.data, dict[str, nn.Module]()
    _add(name, graph, directory, data, members)
    return Predictor(members, data.mean, data.std, data.class_names).eval()


def _add(
    name: str,
    graph: GraphConfig,
    directory: RunDirectory,
    data: DataFacts,
    members: dict[str, nn.Module],
) -> None:
    """Add a node to the members, after those that it needs."""
    node, file = graph.nodes[name], directory.nodes / f"{name}.safetensors"
    if name in members:
        return
    if isinstance(node, EnsembleConfig):
        for each in node.ensemble:
            _add(each, graph, directory, data, members)
        members[name] = build_ensemble(name, node).at_work(Place(), members)
        return
    if isinstance(node, EmaConfig):  # a network by itself, with its source's architecture
        source = graph.nodes[node.ema]
        assert isinstance(source, NodeConfig)
        own = {"checkpoint_path": str(file), "pretrained": False}
        node = source.model_copy(update=own)
    with located(f"{file}: cannot be loaded"):
        built = build_network(name, node, True, len(data.class_names), seed=0)
        members[name] = Network(built, Place(True, data.mean, data.std))


def _graph_of(directory: RunDirectory) -> GraphConfig:
    """Return the run's graph, with the weights that it exported."""
    values = read_recipe(directory.recipe)
    nodes: Any = values.get("graph", {}).get("nodes", {})
    for name, node in nodes.items():
        if "model" in node:
            file = directory.nodes / f"{name}.safetensors"
            # A node that was left out has no file, and is not built here either.
            own = {"checkpoint_path": str(file)} if file.is_file() else {"pretrained": True}
            nodes[name] = {**node, "checkpoint_path": None, "pretrained": False, **own}
    return check_recipe(values).graph
