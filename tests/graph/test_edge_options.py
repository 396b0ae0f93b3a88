"""What an edge can say beside its gate: weight, taps, head; and edges that are computed at once."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests.nets import (
    TinyNet,
    array,
    ce_reference,
    edge,
    gradients,
    graph_of,
    hard_labels,
    images,
    kl_reference,
    same,
    soft_labels,
)
from timm_ktg.errors import ContractError
from timm_ktg.graph.losses import stackable

MUTUAL = [("label", "a"), ("b", "a"), ("c", "a"), ("label", "b"), ("a", "b"), ("a", "c")]


def test_weight_multiplies_the_loss_of_its_edge() -> None:
    graph = graph_of(
        edge("label", "a", weight=0.1),
        edge("b", "a", "linear", weight=0.9, temperature=4.0),
        edge("label", "b", weight=0.0),
    )
    outputs, labels = graph(images()), hard_labels()
    losses = graph.losses(outputs, labels, progress=0.5)
    a, b = outputs["a"].logits, outputs["b"].logits
    ce, kl = ce_reference(a, labels).mean(), kl_reference(b, a, 4.0).mean()
    assert losses.edges["label->a"].item() == pytest.approx(0.1 * ce, rel=1e-5)
    assert losses.edges["b->a"].item() == pytest.approx(0.9 * 0.5 * kl, rel=1e-5)
    assert losses.nodes["a"].item() == pytest.approx(0.1 * ce + 0.45 * kl, rel=1e-5)
    assert losses.ungated["b->a"].item() == pytest.approx(kl, rel=1e-5)
    assert losses.nodes["b"].item() == 0


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_weight_out_of_its_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="^b->a: weight should be finite and at least 0. Found"):
        edge("b", "a", weight=weight)


# Edges that are computed at once


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("gate", ["through", "correct", "linear"])
def test_like_edges_computed_at_once_equal_edges_computed_apart(gate: str, reduction: Any) -> None:
    def apart(source: Any, destination: Any, labels: Any, *, temperature: float) -> Tensor:
        return ktg.create_loss("kl_div")(source, destination, labels, temperature=temperature)

    found = []
    for loss in (None, apart):
        edges = [
            edge(source, destination, gate, loss=None if source == "label" else loss)
            for source, destination in MUTUAL
        ]
        graph = graph_of(*edges, reduction=reduction)
        losses = graph.losses(graph(images()), hard_labels(), 0.3)
        losses.total.backward()
        found.append((losses, [g for name in "abc" for g in gradients(graph.model(name))]))
    (together, ours), (separate, theirs) = found
    assert list(together.nodes) == list(separate.nodes)
    for name, value in separate.edges.items():
        assert together.edges[name].item() == pytest.approx(value.item(), rel=1e-6)
        assert together.ungated[name].item() == pytest.approx(separate.ungated[name].item())
        assert together.passed[name].item() == separate.passed[name].item()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_edges_with_other_temperatures_are_not_mixed_up() -> None:
    temperatures = {"b": 1.0, "c": 4.0, "d": 4.0}
    edges = [edge(name, "a", temperature=t) for name, t in temperatures.items()]
    graph = graph_of(*edges, *(edge("label", name) for name in "abcd"))
    outputs = graph(images())
    losses = graph.losses(outputs, hard_labels())
    for name, temperature in temperatures.items():
        expected = kl_reference(outputs[name].logits, outputs["a"].logits, temperature).mean()
        assert losses.edges[f"{name}->a"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda source: source.log_probabilities().sum(-1).detach(), "gradients flow through"),
        (lambda source: 0.0, "a tensor. Found float"),
        (lambda source: source.logits.mean(), r"one loss per sample \[3, 8\]. Found \[\]"),
    ],
)
def test_like_edges_computed_at_once_keep_the_contract_too(broken: Any, said: str) -> None:
    def wrong(source: Any, destination: Any, labels: Any, *, temperature: float) -> Any:
        return broken(source)

    ktg.register_loss(stackable(wrong))
    pairs = [("b", "a"), ("c", "a"), ("a", "b")]
    edges = [edge(*pair, loss=ktg.create_loss("wrong")) for pair in pairs]
    graph = graph_of(*edges, edge("label", "c"))
    with pytest.raises(
        ContractError, match=f"^b->a: loss `wrong` of 3 edges should return .*{said}"
    ):
        graph.losses(graph(images()), hard_labels())


def test_losses_that_only_look_the_same_are_computed_apart() -> None:
    def scaled(
        source: Any, destination: Any, labels: Any, *, temperature: float, by: Any = 1
    ) -> Tensor:
        divergence = source.log_probabilities() - destination.log_probabilities()
        return divergence.square().sum(-1) * torch.as_tensor(by).sum()

    ktg.register_loss(stackable(scaled))
    first, second = torch.zeros(2000), torch.zeros(2000)
    first[1000], second[1000] = 1.0, 5.0  # in the middle, where no text shows it
    losses = [ktg.create_loss("scaled", by=by) for by in (first, second)]
    assert str(losses[0]) == str(losses[1])
    edges = [edge("b", "a", loss=losses[0], tag="x"), edge("b", "a", loss=losses[1], tag="y")]
    found = graph_of(*edges, edge("label", "b"))
    values = found.losses(found(images()), hard_labels()).edges
    assert values["b->a/y"].item() == pytest.approx(5 * values["b->a/x"].item(), rel=1e-5)


# Taps of an edge


class Distance:
    """The loss of features: the squared distance of the one that it gets from each end."""

    def __call__(self, source: Any, destination: Any, labels: Any, *, temperature: float) -> Tensor:
        (theirs,), (ours,) = source.features.values(), destination.features.values()
        return (theirs - ours).pow(2).flatten(1).sum(-1)


def test_taps_of_an_edge_give_its_loss_these_features() -> None:
    graph = graph_of(
        edge("label", "a"), edge("b", "a", loss=Distance(), taps="act"), edge("label", "b")
    )
    outputs = graph(images())
    difference = array(outputs["a"].features["act"]) - array(outputs["b"].features["act"])
    losses = graph.losses(outputs, hard_labels())
    assert losses.edges["b->a"].item() == pytest.approx((difference**2).sum() / 8, rel=1e-5)


def test_taps_of_both_ends_can_differ_and_keep_those_of_the_nodes() -> None:
    nodes = [ktg.Node("a", TinyNet(0), taps=("stem",)), ktg.Node("b", TinyNet(1))]
    taps = {"source": "act", "destination": ["stem.1"]}
    edges = [edge("label", "a"), edge("b", "a", loss=Distance(), taps=taps), edge("label", "b")]
    graph = ktg.KnowledgeTransferGraph(nodes, edges, "a")
    outputs = graph(images())
    assert list(outputs["a"].features) == ["stem", "stem.1"]
    assert list(outputs["b"].features) == ["act"]
    graph.losses(outputs, hard_labels()).total.backward()


def test_taps_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^b->a: taps should be given for source and destination"):
        edge("b", "a", taps={"sorce": "act"})
    with pytest.raises(ValueError, match="^label->a: the label has no modules to tap. Found act."):
        edge("label", "a", taps="act")
    with pytest.raises(ValueError, match=r"^nodes.a.taps: `acct` is not a module of TinyNet"):
        graph_of(
            edge("label", "a"), edge("b", "a", loss=Distance(), taps="acct"), edge("label", "b")
        )
    with pytest.raises(
        ValueError, match="^b->a: taps should be left out, because kl_div reads logits alone."
    ):
        edge("b", "a", taps="act")
    crowd = ktg.Ensemble("crowd", ("a", "b"))
    nodes = [crowd, *(ktg.Node(name, TinyNet(seed)) for seed, name in enumerate("ab"))]
    edges = [
        edge("label", "a"),
        edge("label", "b"),
        edge("crowd", "a", loss=Distance(), taps="act"),
    ]
    with pytest.raises(ValueError, match="^edges.crowd->a: `crowd` is an ensemble and has no mod"):
        ktg.KnowledgeTransferGraph(nodes, edges, "a")


# Heads


class TwoHeads(nn.Module):
    """A net that returns logits of two heads in training mode, and their mean otherwise."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.second = TinyNet(seed), TinyNet(seed + 1)

    def forward(self, x: Tensor) -> Any:
        both = self.first(x), self.second(x)
        return both if self.training else (both[0] + both[1]) / 2


