"""Nodes and edges that flags add and remove."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.recipe_cases import LABEL_ONLY, TWO, recipe, write
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.node_config import EdgeConfig

pytestmark = pytest.mark.usefixtures("workplace")
HELPER = "--graph.nodes.helper"
STUDENT = "--graph.nodes.student"
LISTED = {"label": "through", "helper": [{"temperature": 4.0}, {"loss": "hard", "gate": "linear"}]}


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


def test_edge_in_a_list_has_a_key_for_flags() -> None:
    values = recipe({"learns_from": LISTED}, LABEL_ONLY)
    edge = f"{STUDENT}.learns_from.helper"
    assert edges([f"{edge}/kl_div", "null"], values)["student"] == ["label", "helper/hard"]
    flags = [f"{edge}/hard", "correct", f"{edge}/kl_div.weight", "0.5"]
    command = parse_command([write(values), *flags], "train")
    found = command.recipe.graph.nodes["student"].learns_from
    assert found["helper/hard"] == EdgeConfig(gate="correct", loss="hard")
    assert found["helper/kl_div"] == EdgeConfig(temperature=4, weight=0.5)


def test_edge_in_the_list_of_a_node_that_is_added_has_a_key_too() -> None:
    added = "{model: resnet8_cifar, learns_from: {helper: [{temperature: 4}, {loss: hard}]}}"
    argv = ["--graph.nodes.new", added, "--graph.nodes.new.learns_from.helper/hard", "correct"]
    assert edges(argv)["new"] == ["helper/kl_div", "helper/hard"]


@pytest.mark.parametrize("flag", [".weight=0.5", ".temperature=2", "=through"])
def test_source_of_a_list_of_edges_names_none_of_them(flag: str) -> None:
    with pytest.raises(RecipeError) as caught:
        edges([f"{STUDENT}.learns_from.helper{flag}"], recipe({"learns_from": LISTED}, LABEL_ONLY))
    said = "helper should name one of the recipe's edges: helper/kl_div, helper/hard."
    assert len(caught.value.problems) == 1 and caught.value.problems[0].endswith(said)


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
