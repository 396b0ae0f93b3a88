"""What a graph computes: outputs, losses, gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import timm_ktg as ktg
from tests.nets import (
    CLASSES,
    array,
    ce_reference,
    edge,
    gradients,
    graph_of,
    hard_labels,
    images,
    kl_reference,
    output,
    same,
    soft_labels,
)

# softmax([log 3, 0]) = (3/4, 1/4) and softmax([0, 0]) = (1/2, 1/2).
SHARP, FLAT = torch.tensor([3.0, 1.0]).log().tolist(), [0.0, 0.0]


def losses_of(
    graph: ktg.KnowledgeTransferGraph,
    logits: dict[str, Any],
    labels: Tensor,
    progress: float | Tensor = 1.0,
) -> ktg.GraphLosses:
    """The losses of made-up logits, which are leaves with gradients."""
    outputs = {
        name: ktg.NodeOutput(output(rows).logits.requires_grad_()) for name, rows in logits.items()
    }
    return graph.losses(outputs, labels, progress)


# Forward


def test_forward_returns_an_output_for_every_node() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("label", "b")).eval()
    outputs = graph(images())
    assert list(outputs) == ["a", "b"]
    for name, found in outputs.items():
        assert isinstance(found, ktg.NodeOutput)
        assert torch.equal(found.logits, graph.model(name)(images()))
        assert dict(found.features) == {}


def test_forward_returns_the_features_of_the_taps() -> None:
    plain = graph_of(edge("label", "a"))
    tapped = ktg.KnowledgeTransferGraph(
        [ktg.Node("a", plain.model("a"), taps=("stem.0", "act"))], [edge("label", "a")], "a"
    )
    found = tapped(images())["a"]
    assert list(found.features) == ["stem.0", "act"]
    assert torch.equal(found.features["stem.0"], tapped.model("a").stem[0](images()))


# Equation 3


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("progress", [0.3, 1.0, torch.tensor(0.3, dtype=torch.float64)])
@pytest.mark.parametrize("labels", [hard_labels(), soft_labels()], ids=["hard", "soft"])
def test_losses_are_those_of_equation_3(
    labels: Tensor, progress: float | Tensor, reduction: Any
) -> None:
    graph = graph_of(
        edge("label", "a", "correct"),
        edge("b", "a", "correct"),
        edge("c", "a", "linear", temperature=3.0),
        edge("label", "b", "linear"),
        edge("a", "b", "negative_linear"),
        edge("c", "b", "cutoff"),
        edge("a", "c", "through", temperature=2.0),
        reduction=reduction,
    )
    a, b, c = 3 * torch.randn(3, 8, CLASSES, generator=torch.Generator().manual_seed(2))
    losses = losses_of(graph, {"a": a, "b": b, "c": c}, labels, progress)

    k = float(progress)
    top = labels.numpy() if labels.ndim == 1 else labels.numpy().argmax(-1)
    right = array(b).argmax(-1) == top
    assert 0 < right.sum() < 8, "the gate should have something to decide"
    edges = {
        "label->a": ce_reference(a, labels),
        "b->a": np.where(right, kl_reference(b, a), 0),
        "c->a": kl_reference(c, a, 3.0) * k,
        "label->b": ce_reference(b, labels) * k,
        "a->b": kl_reference(a, b) * (1 - k),
        "a->c": kl_reference(a, c, 2.0),
    }
    means = {pair: each.mean() for pair, each in edges.items()}
    share = 0.5 if reduction == "mean" else 1.0  # a has two network sources
    nodes = {
        "a": means["label->a"] + share * (means["b->a"] + means["c->a"]),
        "b": means["label->b"] + means["a->b"],
        "c": means["a->c"],
    }
    assert {pair: each.item() for pair, each in losses.edges.items()} == pytest.approx(
        means, rel=1e-5, abs=1e-9
    )
    assert {name: each.item() for name, each in losses.nodes.items()} == pytest.approx(
        nodes, rel=1e-5
    )
    assert losses.total.item() == pytest.approx(sum(nodes.values()), rel=1e-5)
    assert {pair: each.item() for pair, each in losses.passed.items()} == pytest.approx(
        dict.fromkeys(edges, 1.0) | {"b->a": right.mean(), "a->b": float(k < 1)}
    )


def test_losses_have_golden_values() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("label", "b"))
    losses = losses_of(graph, {"a": [FLAT], "b": [SHARP]}, torch.tensor([0]))
    # H(y, p_a) = log 2 = 0.693147; KL(p_b || p_a) = 3/4 log 3/2 - 1/4 log 2 = 0.130812;
    # H(y, p_b) = log 4/3 = 0.287682.
    assert losses.nodes["a"].item() == pytest.approx(0.693147 + 0.130812, abs=1e-6)
    assert losses.nodes["b"].item() == pytest.approx(0.287682, abs=1e-6)
    assert losses.total.item() == pytest.approx(1.111641, abs=1e-6)


def test_mean_reduction_divides_the_networks_and_not_the_label() -> None:
    edges = [edge("label", "a"), *(edge(name, "a") for name in "bc")]
    edges += [edge("label", name) for name in "bc"]
    logits = {"a": [FLAT], "b": [SHARP], "c": [FLAT]}
    for reduction, expected in (("sum", 0.693147 + 0.130812), ("mean", 0.693147 + 0.065406)):
        losses = losses_of(graph_of(*edges, reduction=reduction), logits, torch.tensor([0]))
        assert losses.nodes["a"].item() == pytest.approx(expected, abs=1e-6)
        assert losses.nodes["b"].item() == pytest.approx(0.287682, abs=1e-6)


def test_edge_loss_is_the_mean_over_the_whole_batch() -> None:
    graph = graph_of(edge("b", "a", "correct"), edge("label", "b"))
    # b says 0 four times, which is right once: 0.130812 / 4, not 0.130812 / 1.
    losses = losses_of(graph, {"a": [FLAT] * 4, "b": [SHARP] * 4}, torch.tensor([1, 0, 1, 1]))
    assert losses.edges["b->a"].item() == pytest.approx(0.032703, abs=1e-6)
    assert losses.passed["b->a"].item() == 0.25


def test_sample_without_a_loss_counts_as_passed() -> None:
    graph = graph_of(edge("b", "a", "correct"), edge("label", "b"))
    # The second sample is stopped; the third is too, but there both nodes agree already.
    logits = {"a": [FLAT, FLAT, SHARP, FLAT], "b": [SHARP] * 4}
    losses = losses_of(graph, logits, torch.tensor([0, 1, 1, 0]))
    assert losses.passed["b->a"].item() == 0.75


def test_parts_for_logging_are_detached_and_the_rest_is_not() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("label", "b"))
    losses = graph.losses(graph(images()), hard_labels())
    assert losses.total.shape == ()
    assert losses.total.requires_grad
    assert all(each.requires_grad and each.shape == () for each in losses.nodes.values())
    parts = [*losses.edges.values(), *losses.passed.values()]
    assert len(parts) == 6
    assert all(not each.requires_grad and each.shape == () for each in parts)


def test_losses_of_soft_one_hot_labels_are_those_of_hard_labels() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", "correct"), edge("label", "b", "correct"))
    outputs = graph(images())
    hard = graph.losses(outputs, hard_labels())
    soft = graph.losses(outputs, torch.eye(CLASSES)[hard_labels()])
    torch.testing.assert_close(hard.total, soft.total)
    assert hard.passed == soft.passed


@pytest.mark.parametrize("shape", [(8, 1), (7,), (8, CLASSES + 1), ()])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("label", "b"))
    labels = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"indices \[8\] or class probabilities \[8, 4\]. Found"):
        graph.losses(graph(images()), labels)


def test_losses_need_no_gradient_in_evaluation() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("label", "b")).eval()
    expected = graph.losses(graph(images()), hard_labels()).total
    with torch.no_grad():
        found = graph.losses(graph(images()), hard_labels()).total
    assert not found.requires_grad
    assert found.item() == expected.item()


def test_losses_under_autocast_are_float32() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", temperature=4.0), edge("label", "b"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = graph(images())
        losses = graph.losses(outputs, hard_labels())
    assert outputs["a"].logits.dtype == torch.bfloat16
    a, b = (outputs[name].logits for name in "ab")
    expected = ce_reference(a, hard_labels()).mean() + kl_reference(b, a, 4.0).mean()
    assert losses.total.dtype == torch.float32
    assert losses.nodes["a"].item() == pytest.approx(expected, rel=1e-5)


# What an edge's functions see


def test_functions_of_an_edge_see_the_source_detached() -> None:
    seen: list[ktg.EdgeContext] = []

    def watch(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        seen.append(context)
        return losses

    edges = [ktg.Edge("b", "a", gate=watch), ktg.Edge("label", "a", gate=watch), edge("label", "b")]
    nodes = [
        ktg.Node(name, graph_of(edge("label", "a")).model("a"), taps=("act",)) for name in "ab"
    ]
    graph = ktg.KnowledgeTransferGraph(nodes, edges, "a")
    outputs, labels = graph(images()), hard_labels()
    graph.losses(outputs, labels, 0.25)
    network, label = seen
    assert torch.equal(network.source.logits, outputs["b"].logits)
    assert not network.source.logits.requires_grad
    assert not network.source.features["act"].requires_grad
    assert network.destination is outputs["a"]
    assert network.destination.features["act"].requires_grad
    assert torch.equal(label.source.logits, torch.eye(CLASSES)[labels])
    assert network.labels is labels
    assert network.progress == 0.25


def test_label_output_of_mixed_labels_is_the_mixed_labels() -> None:
    seen: list[Tensor] = []

    def watch(losses: Tensor, context: ktg.EdgeContext) -> Tensor:
        seen.append(context.source.logits)
        return losses

    graph = graph_of(ktg.Edge("label", "a", gate=watch))
    graph.losses(graph(images()), soft_labels())
    assert torch.equal(seen[0], soft_labels())


def test_loss_of_an_edge_can_measure_features() -> None:
    def hint(
        source: ktg.NodeOutput,
        destination: ktg.NodeOutput,
        labels: Tensor,
        *,
        temperature: float,
    ) -> Tensor:
        return (source.features["act"] - destination.features["act"]).pow(2).flatten(1).sum(-1)

    models = [graph_of(edge("label", "a")).model("a") for _ in "ab"]
    torch.nn.init.normal_(models[1].stem[0].weight)
    graph = ktg.KnowledgeTransferGraph(
        [ktg.Node(name, model, taps=("act",)) for name, model in zip("ab", models, strict=True)],
        [ktg.Edge("b", "a", loss=hint), edge("label", "b")],
        "a",
    )
    outputs = graph(images())
    losses = graph.losses(outputs, hard_labels())
    difference = array(outputs["b"].features["act"]) - array(outputs["a"].features["act"])
    assert losses.nodes["a"].item() == pytest.approx((difference**2).sum() / 8, rel=1e-5)
    losses.nodes["a"].backward()
    assert models[0].stem[0].weight.grad.abs().sum() > 0
    assert models[1].stem[0].weight.grad is None or not models[1].stem[0].weight.grad.any()


# Gradients


def backward(*edges: ktg.Edge, **options: Any) -> ktg.KnowledgeTransferGraph:
    graph = graph_of(*edges, **options)
    graph.losses(graph(images()), hard_labels(), 0.5).total.backward()
    return graph


@pytest.mark.parametrize("gate", ["through", "correct", "linear", "negative_linear"])
def test_edge_sends_no_gradient_to_its_source(gate: str) -> None:
    alone = [edge("label", "a"), edge("label", "b")]
    apart = backward(*alone, keep=("b",))
    taught = backward(*alone, edge("b", "a", gate, temperature=2.0))
    assert same(gradients(taught.model("b")), gradients(apart.model("b")))
    assert not same(gradients(taught.model("a")), gradients(apart.model("a")))


def test_one_backward_equals_one_for_every_node() -> None:
    graph = graph_of(
        edge("label", "a"),
        edge("b", "a", "correct"),
        edge("label", "b"),
        edge("a", "b", temperature=2.0),
        edge("c", "b", "linear"),
        edge("a", "c"),
    )
    losses = graph.losses(graph(images()), hard_labels(), 0.5)
    apart = {
        name: torch.autograd.grad(loss, list(graph.model(name).parameters()), retain_graph=True)
        for name, loss in losses.nodes.items()
    }
    losses.total.backward()
    assert list(apart) == ["a", "b", "c"]
    for name, expected in apart.items():
        torch.testing.assert_close(gradients(graph.model(name)), list(expected), rtol=0, atol=1e-7)


def test_loss_of_a_node_reaches_its_own_parameters_only() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a"), edge("a", "b"), edge("label", "b"))
    graph.losses(graph(images()), hard_labels()).nodes["a"].backward()
    assert any(gradient.abs().sum() > 0 for gradient in gradients(graph.model("a")))
    others = [parameter.grad for parameter in graph.model("b").parameters()]
    assert not any(gradient is not None and gradient.any() for gradient in others)
