"""Edges by name, several between two nodes, and those with parameters; nodes made from others."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests import edge_modules
from tests.nets import (
    TinyNet,
    array,
    ce_reference,
    edge,
    graph_of,
    hard_labels,
    images,
    kl_reference,
    same,
)
from timm_ktg.graph.node import Place
from timm_ktg.graph.topology import Traits


@pytest.fixture(autouse=True)
def modules() -> None:
    edge_modules.register()


def projecting(built: bool = True) -> ktg.KnowledgeTransferGraph:
    loss = ktg.create_loss("projected", width=2)
    gate = ktg.create_gate("learned")
    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", gate, loss), edge("label", "b"))
    if built:
        graph.build_edges(graph(images()), seed_of=len)
    return graph


# Names.


def test_edge_is_called_by_its_ends_and_its_tag() -> None:
    assert edge("label", "a").name == str(edge("label", "a")) == "label->a"
    assert edge("b", "a", tag="hint").name == "b->a/hint"


def test_edges_between_the_same_nodes_are_called_by_their_losses() -> None:
    cross = ktg.create_loss("cross_entropy")
    graph = graph_of(
        edge("label", "a"), edge("b", "a"), ktg.Edge("b", "a", loss=cross), edge("label", "b")
    )
    names = ["label->a", "b->a/kl_div", "b->a/cross_entropy", "label->b"]
    assert [each.name for each in graph.edges] == names
    losses = graph.losses(graph(images()), hard_labels())
    assert list(losses.edges) == list(losses.passed) == names


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_all_edges_of_a_pair_count_and_a_mean_is_over_sources(reduction: str) -> None:
    graph = graph_of(
        edge("label", "a"),
        edge("b", "a", tag="cold"),
        edge("b", "a", tag="warm", temperature=4.0),
        edge("c", "a"),
        frozen=("b", "c"),
        reduction=reduction,
    )
    outputs, labels = graph(images()), hard_labels()
    a, b, c = (outputs[name].logits for name in "abc")
    networks = kl_reference(b, a) + kl_reference(b, a, 4.0) + kl_reference(c, a)
    share = 0.5 if reduction == "mean" else 1.0
    expected = (ce_reference(a, labels) + share * networks).mean()
    assert graph.losses(outputs, labels).total.item() == pytest.approx(expected, rel=1e-5)


# Parameters.


def test_parameters_of_an_edge_belong_to_its_destination() -> None:
    graph = projecting()
    owners = graph.parameter_owners()
    assert list(owners) == ["a", "b"]
    edges = list(graph.edge_modules.parameters())
    assert [each.shape for each in edges] == [(4,), (4,), (2, 4), (2,), (4, 2), (4,), (1, 4), (1,)]
    assert same(owners["a"], [*graph.model("a").parameters(), *edges])
    assert same(owners["b"], list(graph.model("b").parameters()))


def test_edge_learns_with_its_destination_and_its_source_does_not() -> None:
    graph = projecting()
    losses = graph.losses(graph(images()), hard_labels())
    losses.nodes["a"].backward()
    assert all(each.grad is not None for each in graph.edge_modules.parameters())
    assert not any(
        each.grad is not None and each.grad.any() for each in graph.model("b").parameters()
    )


def test_edge_measures_what_its_module_computes() -> None:
    graph = projecting()
    outputs = graph(images())
    found = graph.losses(outputs, hard_labels()).edges["b->a"].item()
    module = graph.edge_modules["b->a"]
    a, b = outputs["a"].logits, outputs["b"].logits.detach()
    normalized = (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()
    loss = module.loss
    projected = loss.up(loss.down(normalized))
    weights = 1 / (1 + torch.exp(-module.gate.score(b)[:, 0]))
    expected = array(((projected - b) ** 2).mean(-1) * weights).mean()
    assert found == pytest.approx(expected, rel=1e-4)


def test_edge_starts_from_its_own_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = projecting(built=False), projecting(built=False)
    torch.set_rng_state(before)
    outputs = first.eval()(images())
    for graph, seed in ((first, 1), (second, 1)):
        graph.build_edges(outputs, seed_of=lambda name, seed=seed: seed)  # type: ignore[misc]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(list(first.edge_modules.parameters()), list(second.edge_modules.parameters()))


def test_graph_that_is_not_built_says_what_to_do() -> None:
    graph = projecting(built=False)
    assert graph.unbuilt == ("b->a",)
    sentence = "^b->a: a loss or a gate has parameters and is not built yet; call graph.build_edges"
    with pytest.raises(ValueError, match=sentence):
        graph.parameter_owners()
    with pytest.raises(ValueError, match=sentence):
        graph.losses(graph(images()), hard_labels())


def test_module_may_be_given_as_it_is() -> None:
    outputs = ktg.NodeOutput(torch.zeros(2, 4)), ktg.NodeOutput(torch.zeros(2, 4))
    loss = edge_modules.projected(*outputs)
    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", loss=loss), frozen=("b",))
    assert graph.unbuilt == ()
    assert set(loss.parameters()) <= set(graph.parameter_owners()["a"])


def test_class_whose_forward_does_not_fit_is_refused() -> None:
    class wrong(nn.Module):  # noqa: N801
        def __init__(self, source: ktg.NodeOutput, destination: ktg.NodeOutput) -> None:
            super().__init__()

        def forward(self, losses: Tensor) -> Tensor:
            return losses

    with pytest.raises(ValueError, match=r"gate `wrong.forward` should have the form"):
        ktg.register_gate(wrong)


def test_class_that_is_no_module_is_refused() -> None:
    class plain:  # noqa: N801
        def __init__(self, source: ktg.NodeOutput, destination: ktg.NodeOutput) -> None:
            pass

        def forward(self, losses: Tensor, context: ktg.EdgeContext) -> Tensor:
            return losses

    with pytest.raises(ValueError, match=r"gate `plain` should be .*a subclass of torch\.nn\.Mod"):
        ktg.register_gate(plain)


def test_constructor_that_raises_is_named() -> None:
    loss = ktg.create_loss("projected", width=-1)
    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", loss=loss), frozen=("b",))
    sentence = r"^b->a: loss `projected\(width=-1\)` cannot be built: RuntimeError: "
    with pytest.raises(ValueError, match=sentence):
        graph.build_edges(graph(images()))


def test_argument_that_a_class_does_not_take_is_refused() -> None:
    with pytest.raises(
        ValueError, match="takes no argument `wdth`. It takes: width, norm. Did you mean"
    ):
        ktg.create_loss("projected", wdth=2)


def test_gate_of_a_class_is_checked_like_any_other() -> None:
    ktg.check_gate(ktg.create_gate("learned"))


# Nodes that are made from others.


@dataclass(frozen=True)
class Crowd:
    """The mean of other nodes' logits."""

    name: str
    members: tuple[str, ...]

    @property
    def traits(self) -> Traits:
        return Traits(self.name, needs=self.members)

    def at_work(self, place: Place, others: Mapping[str, nn.Module]) -> nn.Module:
        assert not place.frozen and set(others) >= set(self.members)
        return CrowdModule(self.members)


