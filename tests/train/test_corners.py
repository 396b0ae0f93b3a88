"""Rare recipes and rare moments: what they would spoil without a word is right, or refused."""

from pathlib import Path

import pytest
import torch

from tests.recipe_cases import (
    PLAIN,
    Values,
    problems_of,
    recipe_values,
    save_weights,
    write_recipe,
)
from tests.search_cases import search_values
from tests.tiny_data import TRAIN, VAL
from tests.train.test_longer import refused
from tests.training_cases import (
    build,
    metrics_of,
    register_cases,
    run_main,
    same_state,
    state_of,
    summary_of,
    train_run,
)
from timm_ktg.errors import RecipeError
from timm_ktg.recipe.recipe import check_recipe, check_section
from timm_ktg.recipe.search_config import SearchRecipe
from timm_ktg.recipe.trained import values_to_start_from
from timm_ktg.search.recipes import label_only
from timm_ktg.train.checkpoint import _check_optimizer
from timm_ktg.train.checks import check_gradients
from timm_ktg.train.teachers import teacher_recipe

pytestmark = pytest.mark.slow

KD: Values = {
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "t": "through"}},
    "t": {"model": "resnet8_cifar"},
}
PROJECTED: Values = {
    "a": {
        "model": "ktg_tiny",
        "learns_from": {"label": "through", "b": {"loss": "projected", "gate": "through"}},
    },
    "b": {"model": "ktg_tiny", "learns_from": {"label": "through"}},
}


def test_graph_that_no_label_reaches_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    mutual: Values = {
        "a": {"model": "ktg_tiny", "learns_from": {"b": "through"}},
        "b": {"model": "ktg_tiny", "learns_from": {"a": "through"}},
    }
    build(recipe_values(mutual))
    assert [each for each in caplog.messages if "can learn nothing" in each] == [
        "graph.target: `a` can learn nothing, because no edge leads to it from the label or from a "
        "node with weights, not even through others."
    ]
    caplog.clear()
    mutual["b"]["learns_from"]["label"] = "through"
    build(recipe_values(mutual))
    assert not caplog.messages


# Teachers see the images that they teach with.


def test_teacher_that_is_trained_first_sees_the_size_and_crop_of_the_target() -> None:
    nodes: Values = {
        "a": {"model": "resnet8_cifar", "learns_from": {"label": "through", "t": "through"}},
        "t": {"model": "test_resnet", "train_first": True},
    }
    recipe = check_recipe({"graph": {"target": "a", "nodes": nodes}, "data": {"pipeline": "timm"}})
    data = teacher_recipe(recipe, "t").data
    assert (data.img_size, data.crop_pct) == (32, 1.0)  # 160 and 0.95 are its own
    given = recipe.model_copy(update={"data": recipe.data.model_copy(update={"img_size": 24})})
    assert teacher_recipe(given, "t").data.img_size == 24
    in_memory = check_recipe({"graph": {"target": "a", "nodes": nodes}})
    assert teacher_recipe(in_memory, "t").data == in_memory.data


def test_teacher_of_a_search_sees_the_size_and_crop_of_the_target() -> None:
    values = search_values()
    values["data"] = {"pipeline": "timm", "holdout": 100}
    values["search"] |= {"target_model": "resnet8_cifar", "models": ["test_resnet"]}
    recipe = check_section(SearchRecipe, values)
    data = label_only(recipe, "test_resnet").data
    assert (data.img_size, data.crop_pct) == (32, 1.0)
    assert label_only(recipe, "resnet8_cifar").data == recipe.data


# A run goes on with what it began with.


def test_resumed_run_whose_teacher_was_replaced_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe_values(KD)
    values["graph"]["nodes"]["t"]["checkpoint_path"] = file = str(tmp_path / "t.safetensors")
    save_weights(file)
    run = train_run(tmp_path / "run", values)
    (run / "summary.json").unlink()
    before = Path(file).read_bytes()
    save_weights(file)  # others
    assert Path(file).read_bytes() != before
    line = refused(capsys, "--resume", run)
    assert "graph.nodes.t should have the weights that the run began with. Found others" in line
    Path(file).write_bytes(before)
    assert run_main("--resume", run) == 0


