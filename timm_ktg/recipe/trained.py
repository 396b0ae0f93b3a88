"""A finished run, and its nodes to predict with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm.data import create_transform
from torch import nn

from ..data import Transform
from ..errors import RecipeError, did_you_mean, located
from ..graph.gates import list_gates
from ..graph.losses import list_losses
from ..graph.node import Network, Place
from ..graph.predictor import Predictor
from ..records.reader import read_result, runs_in
from ..records.result import DataFacts, Preparation, RunResult
from ..records.run_directory import RunDirectory
from .build import build_ensemble, build_network
from .graph_config import GraphConfig
from .node_config import EmaConfig, EnsembleConfig, NodeConfig
from .recipe import Recipe, check_recipe, read_recipe


@dataclass(frozen=True)
class TrainedRun:
    """A finished run, read back.

    Args:
        directory: Its directory.
        recipe: Its recipe, whose networks start from the weights that the run exported.
        result: Its result.
    """

    directory: RunDirectory
    recipe: Recipe
    result: RunResult

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that can be loaded."""
        return [name for name in self.recipe.graph.nodes if name in self.result.nodes]

    def name_of(self, node: str | None) -> str:
        """Return the name of a node of the run; None means the target.

        Raises:
            RecipeError: The run has no such node.
        """
        name = self.recipe.graph.target if node is None else node
        if name not in self.nodes:
            listed, near = ", ".join(self.nodes), did_you_mean(name, self.nodes)
            raise RecipeError(
                [f"{self.directory.path}: has no node `{name}`. Nodes: {listed}.{near}"]
            )
        return name

    def load(self, *names: str) -> dict[str, nn.Module]:
        """Return the modules of some nodes by name, each after those that it needs.

        Raises:
            RecipeError: A file is missing or does not fit.
        """
        members: dict[str, nn.Module] = {}
        for name in names:
            _add(name, self.recipe.graph, self.directory, self.result.data, members)
        return {name: member.eval() for name, member in members.items()}

    def predictor(self, node: str | None = None) -> Predictor:
        """Return a node as a module of its own; see `load_run`."""
        data = self.result.data
        members = self.load(self.name_of(node))
        return Predictor(members, data.mean, data.std, data.class_names).eval()

    def preparation(self) -> Preparation:
        """Return how the run's evaluation prepared an image.

        Raises:
            RecipeError: The run does not say it.
        """
        found = self.result.data.preparation
        if found is None:
            said = "does not say how it prepared images. An earlier version made it."
            raise RecipeError([f"{self.directory.path}: {said}"])
        return found

    def transform(self) -> Transform:
        """Return what maps an image to the normalized [C, H, W] that the run evaluated.

        Raises:
            RecipeError: The run does not say how it prepared images.
        """
        data, preparation = self.result.data, asdict(self.preparation())
        transform: Transform = create_transform(**preparation, mean=data.mean, std=data.std)
        return transform


def open_run(path: str | Path) -> TrainedRun:
    """Return a finished run.

    Args:
        path: Its directory.

    Raises:
        RecipeError: The run is not complete, or its recipe or result cannot be read.
    """
    directory = RunDirectory(Path(path))
    result = read_result(directory)
    if result is None:
        runs = ", ".join(str(run.path) for run in runs_in(directory.path) if run != directory)
        hint = f" Its runs are {runs}." if runs else ""
        raise RecipeError([f"{path}: should be a finished run (summary.json). Found none.{hint}"])
    if not result.data.class_names:
        raise RecipeError([f"{path}: does not say its classes. An earlier version made it."])
    return TrainedRun(directory, _recipe_of(directory), result)


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
    return open_run(path).predictor(node)


def _add(
    name: str,
    graph: GraphConfig,
    directory: RunDirectory,
    data: DataFacts,
    members: dict[str, nn.Module],
) -> None:
    """Add a node to the members, after those that it needs."""
    node, file = graph.nodes[name], _weights_of(directory, name)
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
        # What earlier versions made has three.
        in_chans = data.preparation.input_size[0] if data.preparation else 3
        built = build_network(name, node, True, len(data.class_names), 0, in_chans)
        members[name] = Network(built, Place(True, data.mean, data.std))


def values_to_start_from(path: Path) -> dict[str, Any]:
    """Return the values of a finished run's recipe, whose networks start from its weights.

    A moving average starts from the weights of its network, and a loss that has parameters starts
    anew.

    Args:
        path: The directory of the run, or of its best epoch.

    Raises:
        RecipeError: The run is not complete, or its recipe or result cannot be read.
    """
    values = _with_weights(open_run(path).directory)
    train = values.get("train", {})
    for name in ("head_init_scale", "head_init_bias"):  # the classifiers are no longer initial
        train.pop(name, None)
    return values


def _recipe_of(directory: RunDirectory) -> Recipe:
    """Return the run's recipe, with the weights that it exported.

    Gates and losses that are not installed here are left out, because only training needs them.
    """
    values = _with_weights(directory)
    nodes: Any = values.get("graph", {}).get("nodes", {})
    for name, node in nodes.items():
        # A node that was left out has no file, and is not built here either.
        if "model" in node and not _weights_of(directory, name).is_file():
            nodes[name] = {**node, "checkpoint_path": None, "pretrained": True}
        for source, edge in (node.get("learns_from") or {}).items():
            node["learns_from"][source] = _installed(edge)
    return check_recipe(values)


def _installed(edge: Any) -> Any:
    """Return an edge without a gate, or a loss and its settings, that is not registered here."""
    given = {"gate": edge} if isinstance(edge, str) else edge
    if not isinstance(given, Mapping):
        return edge  # `check_recipe` refuses it
    kept = set(given)
    if given.get("loss") not in (None, *list_losses()):
        kept &= {"gate", "gate_kwargs", "head"}
    if given.get("gate") not in (None, *list_gates()):
        kept -= {"gate", "gate_kwargs"}
    return {key: value for key, value in given.items() if key in kept}


def _with_weights(directory: RunDirectory) -> dict[str, Any]:
    """Return the values of a run's recipe, with the weights that it exported."""
    values = read_recipe(directory.recipe)
    nodes: Any = values.get("graph", {}).get("nodes", {})
    for name, node in nodes.items():
        file = _weights_of(directory, name)
        if "model" in node and file.is_file():
            nodes[name] = {**node, "checkpoint_path": str(file), "pretrained": False}
    return values


def _weights_of(directory: RunDirectory, node: str) -> Path:
    return directory.nodes / f"{node}.safetensors"