def two_heads(*edges: ktg.Edge) -> ktg.KnowledgeTransferGraph:
    nodes = [ktg.Node("a", TwoHeads(0), heads=("other",)), ktg.Node("b", TinyNet(5))]
    return ktg.KnowledgeTransferGraph(nodes, edges, "a")


def test_edge_trains_the_head_that_it_names() -> None:
    graph = two_heads(edge("label", "a"), edge("b", "a", head="other"), edge("label", "b"))
    outputs, labels = graph(images()), hard_labels()
    model: Any = graph.model("a")
    first, second = model.first(images()), model.second(images())
    losses = graph.losses(outputs, labels)
    assert losses.edges["label->a"].item() == pytest.approx(ce_reference(first, labels).mean())
    expected = kl_reference(outputs["b"].logits, second).mean()
    assert losses.edges["b->a"].item() == pytest.approx(expected, rel=1e-4)
    graph.eval()
    assert torch.equal(graph(images())["a"].logits, model(images()))


def test_head_that_a_model_lacks_is_refused() -> None:
    said = "^nodes.a: the model has no head `othr`. Heads: other. Did you mean `other`"
    with pytest.raises(ValueError, match=said):
        two_heads(edge("b", "a", head="othr"), edge("label", "b"))


def test_timm_distilled_model_learns_as_in_its_own_distillation_task() -> None:
    torch.manual_seed(0)
    small = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 4}
    student = timm.create_model("deit_tiny_distilled_patch16_224", **small)
    student.head_dist.weight.data.normal_()
    teacher = TinyNet(3)
    nodes = [ktg.Node("student", student), ktg.Node("teacher", teacher, pretrained=True)]
    hard = ktg.create_loss("kl_div")
    edges = [
        edge("label", "student", weight=0.5),
        edge("teacher", "student", loss=hard, head="dist", weight=0.5, temperature=3.0),
    ]
    graph = ktg.KnowledgeTransferGraph(nodes, edges, "student")
    pictures = torch.randn(6, 3, 32, 32)
    teacher.head = nn.Linear(8 * 64, 4)
    labels = hard_labels(6)
    losses = graph.losses(graph(pictures), labels)
    main, dist = student(pictures)
    expected = ce_reference(main, labels).mean() + kl_reference(teacher(pictures), dist, 3.0).mean()
    assert losses.total.item() == pytest.approx(expected / 2, rel=1e-5)


