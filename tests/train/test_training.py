"""Training, update by update: gradients, clipping, decay, seeds, and the clock."""

import math
import os
import shutil
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import training_cases as cases
from tests.nets import ce_reference, gradients, kl_reference, ktg_tiny, same
from tests.recipe_cases import NORMED, PLAIN, recipe_values
from tests.tiny_data import TRAIN, UPDATES, VAL
from tests.training_cases import (
    build,
    furthest,
    on_cpu,
    same_state,
    spy_on_losses,
    state_of,
    train,
)
from timm_ktg import GraphLosses
from timm_ktg.errors import RecipeError
from timm_ktg.graph.weights import export_node
from timm_ktg.recipe.recipe import check_recipe
from timm_ktg.records.metrics import Metrics
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch
from timm_ktg.train.program import create_accelerator
from timm_ktg.train.training import Training

pytestmark = pytest.mark.slow

THROUGH = {
    "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "b": "through"}},
    "b": {"model": "ktg_tiny", "learns_from": {"label": "through", "a": {"temperature": 2.0}}},
}


def update_once(training: Training) -> Metrics:
    return train_epoch(training, islice(start_epoch(training), 1))


# Gradients.


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_gradients_equals_the_whole_batch(parts: int) -> None:
    whole, parted = build(recipe_values()), build(recipe_values(grad_accum_steps=parts))
    before = state_of(whole.graph)
    (first,), (second,) = train(whole), train(parted)
    assert furthest(before, state_of(whole.graph)) > 1e-2
    assert furthest(state_of(whole.graph), state_of(parted.graph)) < 1e-6
    for name in first.keys() - cases.TIMES:
        assert second[name] == pytest.approx(first[name], rel=1e-5), name


