"""The recipes of known methods: the same graphs as `timm_ktg.presets`, in a few lines each."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from torch import nn

from tests.recipe_cases import save_weights
from timm_ktg import KnowledgeTransferGraph, presets
from timm_ktg.errors import RecipeError
from timm_ktg.graph.ensemble import EnsembleModule
from timm_ktg.recipe.build import build_graph
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.recipe import bundled_recipes, load_recipe, read_recipe

pytestmark = pytest.mark.usefixtures("workplace")

RECIPES = {
    name.removeprefix("presets/"): path
    for name, path in bundled_recipes().items()
    if name.startswith("presets/")
}
LABEL_ONLY = "label-only"  # it has no preset, because it is a graph of one node
NAMES = sorted(RECIPES.keys() - {LABEL_ONLY})

each_preset = pytest.mark.parametrize("name", NAMES)


def nodes_of(name: str) -> dict[str, Any]:
    nodes: dict[str, Any] = read_recipe(RECIPES[name])["graph"]["nodes"]
    return nodes


def models_of(name: str) -> dict[str, nn.Module]:
    """A new model for each network of a recipe."""
    return {
        node: timm.create_model(values["model"], num_classes=10)
        for node, values in nodes_of(name).items()
        if "model" in values
    }


def called(name: str) -> KnowledgeTransferGraph:
    """The graph that the preset of a recipe's name returns for the recipe's models."""
    models = models_of(name)
    preset = getattr(presets, name.replace("-", "_"))
    graph: KnowledgeTransferGraph
    if name in ("dml", "one"):
        graph = preset(list(models.values()))
    elif name == "kd-multi":
        student, *teachers = models.values()
        graph = preset(student, teachers)
    elif name == "born-again":
        student, teacher = models.values()
        graph = preset(student, teacher.state_dict())
    else:
        graph = preset(*models.values())
    return graph


def told(graph: KnowledgeTransferGraph) -> dict[str, Any]:
    """Everything that a graph says but its models."""
    ensembles = {
        name: (node.members, node.combine, node.shares)
        for name, node in graph.members.items()
        if isinstance(node, EnsembleModule)
    }
    kinds = {node.name: (node.needs, node.kind) for node in graph.topology.nodes}
    return {
        "nodes": kinds,
        "who learns": (graph.target, graph.learning, graph.frozen, graph.left_out),
        "edges": {edge.name: edge for edge in graph.edges},
        "reduction": graph.reduction,
        "made": (ensembles, graph.emas),
    }


def graph_lines(name: str) -> int:
    text = RECIPES[name].read_text(encoding="utf-8")
    return len(re.findall(r"^(graph:|  .*)$", text.partition("\ndata:")[0], re.MULTILINE))


def test_every_preset_has_a_recipe() -> None:
    assert set(NAMES) == {
        *("assistant", "born-again", "dml", "kd", "kd-multi", "mean-teacher", "one")
    }


@each_preset
def test_recipe_has_the_graph_of_the_preset(name: str) -> None:
    flags = ["--data.mean", "[0, 0, 0]", "--data.std", "[1, 1, 1]"]
    for node, values in nodes_of(name).items():
        if "train_first" in values:
            file = save_weights(f"{node}.safetensors", values["model"])
            flags += [f"--graph.nodes.{node}.checkpoint_path", file]
    recipe = parse_command([f"presets/{name}", *flags], "prog").recipe
    assert told(build_graph(recipe, 10)) == told(called(name))


def test_graph_is_built_from_a_name_a_path_and_a_recipe() -> None:
    name = "presets/dml"
    recipe = load_recipe(name)
    assert load_recipe(recipe) is recipe
    built = [build_graph(each, 10) for each in (name, bundled_recipes()[name], recipe)]
    assert told(built[0]) == told(built[1]) == told(built[2])
    with pytest.raises(RecipeError, match=r"Did you mean `presets/dml`"):
        build_graph("presets/dnl", 10)


@each_preset
def test_frozen_nodes_are_trained_first(name: str) -> None:
    recipe = parse_command([f"presets/{name}"], "prog").recipe
    assert recipe.graph.trained_first == list(recipe.graph.topology.frozen)


@pytest.mark.parametrize(("name", "most"), [("kd", 6), ("kd-multi", 8), ("one", 9)])
def test_recipe_says_its_graph_in_few_lines(name: str, most: int) -> None:
    assert 0 < graph_lines(name) <= most


def test_graph_of_a_preset_serves_other_data(workplace: Path) -> None:
    save_weights("teacher.safetensors", "resnet14_cifar")
    (workplace / "own.yaml").write_text(
        yaml.safe_dump(read_recipe(RECIPES[LABEL_ONLY])), encoding="utf-8"
    )
    teacher = "--graph.nodes.teacher"
    flags = [f"{teacher}.model", "resnet14_cifar", f"{teacher}.checkpoint_path"]
    command = parse_command(
        ["own.yaml", "--graph", "presets/kd", *flags, "teacher.safetensors"], "prog"
    )
    assert list(command.recipe.graph.nodes) == ["student", "teacher"]
