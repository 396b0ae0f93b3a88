"""Teachers: two frozen nodes of one model are two networks, and neither is the student's twin."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.artifacts import FileSystemArtifactStore

from tests.recipe_cases import write_recipe
from tests.search_cases import run_search, search_values, study_in
from timm_ktg.errors import StorageError
from timm_ktg.recipe.build import build_nodes
from timm_ktg.recipe.recipe import Recipe, check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.canonical import CanonicalGraph, canonical_form
from timm_ktg.search.recipes import RecipeBuilder, label_only
from timm_ktg.search.teachers import Teacher, teachers_for, teachers_of
from timm_ktg.search.weights import SharedWeights
from timm_ktg.train.seeds import with_seed

pytestmark = pytest.mark.slow


def two_of_a_model(first: str = "through", second: str = "through") -> CanonicalGraph:
    models = {"target": "t", "x": "a", "y": "a", "z": "b"}
    gates = {("label", "target"): "through", ("z", "target"): "through"}
    return canonical_form(models, gates | {("x", "target"): first, ("y", "target"): second})


def test_frozen_nodes_of_one_model_are_two_teachers() -> None:
    teachers = teachers_of(two_of_a_model(), 7)
    assert teachers == {
        "aux1": Teacher("a", 1, 7),
        "aux2": Teacher("a", 2, 7),
        "aux3": Teacher("b", 1, 7),
    }
    assert two_of_a_model("linear").key == two_of_a_model("through", "linear").key
    assert set(teachers.values()) < set(teachers_for("ab", 3, 7))


def test_teachers_seeds_are_no_other_networks() -> None:
    teachers = [each for seed in (0, 1) for each in teachers_for(["a", "b"], 3, seed)]
    seeds = [each.training_seed for each in teachers]
    assert len({*seeds, 0, 1}) == len(teachers) + 2


def test_teacher_does_not_start_from_the_students_initial_weights() -> None:
    recipe = check_section(SearchRecipe, search_values())
    alone = label_only(recipe, "ktg_tiny")
    teacher = with_seed(alone, Teacher("ktg_tiny", 1, 0).training_seed)
    student, other = (build_nodes(each, 10)[0].model for each in (alone, teacher))
    (first, *_), (second, *_) = student.parameters(), other.parameters()
    assert not torch.equal(first, second)


def test_weights_that_are_not_in_the_folder_stop_the_worker_and_not_the_trial(
    tmp_path: Path,
) -> None:
    teacher, store = Teacher("ktg_tiny", 1, 0), FileSystemArtifactStore(str(tmp_path))
    done = {str(teacher): SimpleNamespace(attributes={"digest": "x", "artifact": "gone"})}
    jobs: Any = SimpleNamespace(done=lambda: done)
    shared = SharedWeights([teacher], jobs, store, tmp_path / "own", {})
    with pytest.raises(
        StorageError, match=r"^search.artifacts: should hold the weights of .* Found none"
    ):
        shared.path(teacher)
    assert not list((tmp_path / "own").iterdir())


def test_two_frozen_nodes_of_one_model_load_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes: list[Recipe] = []
    recipe_of = RecipeBuilder.recipe_of

    def spy(builder: RecipeBuilder, graph: CanonicalGraph, *more: Any) -> Recipe:
        recipes.append(recipe_of(builder, graph, *more))
        return recipes[-1]

    monkeypatch.setattr(RecipeBuilder, "recipe_of", spy)
    values: dict[str, Any] = search_values(
        nodes=3, models=["ktg_tiny"], gates=["through"], frozen=True, trials=3, top_k=0
    )
    values["train"]["epochs"] = 1
    run = tmp_path / "run"
    assert run_search(write_recipe(tmp_path / "s.yaml", values), "--output-dir", run) == 0
    found = [frozen_files(recipe) for recipe in recipes]
    paths, *others = [paths for paths in found if len(paths) == 2]
    for each in (paths, *others):  # the others were trained on all images
        assert len({Path(path).read_bytes() for path in each}) == 2
    assert len(study_in(run, "s/teachers").trials) == 2

    # One file that the user has is one network; the other is trained, which is said.
    values["search"]["weights"] = {"ktg_tiny": paths[0]}
    capsys.readouterr()
    run = tmp_path / "given"
    assert run_search(write_recipe(tmp_path / "g.yaml", values), "--output-dir", run) == 0
    said = "search.weights: a graph may have 2 frozen nodes of ktg_tiny. Found 1 file(s)"
    assert capsys.readouterr().out.count(said) == 1
    assert [trial.params["job"] for trial in study_in(run, "g/teachers").trials] == [
        "ktg_tiny, teacher 2, seed 0"
    ]


def frozen_files(recipe: Recipe) -> list[str]:
    paths = [node.checkpoint_path for node in recipe.graph.nodes.values()]
    return [path for path in paths if path is not None]
