"""Errors of a graph, when it is built and at a step."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

import timm_ktg as ktg
from tests.nets import TinyNet, edge, graph_of, hard_labels, images

A_B = ("a", "b")


def build(
    *edges: ktg.Edge, names: tuple[str, ...] = A_B, target: str = "a", **options: Any
) -> ktg.KnowledgeTransferGraph:
    nodes = [ktg.Node(name, TinyNet()) for name in names]
    return ktg.KnowledgeTransferGraph(nodes, edges, target, **options)


SOUND = [edge("label", "a"), edge("b", "a"), edge("label", "b")]


def test_sound_graph_is_built() -> None:
    assert build(*SOUND).learning == A_B


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (edge("a", "a"), "edges.a->a: `a` cannot learn from itself."),
        (
            edge("b", "a", "linear"),
            "edges.b->a/kl_div: two edges should not have the same name.",
        ),
        (edge("bb", "a"), "edges.bb->a: `bb` is not a node. Nodes: a, b. Did you mean `b`?"),
        (edge("a", "zzz"), "edges.a->zzz: `zzz` is not a node. Nodes: a, b."),
        (edge("a", "label"), "edges.a->label: `label` cannot learn."),
    ],
)
def test_impossible_edge_is_refused(wrong: ktg.Edge, problem: str) -> None:
    with pytest.raises(ValueError) as raised:
        build(*SOUND, wrong)
    assert str(raised.value) == problem


@pytest.mark.parametrize("name", ["3d", "a.b", "_x", "", "a-b"])
def test_bad_name_of_a_node_is_refused(name: str) -> None:
    expected = f"nodes.{name}: a node's name should be a letter, then letters, digits and `_`."
    with pytest.raises(ValueError) as raised:
        build(*SOUND, edge(name, "a"), edge("label", name), names=(*A_B, name))
    assert str(raised.value).startswith(expected)


@pytest.mark.parametrize("name", ["keys", "items", "forward", "train", "eval", "pop", "training"])
def test_name_that_torch_keeps_for_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as raised:
        build(*SOUND, edge(name, "a"), edge("label", name), names=(*A_B, name))
    assert str(raised.value).startswith(f"nodes.{name}: `{name}` is a name that torch reserves")


def test_node_called_label_is_refused() -> None:
    with pytest.raises(ValueError, match="^nodes.label: `label` is the name of the label"):
        build(*SOUND, names=(*A_B, "label"))


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes.b: two nodes should not have the same name."):
        build(*SOUND, names=(*A_B, "b"))


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        build(*SOUND, target="aa")
    assert str(raised.value) == "target: `aa` is not a node. Nodes: a, b. Did you mean `a`?"


@pytest.mark.parametrize("cut", [[], [edge("label", "a", "cutoff"), edge("b", "a", "cutoff")]])
def test_target_without_an_incoming_edge_is_refused(cut: list[ktg.Edge]) -> None:
    with pytest.raises(ValueError, match="^target: the target `a` should learn from something."):
        build(edge("label", "b"), edge("a", "b"), *cut)


def test_unknown_name_to_keep_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        build(*SOUND, keep=("bb",))
    assert str(raised.value) == "keep: `bb` is not a node. Did you mean `b`?"


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        build(*SOUND, reduction="max")
    assert str(raised.value) == "reduction: should be one of sum, mean. Found `max`."


def test_nodes_of_different_numbers_of_classes_are_refused() -> None:
    nodes = [ktg.Node("a", TinyNet(num_classes=10)), ktg.Node("b", TinyNet(num_classes=100))]
    with pytest.raises(ValueError) as raised:
        ktg.KnowledgeTransferGraph(nodes, SOUND, "a")
    assert str(raised.value) == (
        "nodes: all should have the same number of classes. Found a: 10, b: 100."
    )


def test_everything_that_is_wrong_is_said_at_once() -> None:
    nodes = [ktg.Node(name, TinyNet(num_classes=c)) for name, c in (("a", 10), ("3d", 100))]
    edges = [edge("a", "a"), edge("x", "a"), edge("x", "a"), edge("a", "label")]
    with pytest.raises(ValueError) as raised:
        ktg.KnowledgeTransferGraph(nodes, edges, "y", reduction="max", keep=("z",))  # type: ignore[arg-type]
    heads = [line.split(": ")[0] for line in str(raised.value).splitlines()]
    assert sorted(heads) == sorted(
        [
            "nodes.3d",
            "edges.a->a",
            "edges.x->a/kl_div",
            "edges.x->a/kl_div",
            "edges.a->label",
            "target",
            "keep",
            "nodes",
            "reduction",
        ]
    )


def test_every_frozen_node_without_weights_is_said_at_once() -> None:
    with pytest.raises(ValueError) as raised:
        build(edge("label", "a"), edge("b", "a"), edge("c", "a"), names=("a", "b", "c"))
    heads = [line.split(": ")[0] for line in str(raised.value).splitlines()]
    assert heads == ["nodes.b", "nodes.c"]


def test_tap_of_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match="`stem.O` is not a module of TinyNet. Did you mean `stem"):
        ktg.KnowledgeTransferGraph(
            [ktg.Node("a", TinyNet(), taps=("stem.O",))], [edge("label", "a")], "a"
        )


# Edges


def test_temperature_of_an_edge_from_the_label_is_refused() -> None:
    with pytest.raises(ValueError) as raised:
        edge("label", "a", temperature=2.0)
    assert str(raised.value) == (
        "label->a: temperature should be 1 on an edge from the label. Found 2.0."
    )


@pytest.mark.parametrize("name", ["kl_div", "dkd", "dist", "separate"])
def test_loss_between_networks_is_refused_on_an_edge_from_the_label(name: str) -> None:
    with pytest.raises(ValueError, match="label->a.*: loss should know the label") as caught:
        ktg.Edge("label", "a", loss=ktg.create_loss(name))
    assert f"Found {name}, which compares two networks." in str(caught.value)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="^b->a: temperature should be above 0. Found"):
        edge("b", "a", temperature=temperature)


def test_edge_measures_by_default_as_the_paper_does() -> None:
    assert [str(edge(source, "a").loss) for source in ("label", "b")] == ["cross_entropy", "kl_div"]
    assert str(ktg.Edge("b", "a").gate) == "through"
    smooth = ktg.create_loss("cross_entropy", smoothing=0.1)
    assert edge("label", "a", loss=smooth).loss is smooth


# At a step


def step(**functions: Any) -> ktg.GraphLosses:
    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", **functions), edge("label", "b"))
    return graph.losses(graph(images()), hard_labels())


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        (lambda x, c: x.mean(), r"one loss per sample \[8\]. Found \[\]"),
        (lambda x, c: x[:, None], r"one loss per sample \[8\]. Found \[8, 1\]"),
        (lambda x, c: x.detach(), "losses that gradients flow through. Found an output detached"),
        (lambda x, c: x > 0, "floating-point numbers. Found torch.bool"),
        (lambda x, c: 0.0, "a tensor. Found float"),
    ],
)
def test_gate_that_breaks_its_contract_is_an_error_that_names_the_edge(
    gate: Callable[..., Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^b->a: gate `.*` should return {sentence}"):
        step(gate=gate)


def distance(source: ktg.NodeOutput, destination: ktg.NodeOutput) -> Tensor:
    return (source.logits - destination.logits).pow(2)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda s, d, y, *, temperature: distance(s, d), r"sample \[8\]. Found \[8, 4\]"),
        (lambda s, d, y, *, temperature: distance(s, d).mean(), r"sample \[8\]. Found \[\]"),
        (lambda s, d, y, *, temperature: distance(s, d).sum(-1).detach(), r"gradients"),
        (lambda s, d, y, *, temperature: 0.0, r"Found float"),
    ],
    ids=["per_class", "mean", "detached", "float"],
)
def test_loss_that_breaks_its_contract_is_an_error_that_names_the_edge(
    loss: Callable[..., Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^b->a: loss `.*` should return .*{sentence}"):
        step(loss=loss)