def unlike(factor_a: float, factor_b: float) -> dict[str, Any]:
    def label(factor: float) -> dict[str, Any]:
        return {"label": {"loss": "scaled", "loss_kwargs": {"factor": factor}}}

    return {
        "a": {"model": "ktg_tiny", "learns_from": {**label(factor_a), "b": "through"}},
        "b": {"model": "ktg_tiny", "learns_from": label(factor_b)},
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_clipping_is_node_by_node(parts: int) -> None:
    values = recipe_values(unlike(1000.0, 0.01), grad_accum_steps=parts)
    free = build(values)
    values["train"]["clip_grad"] = 0.5
    clipped = build(values)
    update_once(free), update_once(clipped)
    norms = {
        (name, training is clipped): math.sqrt(
            sum(float(grad.square().sum()) for grad in gradients(training.graph.model(name)))
        )
        for training in (free, clipped)
        for name in ("a", "b")
    }
    assert norms["a", False] > 100 and norms["a", True] == pytest.approx(0.5, rel=1e-4)
    assert norms["b", True] < 0.5
    assert same(gradients(free.graph.model("b")), gradients(clipped.graph.model("b")))


def test_clipping_may_be_by_value() -> None:
    values = recipe_values(unlike(1000.0, 1.0), clip_grad=0.25, clip_mode="value")
    training = build(values)
    update_once(training)
    assert max(float(g.abs().max()) for g in gradients(training.graph.model("a"))) == 0.25


# The optimizer.


def test_every_node_that_learns_is_one_parameter_group(tmp_path: Path) -> None:
    weights = tmp_path / "c.safetensors"
    export_node(ktg_tiny(), weights)
    frozen = {"model": "ktg_tiny", "checkpoint_path": str(weights)}
    nodes: dict[str, Any] = {**NORMED, "c": frozen}
    nodes["a"] = {**nodes["a"], "learns_from": {"label": "through", "b": "linear", "c": "correct"}}
    training = build(recipe_values(nodes, weight_decay=0.03))
    groups = training.optimizer.param_groups
    assert [group["node"] for group in groups] == ["a", "b"]
    assert [group["weight_decay"] for group in groups] == [0.03, 0.03]
    for group in groups:
        own = list(training.graph.model(group["node"]).parameters())
        assert [id(parameter) for parameter in group["params"]] == [id(each) for each in own]


def test_filter_bias_and_bn_splits_every_node_in_two() -> None:
    training = build(recipe_values(NORMED, weight_decay=0.03, filter_bias_and_bn=True))
    groups = training.optimizer.param_groups
    decay = [(group["node"], group["weight_decay"]) for group in groups]
    assert decay == [("a", 0.0), ("a", 0.03), ("b", 0.0), ("b", 0.03)]
    for group in groups:
        assert {each.ndim > 1 for each in group["params"]} == {group["weight_decay"] > 0}


def test_update_is_nesterovs_with_decay_of_every_parameter() -> None:
    values = recipe_values(NORMED, lr=0.1, momentum=0.8, weight_decay=0.3)
    training = build(values)
    before = {name: each.detach().clone() for name, each in training.graph.named_parameters()}
    update_once(training)
    for name, parameter in training.graph.named_parameters():
        assert parameter.grad is not None
        step = (1 + 0.8) * (parameter.grad + 0.3 * before[name])
        torch.testing.assert_close(parameter.detach(), before[name] - 0.1 * step)


# Labels.


@on_cpu
def test_smoothing_reaches_the_edges_from_the_label_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(recipe_values(THROUGH, smoothing=0.2))
    steps = spy_on_losses(training, monkeypatch)
    train(training)
    assert len(steps) == UPDATES
    for outputs, labels, losses in steps:
        a, b = outputs["a"].logits, outputs["b"].logits
        expected = {
            "label->a": ce_reference(a, labels, smoothing=0.2),
            "label->b": ce_reference(b, labels, smoothing=0.2),
            "b->a": kl_reference(b, a),
            "a->b": kl_reference(a, b, temperature=2.0),
        }
        for pair, values in expected.items():
            assert float(losses.edges[pair]) == pytest.approx(values.mean(), rel=1e-4), pair


@on_cpu
def test_mixed_labels_are_soft_and_smoothed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = recipe_values(data={"mixup": 0.2, "cutmix": 0.5}, smoothing=0.1)
    training = build(values)
    steps = spy_on_losses(training, monkeypatch)
    train(training)
    for outputs, labels, losses in steps:
        assert labels.shape == outputs["a"].logits.shape
        torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)))
        assert float(labels.min()) == pytest.approx(0.1 / 10)
        expected = ce_reference(outputs["a"].logits, labels).mean()
        assert float(losses.edges["label->a"]) == pytest.approx(expected, rel=1e-5)
    assert any(0.05 < float(each) < 0.85 for _, labels, _ in steps for each in labels.flatten())


# Seeds.


def trained(values: dict[str, Any]) -> dict[str, Tensor]:
    training = build(values)
    train(training, 2)
    return state_of(training.graph)


def test_seed_decides_every_bit() -> None:
    nodes: dict[str, Any] = {
        name: {**node, "model_kwargs": {"drop_rate": 0.3}} for name, node in NORMED.items()
    }
    values = recipe_values(nodes, data={"mixup": 0.2}, seed=5)
    first = trained(values)
    torch.manual_seed(123), np.random.seed(4)
    assert same_state(first, trained(values))
    values["train"]["seed"] = 6
    assert not same_state(first, trained(values))


def test_epoch_draws_by_its_number_whatever_was_drawn_before() -> None:
    training = build(recipe_values())

    def draws() -> Iterator[Any]:
        images, labels = next(iter(start_epoch(training)))
        yield from (images.sum().item(), labels.tolist())
        yield from (torch.rand(()).item(), np.random.rand())

    first = list(draws())
    torch.rand(1000), np.random.rand(7)
    assert list(draws()) == first
    train(training)
    second = list(draws())
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_nodes_of_one_architecture_start_apart_and_apart_from_other_nodes() -> None:
    pair = build(recipe_values(THROUGH)).graph
    assert furthest(state_of(pair.model("a")), state_of(pair.model("b"))) > 0.01
    three = {"first": {"model": "ktg_tiny", "learns_from": {"label": "through"}}, **THROUGH}
    three["a"] = {**three["a"], "learns_from": {"label": "through", "b": "linear", "first": {}}}
    more = build(recipe_values(three)).graph
    for name in ("a", "b"):
        assert same_state(state_of(pair.model(name)), state_of(more.model(name)))


