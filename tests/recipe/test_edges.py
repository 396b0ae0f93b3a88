"""Several edges between the same two nodes in a recipe: a list of them, or a key for each."""

from pathlib import Path
from typing import Any

import pytest

from tests import edge_modules
from tests.recipe_cases import problems_of, recipe
from timm_ktg.recipe.build import build_graph
from timm_ktg.recipe.recipe import check_recipe, read_recipe, save_recipe

pytestmark = pytest.mark.usefixtures("workplace")

COLD: dict[str, Any] = {"gate": "correct"}
WARM: dict[str, Any] = {"loss": "cross_entropy", "gate": "linear"}


def learning_from(**sources: Any) -> Any:
    return recipe({"learns_from": {"label": "through", **sources}}, TWO_HELPER)


TWO_HELPER = {"learns_from": {"label": "through"}}


def names_of(values: Any) -> list[str]:
    return [link.name for link in check_recipe(values).graph.edges]


def test_list_of_edges_gets_keys_by_the_losses() -> None:
    names = names_of(learning_from(helper=[COLD, WARM]))
    assert names == [
        "label->student",
        "helper->student/kl_div",
        "helper->student/cross_entropy",
        "label->helper",
    ]


def test_list_of_one_edge_is_that_edge() -> None:
    assert names_of(learning_from(helper=[COLD])) == names_of(learning_from(helper=COLD))


def test_edges_may_have_keys_of_their_own() -> None:
    values = learning_from(**{"helper/first": "correct", "helper/second": {"temperature": 2.0}})
    graph = build_graph(check_recipe(values), 10)
    found = {edge.name: edge for edge in graph.edges}
    assert found["helper->student/second"].temperature == 2.0
    assert str(found["helper->student/first"].gate) == "correct"


def test_saved_recipe_says_the_same(tmp_path: Path) -> None:
    checked = check_recipe(learning_from(helper=[COLD, WARM]))
    save_recipe(checked, tmp_path / "r.yaml")
    values = read_recipe(tmp_path / "r.yaml")
    assert check_recipe(values) == checked
    assert list(values["graph"]["nodes"]["student"]["learns_from"]) == [
        "label",
        "helper/kl_div",
        "helper/cross_entropy",
    ]


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        (
            {"helper": [COLD, COLD]},
            "graph.nodes.student.learns_from: two edges are called `helper/kl_div`; give them "
            "different keys, such as helper/first and helper/second.",
        ),
        (
            {"helpr/first": "through"},
            "graph.nodes.student.learns_from: `helpr` is not a node. Nodes: helper, student. Did "
            "you mean `helper`?",
        ),
        (
            {"helper/a b": "through"},
            "graph.nodes.student.learns_from: `a b`, after the /, should be letters, digits and "
            "`_`.",
        ),
        (
            {"label/smooth": {"temperature": 2.0}},
            "graph.nodes.student.learns_from.label/smooth.temperature: should be 1 on an edge from "
            "the label. Found 2.0.",
        ),
    ],
)
def test_impossible_edges_are_said_in_a_line(sources: Any, problem: str) -> None:
    assert problems_of(learning_from(**sources)) == (problem,)


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        ({"gate": 5}, ".gate: should be a text. Found 5."),
        ({"gate": ["correct"]}, ".gate: should be a text. Found ['correct']."),
        ({"gate_kwargs": 5}, ".gate_kwargs: should be a mapping. Found 5."),
        ({"gate_kwargs": {5: 1}}, ".gate_kwargs.5: should be a text. Found 5."),
        ({"loss": 5}, ".loss: should be a text. Found 5."),
        ({"loss": "kl_div", "loss_kwargs": [1]}, ".loss_kwargs: should be a mapping. Found [1]."),
    ],
)
def test_edge_with_a_value_of_another_type_costs_one_line(edge: Any, said: str) -> None:
    place = "graph.nodes.student.learns_from.helper"
    assert problems_of(learning_from(helper=edge)) == (place + said,)


def test_all_edges_of_a_source_cut_off_freeze_a_node() -> None:
    values = learning_from(**{"helper/first": "cutoff", "helper/second": "cutoff"})
    assert check_recipe(values).graph.topology.left_out == ("helper",)


def test_loss_with_parameters_is_built_by_hand() -> None:
    edge_modules.register()
    graph = build_graph(check_recipe(learning_from(helper={"loss": "projected"})), 10)
    assert graph.unbuilt == ("helper->student",)
