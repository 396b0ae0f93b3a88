"""What a run measures, against numpy and scikit-learn."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import top_k_accuracy_score

from tests.nets import edge, graph_of, hard_labels, images, kl_reference, soft_labels
from timm_ktg import GraphLosses, KnowledgeTransferGraph
from timm_ktg.train.metrics import (
    EpochMeter,
    TrainingError,
    _mean_weight,
    accuracies,
    correct_counts,
)

EDGES = [edge("label", "a"), edge("b", "a", "correct"), edge("label", "b"), edge("a", "b")]


def logits_and_labels(classes: int, batch: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(batch, classes, generator=generator)
    return logits, torch.randint(classes, (batch,), generator=generator)


@pytest.mark.parametrize("classes", [6, 10, 100])
def test_counts_are_those_of_scikit_learn(classes: int) -> None:
    logits, labels = logits_and_labels(classes)
    expected = [
        top_k_accuracy_score(labels, logits, k=k, normalize=False, labels=np.arange(classes))
        for k in (1, 5)
    ]
    assert correct_counts(logits, labels).tolist() == expected
    assert expected[0] < expected[1] < len(labels)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_top5_of_five_classes_or_fewer_is_everything(classes: int) -> None:
    logits, labels = logits_and_labels(classes)
    top1, top5 = correct_counts(logits, labels).tolist()
    assert top1 == int((logits.argmax(1) == labels).sum()) < top5 == len(labels)


def test_dominant_class_counts_where_labels_are_mixed() -> None:
    logits, _ = logits_and_labels(10, batch=64)
    mixed = soft_labels(64, num_classes=10)
    assert torch.equal(correct_counts(logits, mixed), correct_counts(logits, mixed.argmax(1)))


def test_accuracies_are_percent_by_node() -> None:
    found = accuracies("val", ["a", "b"], torch.tensor([[1, 2], [3, 3]]), torch.tensor(3))
    assert found == {
        "val/top1/a": pytest.approx(100 / 3, abs=1e-12),
        "val/top5/a": pytest.approx(200 / 3, abs=1e-12),
        "val/top1/b": 100.0,
        "val/top5/b": 100.0,
    }


def batches(graph: KnowledgeTransferGraph) -> Iterator[tuple[dict, torch.Tensor, GraphLosses]]:
    """Two batches of different sizes; the second has soft labels."""
    for batch, labels in ((8, hard_labels(8)), (3, soft_labels(3))):
        outputs = graph(images(batch, seed=batch))
        yield outputs, labels, graph.losses(outputs, labels, progress=0.5)


def test_epoch_means_weigh_every_image_alike() -> None:
    graph = graph_of(*EDGES)
    meter = EpochMeter(graph, Accelerator(cpu=True))
    sums: dict[str, float] = dict.fromkeys(
        ("a", "label->a", "b->a", "came b->a", "passed b->a", "top1 a"), 0.0
    )
    for update, (outputs, labels, losses) in enumerate(batches(graph), start=1):
        meter.update(losses, outputs, labels, update)
        hard = labels if labels.ndim == 1 else labels.argmax(1)
        right = {name: outputs[name].logits.argmax(1) == hard for name in ("a", "b")}
        sums["a"] += float(losses.nodes["a"].detach()) * len(labels)
        sums["label->a"] += float(losses.edges["label->a"]) * len(labels)
        sums["b->a"] += float(losses.edges["b->a"]) * len(labels)
        sums["came b->a"] += kl_reference(outputs["b"].logits, outputs["a"].logits).sum()
        sums["passed b->a"] += float(right["b"].sum())
        sums["top1 a"] += float(right["a"].sum())
    metrics = meter.read()
    assert meter.images == 11
    assert metrics["train/loss/a"] == pytest.approx(sums["a"] / 11, rel=1e-6)
    assert metrics["train/loss/label->a"] == pytest.approx(sums["label->a"] / 11, rel=1e-6)
    assert metrics["train/passed/b->a"] == pytest.approx(sums["passed b->a"] / 11, rel=1e-6)
    assert metrics["train/top1/a"] == pytest.approx(100 * sums["top1 a"] / 11, rel=1e-6)
    weight = sums["b->a"] / sums["came b->a"]
    assert 0 < weight < 1
    assert metrics["train/weight/b->a"] == pytest.approx(weight, rel=1e-5)
    assert metrics["train/weight/label->a"] == 1.0


def test_every_measure_has_its_name() -> None:
    graph = graph_of(*EDGES, edge("c", "a", "linear"), frozen=("c",))
    meter = EpochMeter(graph, Accelerator(cpu=True))
    for update, (outputs, labels, losses) in enumerate(batches(graph), start=1):
        meter.update(losses, outputs, labels, update)
    edges = ("label->a", "b->a", "label->b", "a->b", "c->a")
    assert set(meter.read()) == {
        *(f"train/loss/{name}" for name in ("a", "b", *edges)),
        *(f"train/weight/{name}" for name in edges),
        "train/passed/b->a",  # the one gate that stops samples
        *(f"train/top{top}/{name}" for top in (1, 5) for name in ("a", "b", "c")),
    }


@pytest.mark.parametrize(("gate", "weight"), [("linear", 0.5), ("negative_linear", 0.5)])
def test_gate_that_weighs_has_a_mean_weight_and_no_share(gate: str, weight: float) -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", gate), frozen=("b",))
    meter = EpochMeter(graph, Accelerator(cpu=True))
    for update, (outputs, labels, losses) in enumerate(batches(graph), start=1):
        meter.update(losses, outputs, labels, update)
    metrics = meter.read()
    assert metrics["train/weight/b->a"] == pytest.approx(weight)
    assert "train/passed/b->a" not in metrics


def test_gate_that_stops_everything_has_weight_zero() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", "negative_linear"), frozen=("b",))
    meter = EpochMeter(graph, Accelerator(cpu=True))
    outputs, labels = graph(images()), hard_labels()
    meter.update(graph.losses(outputs, labels, progress=1.0), outputs, labels, 1)
    assert meter.read()["train/weight/b->a"] == 0.0


@pytest.mark.parametrize("came", [0.0, math.nan, math.inf])
def test_mean_weight_of_losses_that_say_nothing_is_that_of_the_edge(came: float) -> None:
    assert _mean_weight(0.0, came, 0.9) == 0.9


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_first_loss_that_is_not_finite_is_named(bad: float) -> None:
    graph = graph_of(*EDGES)
    meter = EpochMeter(graph, Accelerator(cpu=True))
    for update in range(1, 6):
        for outputs, labels, losses in batches(graph):
            if update >= 3:
                losses.edges["b->a"].fill_(bad)
            if update >= 4:
                losses.edges["label->b"].fill_(bad)
            meter.update(losses, outputs, labels, update)
    with pytest.raises(TrainingError) as caught:
        meter.read()
    said = "The loss of node a is not finite at update 3, on b->a (gate correct)."
    assert str(caught.value) == said


def test_meter_waits_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(*EDGES)
    meter = EpochMeter(graph, Accelerator(cpu=True))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, _refuse)
    for outputs, labels, losses in batches(graph):
        meter.update(losses, outputs, labels, 1)


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("a step should not read values back")
