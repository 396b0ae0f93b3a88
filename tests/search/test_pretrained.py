"""Frozen nodes with timm's own weights of a model, read from a folder instead of the hub."""

from pathlib import Path
from typing import Any

import pytest
import timm

from tests.recipe_cases import write_recipe
from tests.search_cases import result_in, run_search, search_values, study_in
from timm_ktg.errors import RecipeError
from timm_ktg.graph.folder import export_folder
from timm_ktg.graph.weights import export_node
from timm_ktg.recipe.node_config import NodeConfig
from timm_ktg.recipe.recipe import check_section, load_recipe
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.search.identity import identity_of

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def folder_of(path: Path, classes: int = 10) -> str:
    """Write weights as timm reads them, and return the model's name."""
    model = timm.create_model("resnet8_cifar", num_classes=classes)
    weights = path / "model.safetensors"
    export_node(model, weights, MEAN, STD)
    config = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD}
    export_folder(model, weights, config, [str(number) for number in range(classes)])
    return f"local-dir:{path / 'model'}"


def values_of(model: str, **search: Any) -> dict[str, Any]:
    given = {"models": [model], "weights": {model: "pretrained"}, "kinds": ["frozen"]}
    return search_values(**{**given, "trials": 3, "final_seeds": [0], **search})


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_frozen_node_has_timms_weights_and_nothing_is_trained_for_it(tmp_path: Path) -> None:
    model, out = folder_of(tmp_path), tmp_path / "out"
    values = values_of(model, gates=["through", "linear"], sampler="brute_force")
    assert run_search(write_recipe(tmp_path / "s.yaml", values), "--output-dir", out) == 0
    with pytest.raises(KeyError):
        study_in(out, "s/teachers")
    node = load_recipe(str(out / "best.yaml")).graph.nodes["aux1"]
    assert isinstance(node, NodeConfig) and node.model == model
    assert node.pretrained and node.checkpoint_path is None
    rows = {row["name"]: row for row in result_in(out)["rows"]}
    assert rows["best-1"]["one teacher for all seeds"] and rows["KD T=4"]["test top1"]


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("classes", [4, None])
def test_weights_that_do_not_fit_or_do_not_exist_are_refused_before_the_first_trial(
    classes: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder_of(tmp_path, classes) if classes else "resnet8_cifar"
    recipe = write_recipe(tmp_path / "s.yaml", values_of(model))
    assert run_search(recipe, "--output-dir", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    # What looks like a password in an address is hidden, so the path is.
    assert line.startswith("search.weights." + model.partition("/")[0])
    assert ("Found 4" if classes else "No pretrained weights") in line


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"ktg_tiny": "pretraned"}, r"search.weights.ktg_tiny.0: .*Did you mean `pretrained`\?"),
        ({"ktg_tiny": "a.pth"}, "Found nothing at `a.pth`. `pretrained` stands for those of timm."),
        ({"ktg_tni": "pretrained"}, r"search.weights.ktg_tni: .*Did you mean `ktg_tiny`\?"),
    ],
)
def test_wrong_weights_cost_a_line(weights: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        check_section(SearchRecipe, search_values(weights=weights))
    assert len(caught.value.problems) == 1


def test_pretrained_weights_are_told_from_others_in_a_study() -> None:
    recipe = check_section(SearchRecipe, search_values(weights={"ktg_tiny": "pretrained"}))
    assert identity_of(recipe)["search.weights"] == {"ktg_tiny": "pretrained"}