def test_end_without_test_and_validation_images_is_repeated_bit_for_bit(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", recipe_values(data={"test_split": None, "holdout": 0}))
    summary = summary_of(run)
    assert summary["split"] == "train" and summary["images"] == TRAIN + VAL
    (run / "summary.json").unlink()
    assert run_main("--resume", run) == 0
    assert summary_of(run)["nodes"] == summary["nodes"]


def test_run_does_not_replace_the_weights_that_it_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(tmp_path / "run", recipe_values(PLAIN))
    line = refused(capsys, "--from", run, "--output-dir", run, "--overwrite")
    assert line.startswith(f"output-dir: {run} holds the weights that graph.nodes.a starts from.")
    assert (run / "nodes" / "a.safetensors").is_file()


def test_initial_classifier_is_scaled_once(tmp_path: Path) -> None:
    nodes: Values = {"a": {"model": "resnet8_cifar", "learns_from": {"label": "through"}}}
    run = train_run(tmp_path / "run", recipe_values(nodes, head_init_scale=0.01, head_init_bias=1))
    train = values_to_start_from(run)["train"]
    assert train.keys().isdisjoint({"head_init_scale", "head_init_bias"}) and train["epochs"] == 2


@pytest.mark.parametrize("state", [[torch.ones(2), torch.ones(3)], (1, 2.0), torch.ones(1), None])
def test_state_of_an_optimizer_may_be_a_list_of_tensors(state: object) -> None:
    optimizer = torch.optim.SGD([weight := torch.nn.Parameter(torch.ones(1))])
    optimizer.state[weight] = {"Q": state}
    _check_optimizer(optimizer, [{}])
    optimizer.state[weight] = {"Q": [state, print]}
    with pytest.raises(ValueError, match="the optimizer's Q should be numbers"):
        _check_optimizer(optimizer, [{}])


def test_optimizer_that_needs_second_derivatives_is_refused() -> None:
    (line,) = problems_of(recipe_values(opt="adahessian"))
    assert line.startswith("train.opt: adahessian needs second derivatives")


# A single image, several processes, a last update.


@pytest.mark.parametrize(("batch_size", "parts"), [(53, 1), (87, 3)])
def test_single_image_is_refused_before_training_where_it_cannot_be_normalized(
    batch_size: int, parts: int
) -> None:
    register_cases()  # 266 = 5 * 53 + 1 = 3 * 87 + 5, and 5 images are parts of 2, 2 and 1
    values = recipe_values(PROJECTED, batch_size=batch_size, grad_accum_steps=parts)
    with pytest.raises(RecipeError, match="train.batch_size: leaves a single image .*266 images"):
        build(values)
    build(recipe_values(PROJECTED, batch_size=batch_size + 3 * parts, grad_accum_steps=parts))


def test_single_image_of_a_stream_is_refused_before_training() -> None:
    register_cases()
    values = recipe_values(PROJECTED, batch_size=64)
    streamed = {"pipeline": "timm", "streaming": True, "img_size": 8, "workers": 0, "pad": 4}
    values["data"] |= {**streamed, "holdout": 0, "train_num_samples": 65}
    with pytest.raises(RecipeError, match="train.batch_size: leaves a single image .*65 images"):
        build(values)
    build({**values, "data": {**values["data"], "train_num_samples": 66}})


def test_single_image_that_can_be_normalized_changes_nothing() -> None:
    nodes: Values = {"a": {"model": "resnet8_cifar", "learns_from": {"label": "through"}}}
    before, after = (state_of(build(recipe_values(nodes, batch_size=b)).graph) for b in (64, 53))
    assert any("running_mean" in key for key in before) and same_state(before, after)


def test_views_of_a_single_image_are_no_single_image() -> None:
    nodes: Values = {"a": {"model": "resnet8_cifar", "learns_from": {"label": {"loss": "jsd"}}}}
    values = recipe_values(nodes, batch_size=53)  # the last of 6 batches has one image
    kept = {key: each for key, each in values["data"].items() if key != "pad"}
    views = {"pipeline": "timm", "img_size": 8, "aa": "augmix-m3", "aug_splits": 3, "workers": 0}
    build({**values, "data": {**kept, **views}})


def test_several_processes_need_a_gradient_of_every_classifier() -> None:
    values = recipe_values(PROJECTED)
    values["graph"]["nodes"]["b"]["learns_from"] = {
        "a": {"loss": "attention", "taps": "act", "gate": "through"}
    }
    recipe = check_recipe(values)
    check_gradients(recipe, 1)
    check_gradients(check_recipe(recipe_values(PROJECTED)), 2)
    with pytest.raises(RecipeError, match=r"^graph.nodes.b.learns_from: several processes need"):
        check_gradients(recipe, 2)


def test_last_update_that_spoils_the_target_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe_values(PLAIN, lr=1e38, epochs=1, batch_size=TRAIN)
    recipe = write_recipe(tmp_path / "r.yaml", values)
    assert run_main(recipe, "--output-dir", tmp_path / "run") == 1
    assert "The last update of epoch 1 has spoiled a" in capsys.readouterr().err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len(metrics_of(tmp_path / "run")) == 1


def test_tap_that_the_model_overwrites_is_refused_before_training() -> None:
    edge = {"loss": "attention", "taps": "layer1.0.bn1"}
    nodes: Values = {
        "a": {"model": "resnet10t", "learns_from": {"label": "through", "b": edge}},
        "b": {"model": "resnet10t", "learns_from": {"label": "through"}},
    }
    with pytest.raises(RecipeError) as caught:
        build(recipe_values(nodes))
    said = "The output of module `layer1.0.bn1` should not be overwritten."
    assert [line.partition(" An operation")[0] for line in caught.value.problems] == [
        f"graph.nodes.{name}: {said}" for name in nodes
    ]
