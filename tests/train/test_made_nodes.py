"""Ensembles and exponential moving averages in a run: measured, resumed, exported, the target."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

import timm_ktg as ktg
from tests.recipe_cases import MUTUAL, NO_AUGMENTATION, Values, recipe_values
from tests.tiny_data import UPDATES
from tests.training_cases import (
    assert_same_run,
    build,
    metrics_of,
    on_cpu,
    run_main,
    same_state,
    state_of,
    stop_run,
    summary_of,
    train_run,
)
from timm_ktg.errors import RecipeError
from timm_ktg.records.metrics import ALL_NETWORKS
from timm_ktg.train.loop import evaluate, start_epoch, train_epoch
from timm_ktg.train.training import Training

NODES: Values = {
    "a": {
        "model": "ktg_tiny",
        "model_kwargs": {"norm": True},
        "learns_from": {
            "label": {"gate": "through", "weight": 0.5},
            "slow": {"gate": "through", "temperature": 2.0},
            "crowd": "linear",
        },
    },
    "b": MUTUAL["b"],
    "crowd": {"ensemble": ["a", "b"], "combine": "probabilities", "weights": [2.0, 1.0]},
    "slow": {"ema": "a", "decay": 0.75},
}
TARGETS = {"graph": {"target": "crowd"}}


def spied(training: Training, monkeypatch: pytest.MonkeyPatch) -> ModelEmaV3:
    """Let timm's own average follow the training, called as timm's training script calls it."""
    theirs = ModelEmaV3(training.graph.model("a"), decay=0.75)
    update = training.graph.update_emas

    def both(number: Any) -> None:
        update(number)
        theirs.update(training.graph.model("a"), step=int(number))
        assert same_state(state_of(training.graph.model("slow")), state_of(theirs.module))

    monkeypatch.setattr(training.graph, "update_emas", both)
    return theirs


@pytest.mark.parametrize("parts", [1, 2], ids=["whole batches", "accumulated"])
def test_average_is_that_of_timm_at_every_update(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = build(recipe_values(NODES, grad_accum_steps=parts, batch_size=32))
    theirs = spied(training, monkeypatch)
    before = copy.deepcopy(theirs.module.state_dict())
    for _ in range(2):
        train_epoch(training, start_epoch(training))
    assert not same_state(before, dict(theirs.module.state_dict()))


def test_every_node_is_measured_and_all_networks_together() -> None:
    training = build(recipe_values(NODES))
    train_epoch(training, start_epoch(training))
    assert training.images.val is not None
    metrics = evaluate(training, training.images.val, "val")
    assert {f"val/top1/{name}" for name in (*NODES, ALL_NETWORKS)} <= set(metrics)
    images, labels = (torch.cat(each) for each in zip(*training.images.val, strict=True))
    graph = training.graph.eval()
    a, b = graph.model("a")(images), graph.model("b")(images)
    for name, logits in (
        (ALL_NETWORKS, (a + b) / 2),
        ("crowd", 2 * a.softmax(-1) + b.softmax(-1)),
        ("slow", graph.model("slow")(images)),
    ):
        right = 100 * (logits.argmax(-1) == labels).double().mean().item()
        assert metrics[f"val/top1/{name}"] == pytest.approx(right), name


def test_one_network_is_not_measured_twice() -> None:
    nodes: Values = {"a": {"model": "ktg_tiny", "learns_from": {"label": "through"}}}
    training = build(recipe_values(nodes))
    assert training.images.val is not None
    assert "val/top1/a" in (found := evaluate(training, training.images.val, "val"))
    assert f"val/top1/{ALL_NETWORKS}" not in found


@pytest.mark.slow
@on_cpu
def test_run_with_an_ensemble_as_its_target_goes_on_bit_for_bit(tmp_path: Path) -> None:
    values = recipe_values(NODES, epochs=3, **TARGETS)
    whole = train_run(tmp_path / "whole", values)
    stopped = stop_run(tmp_path / "stopped", values, epoch=2)
    assert len(metrics_of(stopped)) == 1
    assert run_main("--resume", stopped) == 0
    assert_same_run(whole, stopped)
    summary = summary_of(whole)
    assert summary["target"] == "crowd"
    assert list(summary["nodes"]) == ["a", "b", "crowd", "slow", ALL_NETWORKS]
    exported = sorted(path.name for path in (whole / "nodes").glob("*.safetensors"))
    assert exported == ["a.safetensors", "b.safetensors", "slow.safetensors"]
    _predicts_what_was_measured(whole, summary)
    slow, a = (load_file(whole / "nodes" / f"{name}.safetensors") for name in ("slow", "a"))
    assert slow.keys() == a.keys() and not same_state(slow, a)


def _predicts_what_was_measured(run: Path, summary: Values) -> None:
    """Measure every node of a run anew, as loaded from its directory."""
    loader = build(recipe_values(NODES)).images.test
    assert loader is not None
    images, labels = (torch.cat(each) for each in zip(*loader(), strict=True))
    for name in (None, *NODES):
        model = ktg.load_run(run, name)
        right = 100 * (model(images).argmax(-1) == labels).double().mean().item()
        assert right == pytest.approx(summary["nodes"][name or "crowd"]["top1"]), name
        assert len(model.class_names) == 10 and model.mean is not None and not model.training


def test_run_that_cannot_be_loaded_costs_a_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"should be a finished run \(summary.json\). Found none"):
        ktg.load_run(tmp_path)


# train.model_ema


def test_model_ema_is_the_short_form_of_a_node() -> None:
    short = build(recipe_values(MUTUAL, model_ema=True, model_ema_decay="0.75"))
    long = build(
        recipe_values(
            {**MUTUAL, "a_ema": {"ema": "a", "decay": 0.75}},
            data=NO_AUGMENTATION | {"pad": 1, "hflip": 0.5},
        )
    )
    for training in (short, long):
        train_epoch(training, start_epoch(training))
    assert short.recipe.graph == long.recipe.graph
    assert same_state(state_of(short.graph), state_of(long.graph))
    assert short.state.epochs == 1 and UPDATES > 1
    assert not same_state(state_of(short.graph.model("a")), state_of(short.graph.model("a_ema")))


@pytest.mark.slow
def test_model_ema_is_measured_beside_the_target(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", recipe_values(MUTUAL, model_ema=True))
    summary = summary_of(run)
    assert summary["target"] == "a" and "a_ema" in summary["nodes"]
    # It teaches nobody, so it does not run in training.
    assert "val/top1/a_ema" in metrics_of(run)[-1] and "train/top1/a_ema" not in metrics_of(run)[-1]