def test_node_may_have_a_seed_of_its_own() -> None:
    nodes = {name: {**node, "seed": 3} for name, node in THROUGH.items()}
    graph = build(recipe_values(nodes)).graph
    assert same_state(state_of(graph.model("a")), state_of(graph.model("b")))


# The schedule.


def test_schedule_falls_to_min_lr() -> None:
    training = build(recipe_values(epochs=3, sched="cosine", lr=0.05, min_lr=0.02))
    rates = [metrics["lr"] for metrics in train(training, 3)]
    assert rates[0] == 0.05 and 0.02 < rates[2] < rates[1] < 0.05
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


def test_schedule_on_updates_steps_at_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    training = build(recipe_values(sched_on_updates=True))
    rates: list[float] = []
    losses = training.graph.losses

    def spy(*arguments: Any) -> GraphLosses:
        rates.append(training.optimizer.param_groups[0]["lr"])
        return losses(*arguments)

    monkeypatch.setattr(training.graph, "losses", spy)
    train(training)
    assert len(rates) == UPDATES
    assert rates == sorted(set(rates), reverse=True), "every update has a lower rate"


# The clock.


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 2),
        ({"grad_accum_steps": 2}, 2),
        ({"warmup_epochs": 1, "warmup_prefix": True, "cooldown_epochs": 1}, 4),
        ({"warmup_epochs": 1, "sched_on_updates": True}, 2),
    ],
)
def test_gates_see_progress_from_the_first_update_to_exactly_one(
    options: dict[str, Any], epochs: int
) -> None:
    nodes = {"a": {"model": "ktg_tiny", "learns_from": {"label": "recording"}}}
    training = build(recipe_values(nodes, **options))
    assert training.epochs == epochs and training.images.val is not None
    cases.progress.clear()
    for _ in range(training.epochs):
        train(training)
        evaluate(training, training.images.val, "val")
    last = epochs * UPDATES
    parts = options.get("grad_accum_steps", 1)
    expected = [update / last for update in range(1, last + 1) for _ in range(parts)]
    assert cases.progress == expected and cases.progress[-1] == 1.0


# Evaluation.


@on_cpu
def test_evaluation_counts_every_image_once_and_changes_nothing() -> None:
    training = build(recipe_values(NORMED))
    train(training)
    before = state_of(training.graph)
    assert training.images.val is not None
    metrics = evaluate(training, training.images.val, "val")
    assert same_state(before, state_of(training.graph))
    images, labels = map(torch.cat, zip(*training.images.val, strict=True))
    assert len(labels) == VAL and len(training.splits.train) == TRAIN
    for name in ("a", "b"):
        logits = training.graph.model(name).eval()(images).detach().numpy()
        ranks = (-logits).argsort(1)
        for top in (1, 5):
            share = 100 * (ranks[:, :top] == labels.numpy()[:, None]).any(1).mean()
            assert metrics[f"val/top{top}/{name}"] == pytest.approx(share, abs=1e-12)


CAN_COMPILE = (
    shutil.which(os.environ.get("CXX", "g++")) is not None
    and Path(sysconfig.get_path("include"), "Python.h").is_file()
)


@pytest.mark.skipif(not CAN_COMPILE, reason="inductor needs a C++ compiler and Python's headers")
@pytest.mark.filterwarnings("default")  # what inductor says of itself
def test_compiled_node_trains_to_the_same_loss() -> None:
    plain, compiled = build(recipe_values(PLAIN)), build(recipe_values(PLAIN, torchcompile=True))
    assert compiled.graph.model("a")._compiled_call_impl is not None
    first, second = update_once(plain), update_once(compiled)
    assert second["train/loss/a"] == pytest.approx(first["train/loss/a"], abs=1e-4)
    assert furthest(state_of(plain.graph), state_of(compiled.graph)) < 1e-4


def test_gradients_are_not_divided_by_a_number_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    with pytest.raises(
        RecipeError, match=r"should not be set; use train\.grad_accum_steps .* Found 8"
    ):
        create_accelerator(check_recipe(recipe_values()))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    create_accelerator(check_recipe(recipe_values()))
