"""Searches that are judged by an ensemble: their recipes, controls, results and refusals."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

import timm_ktg as ktg
from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from tests.wandb_log import epochs_of, logs_in
from tests.wandb_log import nobody as nobody
from timm_ktg.errors import RecipeError
from timm_ktg.graph.topology import LABEL
from timm_ktg.recipe.recipe import check_section, load_recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.records.sample import Sample
from timm_ktg.review.study_data import read_study
from timm_ktg.review.study_page import study_page
from timm_ktg.search.canonical import CanonicalGraph, Models, canonical_form
from timm_ktg.search.controls import best_and_controls
from timm_ktg.search.looks import Looks
from timm_ktg.search.recipes import RecipeBuilder, candidates_recipe
from timm_ktg.search.result import Result, Row
from timm_ktg.search.sampler import _distributions
from timm_ktg.search.space import Choices, build_choices, controls
from timm_ktg.search.tracking import accuracy_of

TINY, WIDE = "ktg_tiny", "ktg_tiny_wide"


def recipe_of(objective: str = "ensemble", **search: Any) -> SearchRecipe:
    values = search_values(**{"nodes": 3, "frozen": True, "objective": objective, **search})
    return check_section(SearchRecipe, values)


def rows_of(best: CanonicalGraph, recipe: SearchRecipe) -> dict[str, Row]:
    """The rows of a search that has found a graph."""
    choices, study = build_choices(recipe.search), optuna.create_study(direction="maximize")
    distributions = _distributions({**choices.nodes(), **choices.largest.choices()})
    study.add_trial(
        create_trial(value=90.0, params=choices.params(best), distributions=distributions)
    )
    return {row.name: row for row in best_and_controls(study, choices, recipe, {WIDE: 85.0})}


def found(recipe: SearchRecipe, models: Models, *pairs: str) -> CanonicalGraph:
    """The graph with linear edges between these ends, `source->destination`."""
    ends = [pair.split("->") for pair in pairs]
    gates = {(source, node): "linear" for source, node in ends}
    return canonical_form({"target": TINY, **models}, gates, recipe.search.objective)


def with_a_teacher(recipe: SearchRecipe) -> CanonicalGraph:
    pairs = ("label->target", "label->aux1", "target->aux1", "aux2->aux1")
    return found(recipe, {"aux1": TINY, "aux2": WIDE}, *pairs)


def edges_of(row: Row) -> set[str]:
    return {f"{edge.source}->{edge.destination}" for edge in row.graph.edges}


def test_controls_of_an_ensemble_have_the_networks_that_learn_and_their_teachers() -> None:
    recipe = recipe_of()
    rows = rows_of(with_a_teacher(recipe), recipe)
    alone, taught = {"label->target", "label->aux1"}, {"aux2->target", "aux2->aux1"}
    assert list(rows) == [
        *("best-1", "independent", "label smoothing 0.1", "all-through sum", "all-through mean"),
        *("KD T=1", "KD T=4", "label-only"),
    ]
    for name in ("independent", "label smoothing 0.1"):
        assert edges_of(rows[name]) == alone
        assert list(rows[name].graph.models) == ["target", "aux1"]  # nobody learns from the third
    assert edges_of(rows["KD T=1"]) == edges_of(rows["KD T=4"]) == alone | taught
    through = {*alone, *taught, "aux1->target", "target->aux1"}
    assert edges_of(rows["all-through sum"]) == edges_of(rows["all-through mean"]) == through
    ensembles = {name for name, row in rows.items() if row.graph.members == ("target", "aux1")}
    assert ensembles == set(rows) - {"label-only"}
    assert rows["label-only"].graph.judged == "target"


def test_independent_networks_of_ensemble_all_keep_the_frozen_member() -> None:
    recipe = recipe_of("ensemble-all")
    rows = rows_of(with_a_teacher(recipe), recipe)
    assert rows["independent"].graph.frozen_nodes == ("aux2",)
    assert rows["independent"].graph.members == ("target", "aux1", "aux2")


def test_best_graph_that_is_independent_is_trained_once_and_compared() -> None:
    recipe = recipe_of()
    rows = rows_of(canonical_form({"target": TINY, "aux1": WIDE}, THROUGH, "ensemble"), recipe)
    samples = {name: Sample((80.0, 81.0, 82.0)) for name in rows}
    result = Result(list(rows.values()), samples, {}, Looks((0, 1, 2), (0, 1, 2), 1), images=1000)
    assert result.twins == {"independent": "best-1"}
    assert result.bases[0] == "independent" and "label-only" not in result.bases[:1]
    assert "ensemble of all networks that learn; label-only is one network." in " ".join(
        result.notes
    )
    assert result.as_json()["objective"] == "ensemble"
    assert [row["judged"] for row in result.as_json()["rows"]][-1] == "target"


THROUGH = {(LABEL, "target"): "through", (LABEL, "aux1"): "through"}


def test_recipe_of_a_graph_has_the_ensemble_as_its_target(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    for objective, members in (("ensemble", 2), ("ensemble-all", 3)):
        recipe = recipe_of(objective)
        builder = RecipeBuilder(recipe, lambda teacher: weights, 0)
        graph = builder.recipe_of(with_a_teacher(recipe)).graph
        assert graph.target == "ensemble" and list(graph.nodes)[-1] == "ensemble"
        names = graph.nodes["ensemble"].ensemble  # type: ignore[union-attr]
        assert names == ["target", "aux1", "aux2"][:members]
        assert set(graph.topology.learning) == {"target", "aux1"}
        assert candidates_recipe(recipe).graph.target == "ensemble"
        assert accuracy_of(build_choices(recipe.search)) == "val/top1/ensemble"


def test_enqueued_controls_of_an_ensemble_are_in_its_space() -> None:
    for objective in ("ensemble", "ensemble-all"):
        choices: Choices = build_choices(recipe_of(objective).search)
        independent, through = controls(choices.largest)
        assert len(independent.edges) == 3 and len(through.edges) == 9
        for graph in (independent, through):
            assert len(graph.members) == 3 and choices.graph(choices.params(graph)) == graph


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"nodes": [1, 2], "objective": "ensemble"},
            "search.nodes: should be 2 or more where an ensemble is judged. Found 1.",
        ),
        ({"objective": "ensembel"}, "search.objective: .* Did you mean `ensemble`?"),
    ],
)
def test_wrong_objective_costs_a_line(search: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        check_section(SearchRecipe, search_values(**search))
    assert len(caught.value.problems) == 1


@pytest.mark.slow
def test_model_ema_of_an_ensemble_is_refused_before_the_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    values = search_values(objective="ensemble")
    values["train"]["model_ema"] = True
    recipe = write_recipe(tmp_path / "s.yaml", values)
    assert run_search(recipe, "--output-dir", tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.model_ema: ")


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_search_for_an_ensemble_chooses_tests_and_exports_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        **search_values(objective="ensemble", frozen=True, trials=5, final_seeds=[0, 1]),
        "tracking": {"wandb": True, "mode": "offline", "project": "pets"},
    }
    out = tmp_path / "out"
    assert run_search(write_recipe(tmp_path / "s.yaml", values), "--output-dir", out) == 0
    said = capsys.readouterr().out
    assert "ensemble of target, aux1" in said and "label-only is one network." in said
    best = load_recipe(str(out / "best.yaml")).graph
    assert best.target == "ensemble" and best.topology.made_from("ensemble")[-1] == "ensemble"
    rows = {row["name"]: row for row in result_in(out)["rows"]}
    assert rows["best-1"]["judged"] == rows["independent"]["judged"] == "ensemble"
    (folder,) = (out / "final").glob("best-1-*")
    tops = [ktg.load_run(folder / f"seed-{seed}") for seed in (0, 1)]
    assert list(tops[0].members) == ["target", "aux1", "ensemble"]
    for log in logs_in(out):
        if log.run.job_type == "trial":
            reported = study_in(out, "s").trials[log.config["trial"]].intermediate_values
            shown = {row["epoch"]: row for row in epochs_of(log)}
            assert {epoch: shown[epoch]["val/top1/ensemble"] for epoch in reported} == reported
        else:
            (made,) = [each for each in log.artifacts if each.type == "model"]
            names = {entry.path for entry in made.manifest.contents}
            assert names == {"best.yaml", "target.safetensors", "aux1.safetensors"}
    page = study_page(read_study(out))
    assert "the ensemble of all networks that learn, ktg_tiny among them," in page["lead"]
    pictures = {row["name"]: row["svg"] for row in page["rows"]}
    assert "ensemble" in pictures["best-1"] and "ensemble" not in pictures["label-only"]
