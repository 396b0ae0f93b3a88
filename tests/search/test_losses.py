"""Losses as choices of a search: written as recipes, drawn, trained, and refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import timm_ktg as ktg
from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.recipe import check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.canonical import all_through, canonical_form
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.space import build_choices, edge_word
from timm_ktg.search.tracking import graph_config

pytestmark = pytest.mark.usefixtures("workplace")

DKD = {"loss": "dkd", "loss_kwargs": {"beta": 2.0}, "temperature": 4.0, "weight": 0.5}
SHOWN = "dkd(beta=2.0) T=4 weight=0.5"
SMOOTH = {"loss": "cross_entropy", "loss_kwargs": {"smoothing": 0.1}}
LOSSES = {"losses": ["kl_div", DKD], "label_losses": ["cross_entropy", "bce", SMOOTH]}


def recipe_of(**search: Any) -> SearchRecipe:
    return check_section(SearchRecipe, search_values(**{**LOSSES, **search}))


def test_word_of_an_edge_names_only_what_is_unusual() -> None:
    pair, label = ("aux1", "target"), ("label", "target")
    assert edge_word(pair, "linear", "") == edge_word(pair, "linear", "kl_div") == "linear"
    assert edge_word(pair, "correct", SHOWN) == f"correct, {SHOWN}"
    assert edge_word(label, "correct", "cross_entropy") == "through"
    assert edge_word(label, "correct", "bce") == "through, bce"


def test_drawn_losses_are_written_into_the_recipe() -> None:
    recipe = recipe_of()
    choices = build_choices(recipe.search)
    params = {
        **{
            "model/aux1": "ktg_tiny",
            "gate/label->target": "through",
            "gate/aux1->target": "linear",
        },
        **{"gate/label->aux1": "through", "gate/target->aux1": "cutoff"},
        **{"loss/label->target": "bce", "loss/aux1->target": SHOWN},
        **{"loss/label->aux1": "cross_entropy", "loss/target->aux1": "kl_div"},
    }
    graph = choices.graph(params)
    assert graph is not None
    assert graph.gates["aux1", "target"] == f"linear, {SHOWN}"
    assert choices.params(graph) == params
    found = RecipeBuilder(recipe, lambda teacher: Path("none"), seed=0).recipe_of(graph).graph
    edge = found.nodes["target"].learns_from["aux1"]
    assert (edge.gate, edge.loss, edge.loss_kwargs) == ("linear", "dkd", {"beta": 2.0})
    assert (edge.temperature, edge.weight) == (4.0, 0.5)
    assert found.nodes["target"].learns_from["label"].loss == "bce"
    columns = graph_config(graph, choices)
    assert columns["gate/aux1->target"] == "linear" and columns["loss/aux1->target"] == SHOWN
    assert columns["gate/target->aux1"] == "cutoff" and columns["loss/target->aux1"] == "none"


def test_edges_from_the_label_keep_their_loss_beside_candidates_for_networks() -> None:
    for label_losses, expected in (([], None), (["bce", "cross_entropy"], None)):
        recipe = recipe_of(losses=["kl_div", DKD], label_losses=label_losses)
        graph = all_through("ktg_tiny", ["ktg_tiny"])
        found = RecipeBuilder(recipe, lambda teacher: None, seed=0).recipe_of(graph).graph
        losses = {link.source: edge.loss for link, edge in found.edges.items()}
        assert losses == {"label": expected, "target": "kl_div", "aux1": "kl_div"}


def test_gate_of_an_edge_from_the_label_is_written_as_it_is_shown() -> None:
    recipe = recipe_of(gates=["through", "linear", "correct"], losses=[], label_losses=[])
    graph = all_through("ktg_tiny", ["ktg_tiny"])
    found = RecipeBuilder(recipe, lambda teacher: None, seed=0).recipe_of(graph).graph
    assert {edge.gate for edge in found.edges.values()} == {"through"}


def test_space_without_candidate_losses_is_as_it_was() -> None:
    choices = build_choices(check_section(SearchRecipe, search_values()).search)
    assert not [name for name in choices.largest.choices() if name.startswith("loss/")]
    with pytest.raises(ValueError, match="should be one of through, cutoff, linear"):
        choices.params(
            canonical_form({"target": "ktg_tiny"}, {("label", "target"): "through, bce"})
        )


@pytest.mark.parametrize(
    ("search", "where", "said"),
    [
        ({"losses": ["kl_dv"]}, "losses.0.loss", "Did you mean `kl_div`"),
        (
            {"losses": [{"loss": "dkd", "loss_kwargs": {"gamma": 1}}]},
            "losses.0.loss",
            "no argument",
        ),
        ({"losses": [{"loss": "dkd", "weight": -1}]}, "losses.0.weight", "Found -1."),
        (
            {"label_losses": [{"loss": "bce", "temperature": 2}]},
            "label_losses.0.temperature",
            "should be 1 on an edge from the label. Found 2.",
        ),
    ],
)
def test_wrong_candidate_costs_a_line(search: Any, where: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(**search)
    (line,) = caught.value.problems
    assert line.startswith(f"search.{where}:") and said in line


@pytest.mark.slow
def test_search_draws_losses_and_its_best_graph_is_an_ordinary_recipe(tmp_path: Path) -> None:
    values = search_values(**LOSSES, trials=5, final_seeds=[0], gates=["through", "linear"])
    path = write_recipe(tmp_path / "search.yaml", values)
    assert run_search(path, "--output-dir", tmp_path / "out") == 0
    trials = study_in(tmp_path / "out", "search").trials
    drawn = {trial.params["loss/aux1->target"] for trial in trials}
    assert drawn == {"kl_div", SHOWN}
    edges = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())["graph"]["nodes"]["target"]
    assert edges["learns_from"].keys() == {"label", "aux1"}
    assert result_in(tmp_path / "out")["rows"]


def test_loss_that_breaks_its_contract_is_named_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = search_values(losses=["kl_div", {"loss": "attention"}])
    path = write_recipe(tmp_path / "search.yaml", values)
    assert run_search(path, "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "search.losses.1: loss `attention` says: attention should get taps" in said
    assert "graph." not in said
    values["search"]["losses"][1]["taps"] = "head"
    assert run_search(write_recipe(path, values), "--output-dir", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "search.losses.1: loss `attention` says: attention should get features" in said


def test_gate_that_reads_features_is_refused_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def near(losses: Any, context: Any) -> Any:
        return losses * (context.destination.features["act"].flatten(1).norm(dim=-1) < 100)

    ktg.register_gate(near)
    path = write_recipe(tmp_path / "search.yaml", search_values(gates=["through", "near"]))
    assert run_search(path, "--output-dir", tmp_path / "out", "--dry-run") == 2
    said = capsys.readouterr().err
    assert "search.gates.1: gate `near` should return losses" in said
    assert "Taps of the source: none" in said


def test_loss_with_parameters_is_named_as_a_candidate_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "search.yaml", search_values(losses=["kl_div", "srd"]))
    assert run_search(path, "--output-dir", tmp_path / "out", "--dry-run") == 2
    assert "search.losses.1: " in (said := capsys.readouterr().err) and "graph." not in said


def test_every_model_is_tried_with_every_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = ["kl_div", {"loss": "attention", "taps": "stem.0"}]
    values = search_values(models=["ktg_tiny", "resnet8_cifar"], losses=losses)
    path = write_recipe(tmp_path / "search.yaml", values)
    assert run_search(path, "--output-dir", tmp_path / "out", "--dry-run") == 2
    assert "graph.nodes.aux2.taps: `stem.0` is not a module of" in capsys.readouterr().err


def test_control_with_a_loss_that_is_no_candidate_is_not_another_graph() -> None:
    choices = build_choices(recipe_of(losses=[DKD]).search)
    with pytest.raises(ValueError, match="^gate/aux1->target: should be one of through, dkd"):
        choices.params(all_through("ktg_tiny", ("ktg_tiny",)))


def test_label_edge_is_through_and_not_correct() -> None:
    search = search_values(gates=["through", "cutoff", "linear", "correct"])
    space = build_choices(check_section(SearchRecipe, search).search).largest
    assert space.parts_of(("label", "target"), "through") == ("through", "")
    params = build_choices(check_section(SearchRecipe, search).search).params(
        all_through("ktg_tiny", ("ktg_tiny",))
    )
    assert {value for name, value in params.items() if name.startswith("gate/")} == {"through"}
