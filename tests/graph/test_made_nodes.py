"""Nodes that are made from others: ensembles and exponential moving averages."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3

import timm_ktg as ktg
from tests.nets import TinyNet, array, edge, hard_labels, images, kl_reference, log_softmax, same


def graph_with(
    *made: Any, edges: Any = (), target: str = "a", **options: Any
) -> ktg.KnowledgeTransferGraph:
    """Two networks that learn from the label, and nodes that are made from them."""
    nodes = [*made, *(ktg.Node(name, TinyNet(seed)) for seed, name in enumerate("ab"))]
    own = [edge("label", "a"), edge("label", "b"), *edges]
    return ktg.KnowledgeTransferGraph(nodes, own, target, **options)


def step(graph: ktg.KnowledgeTransferGraph, seed: int) -> None:
    """Move the weights of the networks that learn, and let BatchNorm see images."""
    graph.train()
    graph(images(seed=seed))
    with torch.no_grad():
        for name in graph.learning:
            for parameter in graph.model(name).parameters():
                parameter += torch.randn(parameter.shape)


# Ensembles


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_ensemble_averages_logits(weights: Any) -> None:
    graph = graph_with(ktg.Ensemble("crowd", ("a", "b"), weights=weights), target="crowd")
    found = graph(images())
    a, b = (array(found[name].logits) for name in "ab")
    expected = (a + b) / 2 if weights is None else 0.75 * a + 0.25 * b
    np.testing.assert_allclose(array(found["crowd"].logits), expected, rtol=1e-5, atol=1e-7)
    assert not found["crowd"].logits.requires_grad


@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_ensemble_averages_probabilities(weights: Any) -> None:
    crowd = ktg.Ensemble("crowd", ("a", "b"), "probabilities", weights)
    graph = graph_with(crowd, target="crowd")
    found = graph(images())
    a, b = (np.exp(log_softmax(array(found[name].logits))) for name in "ab")
    expected = np.log((a + b) / 2 if weights is None else 0.75 * a + 0.25 * b)
    np.testing.assert_allclose(array(found["crowd"].logits), expected, rtol=1e-5, atol=1e-6)


def test_ensemble_teaches_its_own_members_without_learning_itself() -> None:
    graph = graph_with(ktg.Ensemble("crowd", ("a", "b")), edges=[edge("crowd", "a")])
    outputs = graph(images())
    losses = graph.losses(outputs, hard_labels())
    expected = kl_reference(outputs["crowd"].logits, outputs["a"].logits).mean()
    assert losses.edges["crowd->a"].item() == pytest.approx(expected, rel=1e-4)
    assert graph.learning == ("a", "b") and graph.frozen == ()


def test_ensemble_may_consist_of_frozen_nodes_and_of_ensembles() -> None:
    nodes = [
        ktg.Ensemble("all", ("crowd", "a")),
        ktg.Ensemble("crowd", ("b", "c")),
        *(
            ktg.Node(name, TinyNet(seed), pretrained=name in "bc")
            for seed, name in enumerate("abc")
        ),
    ]
    graph = ktg.KnowledgeTransferGraph(nodes, [edge("label", "a"), edge("crowd", "a")], "all")
    found = graph(images())
    assert graph.frozen == ("b", "c") and list(graph.members) == ["all", "crowd", "a", "b", "c"]
    logits = [array(found[name].logits) for name in ("b", "c", "a")]
    expected = (logits[0] + logits[1]) / 4 + logits[2] / 2
    np.testing.assert_allclose(array(found["all"].logits), expected, rtol=1e-4, atol=1e-6)


def test_ensemble_that_influences_nothing_is_observed_all_the_same() -> None:
    graph = graph_with(ktg.Ensemble("crowd", ("a", "b")), edges=[edge("b", "a")])
    assert "crowd" in graph(images()) and graph.left_out == ()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([ktg.Ensemble("crowd", ("a",))], "two different members. Found a."),
        ([ktg.Ensemble("crowd", ())], "two different members. Found none."),
        ([ktg.Ensemble("crowd", ("a", "a"))], "two different members. Found a, a."),
        ([ktg.Ensemble("crowd", ("a", "crowd"))], "made of itself: crowd of crowd."),
        ([ktg.Ensemble("crowd", ("a", "d"))], "`d` is not a node."),
        (
            [ktg.Ensemble("x", ("a", "y")), ktg.Ensemble("y", ("b", "x"))],
            "should not be made of itself: ",
        ),
        ([ktg.Ema("slow", "teacher")], "should follow a network that learns. `teacher` is frozen."),
        ([ktg.Ema("slow", "slow")], "should not be made of itself: slow of slow."),
        (
            [ktg.Ensemble("crowd", ("a", "b")), ktg.Ema("slow", "crowd")],
            "should follow a network. `crowd` is an ensemble.",
        ),
    ],
)
def test_made_node_that_cannot_be_is_refused(made: Any, said: str) -> None:
    teacher = ktg.Node("teacher", TinyNet(7), pretrained=True)
    with pytest.raises(ValueError, match="^nodes.") as caught:
        graph_with(*made, teacher, edges=[edge("teacher", "a")])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"weights": (1.0,)},
            "nodes.x.weights: should be one for each of the 2 members. Found 1.0",
        ),
        ({"weights": (1.0, 0.0)}, "nodes.x.weights: should be positive and finite. Found 1.0, 0.0"),
        ({"weights": (1.0, float("inf"))}, "should be positive and finite"),
        ({"combine": "sum"}, "nodes.x.combine: should be logits or probabilities. Found sum."),
    ],
)
def test_ensemble_with_a_wrong_argument_is_refused(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^nodes\.x\.") as caught:
        ktg.Ensemble("x", ("a", "b"), **options)
    assert said in str(caught.value)


def test_ensemble_of_frozen_nodes_cannot_be_the_target() -> None:
    nodes = [ktg.Node(name, TinyNet(seed), pretrained=True) for seed, name in enumerate("ab")]
    crowd = ktg.Ensemble("crowd", ("a", "b"))
    with pytest.raises(ValueError, match="^target: nothing that `crowd` is made from learns."):
        ktg.KnowledgeTransferGraph([crowd, *nodes], [], "crowd")
    kept = ktg.Node("c", TinyNet(3))  # something else that learns does not help
    with pytest.raises(ValueError, match="^target: nothing that `crowd` is made from learns."):
        ktg.KnowledgeTransferGraph([crowd, *nodes, kept], [edge("label", "c")], "crowd", keep=["c"])


# Exponential moving averages


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_ema_follows_as_that_of_timm_update_by_update(warmup: bool, recorded: bool) -> None:
    graph = graph_with(ktg.Ema("slow", "a", decay=0.9, warmup=warmup))
    theirs = ModelEmaV3(graph.model("a"), decay=0.9, use_warmup=warmup)
    for number in range(1, 9):
        step(graph, number)
        theirs.update(graph.model("a"), step=number)
        graph.update_emas(torch.tensor(float(number)) if recorded else number)
        for own, other in zip(
            graph.model("slow").state_dict().values(),
            theirs.module.state_dict().values(),
            strict=True,
        ):
            assert torch.equal(own, other)


def test_ema_teaches_in_evaluation_mode_and_does_not_learn() -> None:
    graph = graph_with(ktg.Ema("slow", "a"), edges=[edge("slow", "a")]).train()
    assert graph.learning == ("a",) and graph.frozen == ()
    before = deepcopy(graph.model("slow").state_dict())
    outputs = graph(images())
    assert torch.equal(outputs["slow"].logits, graph.model("slow")(images()))
    assert not graph.model("slow").training
    graph.losses(outputs, hard_labels()).total.backward()
    assert all(each.grad is None for each in graph.model("slow").parameters())
    assert same(list(before.values()), list(graph.model("slow").state_dict().values()))


def test_ema_of_a_model_that_keeps_what_it_makes_from_its_weights_is_up_to_date() -> None:
    tiny = {"embed_dim": (16, 16, 16), "num_heads": (2, 2, 2), "depth": (1, 1, 1)}
    model = timm.create_model("levit_128s", num_classes=3, img_size=64, **tiny)
    nodes = [ktg.Node("a", model), ktg.Ema("slow", "a", 0.0)]
    edges = [edge("label", "a"), edge("slow", "a")]
    graph = ktg.KnowledgeTransferGraph(nodes, edges, "a").train()
    batch = torch.randn(2, 3, 64, 64)
    for update in (1, 2):
        with torch.no_grad():
            graph(batch)
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        graph.update_emas(update)
    taught = graph(batch)["slow"].logits
    assert torch.equal(taught, graph.eval()(batch)["slow"].logits)


def test_ema_may_be_the_target_of_a_network_that_learns() -> None:
    graph = graph_with(ktg.Ema("slow", "a", decay=0.5), target="slow")
    assert graph.learning == ("a",) and graph.left_out == ("b",)
    before = deepcopy(graph.model("a").state_dict())
    step(graph, 1)
    after = graph.model("a").state_dict()
    graph.update_emas(2)  # the first update would copy
    expected = TinyNet(0)
    expected.load_state_dict(
        {
            key: value.lerp(after[key], 0.5) if value.is_floating_point() else after[key]
            for key, value in before.items()
        }
    )
    graph.eval()
    torch.testing.assert_close(graph(images())["slow"].logits, expected.eval()(images()))
    assert not torch.equal(graph(images())["slow"].logits, graph(images())["a"].logits)


def test_ema_has_taps_of_its_own() -> None:
    graph = graph_with(
        ktg.Ema("slow", "a"), edges=[edge("slow", "a", taps="act", loss=lambda *_, **__: None)]
    )
    found = graph(images())
    assert list(found["slow"].features) == list(found["a"].features) == ["act"]
    assert not torch.equal(found["slow"].features["act"], found["a"].features["act"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_ema_with_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^nodes\.slow\.decay: should be at least 0 and below 1"):
        ktg.Ema("slow", "a", decay)


def test_average_that_teaches_nobody_runs_in_evaluations_only() -> None:
    watched = [ktg.Ema("slow", "a"), ktg.Ensemble("late", ("slow", "b"))]
    graph = graph_with(*watched, ktg.Ensemble("crowd", ("a", "b")), edges=[edge("crowd", "a")])
    assert set(graph.train()(images())) == {"a", "b", "crowd"}
    assert set(graph.eval()(images())) == {"a", "b", "crowd", "slow", "late"}
    teaching = graph_with(*watched, edges=[edge("late", "a")])
    assert set(teaching.train()(images())) == {"a", "b", "slow", "late"}