class CrowdModule(nn.Module):
    def __init__(self, members: tuple[str, ...]) -> None:
        super().__init__()
        self.members = members

    def forward(self, images: Tensor, outputs: Mapping[str, ktg.NodeOutput]) -> ktg.NodeOutput:
        return ktg.NodeOutput(torch.stack([outputs[name].logits for name in self.members]).mean(0))


def crowded(target: str = "a") -> ktg.KnowledgeTransferGraph:
    nodes = [Crowd("crowd", ("a", "b")), *(ktg.Node(n, TinyNet(i)) for i, n in enumerate("ab"))]
    edges = [edge("label", "a"), edge("crowd", "a"), edge("label", "b")]
    return ktg.KnowledgeTransferGraph(nodes, edges, target)


def test_node_may_be_made_from_others_and_teach_them() -> None:
    graph = crowded()
    assert graph.learning == ("a", "b") and graph.frozen == ()
    outputs = graph(images())
    a, b = outputs["a"].logits, outputs["b"].logits
    assert torch.equal(outputs["crowd"].logits, torch.stack([a, b]).mean(0))
    losses = graph.losses(outputs, hard_labels())
    expected = kl_reference((a + b) / 2, a).mean()
    assert losses.edges["crowd->a"].item() == pytest.approx(expected, rel=1e-4)
    losses.edges["crowd->a"].requires_grad_(False)
    losses.nodes["a"].backward()  # the crowd is detached, like any source
    assert not any(
        each.grad is not None and each.grad.any() for each in graph.model("b").parameters()
    )


def test_node_that_is_made_from_others_may_be_the_target() -> None:
    graph = crowded(target="crowd")
    assert set(graph.members) == {"crowd", "a", "b"} and graph.left_out == ()


# Parameters that two nodes share.


def test_node_that_shares_a_parameter_with_another_is_refused() -> None:
    first, second = TinyNet(0), TinyNet(1)
    second.head.weight = first.head.weight
    nodes = [ktg.Node("a", first), ktg.Node("b", second, pretrained=True)]
    with pytest.raises(ValueError, match="^nodes.b: should have a model of its own. Found head."):
        ktg.KnowledgeTransferGraph(nodes, [edge("label", "a"), edge("b", "a")], "a")


def test_node_that_contains_another_one_is_refused() -> None:
    inner = TinyNet(0)
    outer = nn.Sequential(inner)
    nodes = [ktg.Node("a", inner), ktg.Node("b", outer, pretrained=True)]
    with pytest.raises(ValueError, match="^nodes.b: should have a model of its own. Found 0."):
        ktg.KnowledgeTransferGraph(
            nodes, [edge("label", "a"), edge("label", "b")], "a", keep=("b",)
        )
