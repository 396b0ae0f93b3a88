"""Mappings given by flags take the place of the recipe's, and combine among themselves."""

from typing import Any

import pytest

from tests.recipe_cases import LABEL_ONLY, recipe, write
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.command_line import parse_command
from timm_ktg.recipe.node_config import EdgeConfig
from timm_ktg.recipe.recipe import Recipe
from timm_ktg.recipe.search_command import parse_search

pytestmark = pytest.mark.usefixtures("workplace")

STUDENT, HELPER = "--graph.nodes.student", "--graph.nodes.helper"
EDGE = f"{STUDENT}.learns_from.helper"
WARM = {"gate": "correct", "temperature": 3.0}
VALUES = recipe(
    {"model_kwargs": {"drop_rate": 0.1}, "learns_from": {"label": "through", "helper": WARM}},
    LABEL_ONLY,
    train={"opt_kwargs": {"nesterov": False}},
)


def parsed(*argv: str, values: Any = VALUES) -> Recipe:
    return parse_command([write(values), *argv], "train").recipe


def edge(*argv: str) -> EdgeConfig:
    return parsed(*argv).graph.nodes["student"].learns_from["helper"]


def refusal(*argv: str, values: Any = VALUES) -> str:
    with pytest.raises(RecipeError) as caught:
        parsed(*argv, values=values)
    (line,) = caught.value.problems
    return line


@pytest.mark.parametrize("typed", ["{}", "{dampening: 0.5}", "dampening=0.5"])
def test_mapping_takes_the_place_of_the_recipes(typed: str) -> None:
    found = parsed("--train.opt_kwargs", typed, f"{STUDENT}.model_kwargs", "{}")
    assert found.train.opt_kwargs == ({} if typed == "{}" else {"dampening": 0.5})
    assert found.graph.nodes["student"].model_kwargs == {}


def test_edges_take_the_place_of_all_edges() -> None:
    found = parsed(f"{STUDENT}.learns_from", "{label: linear}").graph.nodes["student"]
    assert found.learns_from == {"label": EdgeConfig(gate="linear")}


def test_edge_takes_the_place_of_all_its_fields_but_a_word_of_its_gate() -> None:
    assert edge(EDGE, "{loss: dkd}") == EdgeConfig(loss="dkd")
    assert edge(EDGE, "linear") == EdgeConfig(gate="linear", temperature=3)


def test_taps_by_name_take_the_place_of_a_list() -> None:
    edges = {"label": "through", "helper": {"loss": "attention", "taps": ["layer2"]}}
    taps = "{source: layer2, destination: layer3}"
    found = parsed(f"{EDGE}.taps", taps, values=recipe({"learns_from": edges}, LABEL_ONLY))
    assert found.graph.nodes["student"].learns_from["helper"].taps == {
        **{"source": "layer2", "destination": "layer3"}
    }


def test_node_may_become_one_of_another_kind() -> None:
    copied = parsed(HELPER, "{ema: student}", f"{HELPER}.decay", "0.5").graph.nodes["helper"]
    assert copied.title == "slow copy of student, decay 0.5"
    assert refusal(HELPER, "{model: resnet8_cifar}").startswith(
        "graph.nodes.helper: learns from nothing"
    )


@pytest.mark.parametrize(
    "flags",
    [
        (EDGE, "{gate: linear}", f"{EDGE}.weight", "2"),
        (f"{EDGE}.weight", "2", EDGE, "{gate: linear}"),
        (EDGE, "{gate: linear}", EDGE, "{weight: 2}"),
        (EDGE, "linear", EDGE, "{weight: 2}"),
        (f"{STUDENT}.learns_from", "{helper: linear}", f"{EDGE}.weight", "2"),
        (
            *(STUDENT, "{model: resnet8_cifar, learns_from: {helper: linear}}"),
            *(STUDENT, "{seed: 1}", f"{EDGE}.weight", "2"),
        ),
    ],
)
def test_flags_for_one_mapping_combine(flags: tuple[str, ...]) -> None:
    assert edge(*flags) == EdgeConfig(gate="linear", weight=2)


def test_last_of_two_values_holds() -> None:
    assert edge(f"{EDGE}.gate", "cutoff", EDGE, "{gate: linear}") == EdgeConfig(gate="linear")
    assert edge(EDGE, "{gate: linear}", f"{EDGE}.gate", "cutoff") == EdgeConfig(gate="cutoff")


def test_flag_never_hides_what_is_no_mapping() -> None:
    said = "command line: `helper` should be a mapping, because a flag is for a key in it. Found ["
    assert refusal(EDGE, "[{loss: hard}, {}]", f"{EDGE}.weight", "2").startswith(said)
    twice = recipe({"learns_from": {"label": "through", "helper": [{}, {}]}}, LABEL_ONLY)
    assert refusal(f"{EDGE}.weight", "2", values=twice).startswith(said)


def test_weights_of_a_search_take_the_place_of_its_own() -> None:
    nodes = {"nodes": 2, "target_model": "resnet8_cifar", "models": ["resnet8_cifar"]}
    search = {**nodes, "kinds": ["frozen"], "weights": {"resnet8_cifar": "pretrained"}}
    path = write({"search": search, "data": {"dataset": "digits", "holdout": 100}})
    assert parse_search([path, "--search.weights", "{}"], "search").recipe.search.weights == {}
