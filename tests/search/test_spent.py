"""The cost that a search reports."""

import json
from pathlib import Path

import pytest

from tests.recipe_cases import Values, write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from timm_ktg.recipe.data_config import DataConfig
from timm_ktg.recipe.recipe import Recipe, read_recipe
from timm_ktg.recipe.search_config import SearchConfig
from timm_ktg.recipe.splits import build_splits
from timm_ktg.review.study_data import read_study
from timm_ktg.search.canonical import CanonicalGraph
from timm_ktg.search.methods import Asha
from timm_ktg.search.recipes import RecipeBuilder
from timm_ktg.search.trials import COSTS
from timm_ktg.search.weights import NoWeightsError


def search(tmp_path: Path, values: dict[str, Values]) -> int:
    recipe = write_recipe(tmp_path / "s.yaml", values)
    return run_search(recipe, "--output-dir", tmp_path / "run")


def test_result_is_written_as_json(tmp_path: Path) -> None:
    assert search(tmp_path, search_values(trials=2, final_seeds=[0])) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    spent = result["spent"]
    assert spent["complete"] + spent["pruned"] == 2
    assert 2 <= spent["epochs"] <= spent["epochs without pruning"] == 8


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({}, "asha: 1,500 trials, stopped at the rungs."),
        (
            {"budget": 400, "pruner": "none"},
            "asha: 1,500 trials or 400 epochs, never stopped.",
        ),
    ],
)
def test_limits_of_a_search_are_named(values: dict[str, Values], title: str) -> None:
    config = {"target_model": "ktg_tiny", "models": ["ktg_tiny"], "nodes": 2, **values}
    assert Asha(SearchConfig.model_validate(config), epochs=10).title == title


def test_trial_carries_its_cost(tmp_path: Path) -> None:
    assert search(tmp_path, search_values(trials=3, final_seeds=[0])) == 0
    study, result = study_in(tmp_path / "run", "s"), result_in(tmp_path / "run")
    costs = {trial.number: trial.user_attrs["cost"] for trial in study.trials}
    for row in result["rows"]:
        assert row["cost"] == costs.get(row["trial"], {})
    best = costs[number := result["rows"][0]["trial"]]
    assert set(best) == set(COSTS)
    run = next((tmp_path / "run" / "final").glob("best-1*/seed-0"))
    cost = json.loads((run / "summary.json").read_text())["cost"]
    assert cost["inference_flops"] == best["inference_flops"]
    assert cost["parameters"] == best["parameters"]
    data = DataConfig.model_validate(read_recipe(tmp_path / "run" / "search.yaml")["data"])
    images, epochs = len(build_splits(data).train), study.trials[number].user_attrs["epochs"]
    assert best["training_flops"] == cost["training_flops"] * images * epochs
    total = sum(each["training_flops"] for each in costs.values())
    assert result["spent"]["training GFLOPs"] == round(total / 1e9)


def test_trial_that_never_trained_has_no_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_of, asked = RecipeBuilder.recipe_of, []

    def without_weights(builder: RecipeBuilder, graph: CanonicalGraph, *how: str) -> Recipe:
        asked.append(graph)
        if len(asked) == 2:
            raise NoWeightsError("There are none.")
        return recipe_of(builder, graph, *how)

    monkeypatch.setattr(RecipeBuilder, "recipe_of", without_weights)
    values = search_values(gates=["through", "linear"], trials=3, top_k=0, pruner="none")
    assert search(tmp_path, values) == 0
    trials = study_in(tmp_path / "run", "s").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert [trial.user_attrs["epochs"] for trial in trials] == [4, 0, 4]
    assert ["cost" in trial.user_attrs for trial in trials] == [True, False, True]


def test_epochs_of_a_whole_trial_are_those_of_its_schedule(tmp_path: Path) -> None:
    values = search_values(trials=2, top_k=0, pruner="none")
    values["train"] |= {"epochs": 2, "cooldown_epochs": 1, "warmup_epochs": 1}
    assert search(tmp_path, values) == 0
    spent = result_in(tmp_path / "run")["spent"]
    assert spent["epochs"] == spent["epochs without pruning"] == 6
    assert read_study(tmp_path / "run").epochs == 3