# Sizes of images


def test_node_gets_images_of_its_own_size() -> None:
    nodes = [ktg.Node("a", TinyNet(0)), ktg.Node("b", TinyNet(1), img_size=8)]
    graph = ktg.KnowledgeTransferGraph(
        nodes, [edge("label", "a"), edge("label", "b")], "a", keep="b"
    )
    large = torch.randn(2, 3, 8, 8)
    assert torch.equal(graph(large)["b"].logits, graph.model("b")(large))
    teacher = ktg.Node("b", TinyNet(1), img_size=(8, 8), pretrained=True)
    student = ktg.Node("a", TinyNet(0), img_size=8)
    graph = ktg.KnowledgeTransferGraph(
        [student, teacher], [edge("label", "a"), edge("b", "a")], "a"
    )
    graph.speed_up_frozen(torch.randn(2, 3, 20, 12))
    found = graph(torch.ones(2, 3, 20, 12))
    torch.testing.assert_close(found["b"].logits, graph.model("b")(torch.ones(2, 3, 8, 8)))


def test_size_of_images_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^nodes.a: img_size should be positive. Found \(0, 0\)."):
        ktg.Node("a", TinyNet(0), img_size=0)


def test_mixed_labels_pass_through_edges_computed_at_once() -> None:
    graph = graph_of(*(edge(*pair, "correct") for pair in MUTUAL))
    outputs, labels = graph(images()), soft_labels()
    losses = graph.losses(outputs, labels)
    right = outputs["b"].logits.argmax(-1) == labels.argmax(-1)
    kl = kl_reference(outputs["b"].logits, outputs["a"].logits)
    expected = (kl * right.numpy()).mean()
    assert losses.edges["b->a"].item() == pytest.approx(expected, rel=1e-5)
    assert same([losses.total], [torch.stack(list(losses.nodes.values())).sum()])
