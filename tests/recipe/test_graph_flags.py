"""Nodes and edges that flags add and remove."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_cases import LABEL_ONLY, TWO, recipe, write
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.command_line import parse_command

pytestmark = pytest.mark.usefixtures("workplace")
HELPER = "--graph.nodes.helper"
STUDENT = "--graph.nodes.student"


def edges(argv: Iterable[str], values: Any = None) -> dict[str, list[str]]:
    """The sources of every node by its name."""
    path = write(values or recipe(TWO, LABEL_ONLY))
    command = parse_command([path, *argv], "train")
    return {name: list(node.learns_from) for name, node in command.recipe.graph.nodes.items()}


def test_node_and_an_edge_from_it_are_added() -> None:
    added = ["--graph.nodes.new-one", "{model: resnet8_cifar, learns_from: {label: through}}"]
    found = edges([*added, f"{STUDENT}.learns_from.new_one.gate", "correct"])
    assert found == {
        "student": ["label", "helper", "new_one"],
        "helper": ["label"],
        "new_one": ["label"],
    }


def test_node_is_removed_with_the_edges_from_it() -> None:
    assert edges([HELPER, "null"]) == {"student": ["label"]}


def test_edge_is_removed_alone() -> None:
    removed = [f"{STUDENT}.learns_from.helper", "null"]
    assert edges(removed) == {"student": ["label"], "helper": ["label"]}


def test_named_edge_is_removed_and_its_source_removes_all() -> None:
    several = [{"gate": "through"}, {"loss": "hard"}]
    values = recipe({"learns_from": {"label": "through", "helper": several}}, LABEL_ONLY)
    assert edges([f"{STUDENT}.learns_from.helper", "null"], values)["student"] == ["label"]
    values = recipe({"learns_from": {"helper/a": "through", "helper/b": "linear"}}, LABEL_ONLY)
    assert edges([f"{STUDENT}.learns_from.helper/a", "null"], values)["student"] == ["helper/b"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--graph.nodes.new", "{model: resnet8_cifar"], "argument --graph.nodes.new: should be"),
        (["--graph.nodes.new", "null"], "unrecognized arguments: --graph.nodes.new"),
        ([f"{STUDENT}.learns_from.helpr", "null"], "Did you mean"),
        (["--graph.nodes.student", "null"], "graph.target: `student` is not a node"),
    ],
)
def test_mistakes_take_a_line(argv: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        edges(argv)
    assert said in caught.value.problems[0]


def test_resumed_run_keeps_its_graph(tmp_path: Path) -> None:
    values = recipe(TWO, LABEL_ONLY)
    write(values)
    for flag in (f"{STUDENT}.learns_from.helper", HELPER):
        with pytest.raises(RecipeError) as caught:
            parse_command(["--resume", ".", flag, "null"], "train")
        assert "decides the training, so it stays as it was" in caught.value.problems[0]


def test_list_of_nodes_is_refused_as_before() -> None:
    values = recipe(TWO, LABEL_ONLY)
    values["graph"]["nodes"] = ["a", "b"]
    with pytest.raises(RecipeError) as caught:
        edges([], values)
    assert caught.value.problems[0].startswith("graph.nodes: should be a mapping")
