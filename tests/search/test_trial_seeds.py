"""Seeds of trials: another one each time that a graph is trained, the same when tried again."""

from pathlib import Path

import optuna
import pytest
import torch
from accelerate import Accelerator
from optuna.trial import TrialState, create_trial

from tests.recipe_cases import write_recipe
from tests.search_cases import run_search, search_values, study_in
from tests.training_cases import reset_accelerate
from timm_ktg.recipe.recipe import check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search import processes
from timm_ktg.search.liveness import retry
from timm_ktg.search.objective import next_seed
from timm_ktg.search.recipes import candidates_recipe
from timm_ktg.search.trials import note
from timm_ktg.train.seeds import with_seed
from timm_ktg.train.training import Training, build_training

pytestmark = pytest.mark.slow


def test_same_graph_again_is_trained_from_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def spy(*arguments: object) -> Training:
        training = build_training(*arguments)  # type: ignore[arg-type]
        seeds.append(training.recipe.train.seed)
        return training

    monkeypatch.setattr(processes, "build_training", spy)
    values = search_values(nodes=1, gates=["through"], unique=False, trials=3, top_k=0)
    values["search"]["pruner"] = "none"
    run = tmp_path / "run"
    assert run_search(write_recipe(tmp_path / "s.yaml", values), "--output-dir", run) == 0
    trials = study_in(run, "s").trials
    assert len({trial.user_attrs["graph"] for trial in trials}) == 1
    noted = [trial.user_attrs["seed"] for trial in trials]
    assert seeds[-3:] == noted and len(set(noted)) == 3
    assert len({tuple(trial.intermediate_values.values()) for trial in trials}) > 1


def test_trial_that_is_tried_again_keeps_its_seed_and_nobody_else_gets_it() -> None:
    study = optuna.create_study()
    first = study.ask()
    note(first, graph="a", seed=next_seed(study, 0, "a", first.number))
    second = study.ask()
    note(second, graph="a", seed=next_seed(study, 0, "a", second.number))
    study.tell(first, state=TrialState.FAIL)  # its worker died
    retry(study, study.trials[0])
    waiting = study.trials[2]
    assert waiting.state == TrialState.WAITING
    assert waiting.user_attrs == {"seed": first.user_attrs["seed"]}
    third = next_seed(study, 0, "a", 3)
    assert len({third, first.user_attrs["seed"], second.user_attrs["seed"]}) == 3


def test_first_training_has_the_same_seed_in_every_study_and_other_graphs_have_others() -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0, user_attrs={"graph": "b"}))  # of an earlier version
    first = next_seed(study, 0, "a", 5)
    assert first == next_seed(optuna.create_study(), 0, "a", 0)
    assert len({first, next_seed(study, 1, "a", 5), next_seed(study, 0, "b", 5)}) == 3


@pytest.mark.parametrize("pipeline", ["memory", "timm"])
def test_images_that_were_read_for_another_seed_are_those_of_this_one(pipeline: str) -> None:
    values = search_values()
    if pipeline == "timm":
        del values["data"]["pad"]
        values["data"] |= {"pipeline": "timm", "workers": 0, "img_size": 8}
    recipe = candidates_recipe(check_section(SearchRecipe, values))
    reset_accelerate()
    built, again = (
        build_training(with_seed(recipe, seed), Accelerator(cpu=True)) for seed in (0, 1)
    )
    order = [next(iter(each.train))[1] for each in (built.images.with_seed(1), again.images)]
    assert torch.equal(*order)
    assert not torch.equal(order[0], next(iter(built.images.train))[1])
