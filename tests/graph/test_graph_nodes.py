"""Who learns in a graph, who is frozen, who is left out, and what each of them sees."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests.nets import TinyNet, edge, gradients, graph_of, hard_labels, images, same

FROZEN_B = [edge("label", "a"), edge("b", "a")]


def step(graph: ktg.KnowledgeTransferGraph) -> ktg.GraphLosses:
    losses = graph.losses(graph(images()), hard_labels(), 0.5)
    losses.total.backward()
    return losses


def state(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def test_models_are_the_very_ones_that_were_given_and_keep_their_weights() -> None:
    models = {name: TinyNet(seed) for seed, name in enumerate("ab")}
    before = {name: state(model) for name, model in models.items()}
    nodes = [ktg.Node(name, model) for name, model in models.items()]
    graph = ktg.KnowledgeTransferGraph(nodes, [*FROZEN_B, edge("label", "b")], "a")
    for name, model in models.items():
        assert graph.model(name) is model
        assert same(state(model), before[name])
    assert not same(state(models["a"]), state(models["b"]))


# Frozen


def test_node_with_no_incoming_edge_is_frozen() -> None:
    graph = graph_of(*FROZEN_B, frozen=("b",))
    assert graph.frozen == ("b",)
    assert graph.learning == ("a",)
    assert not any(parameter.requires_grad for parameter in graph.model("b").parameters())
    assert all(parameter.requires_grad for parameter in graph.model("a").parameters())
    losses = step(graph)
    assert list(losses.nodes) == ["a"]
    assert torch.equal(losses.total, losses.nodes["a"])
    assert all(parameter.grad is None for parameter in graph.model("b").parameters())


def test_frozen_node_runs_without_autograd() -> None:
    # Even if the images have a gradient, as in adversarial training.
    x = images().requires_grad_()
    outputs = graph_of(*FROZEN_B, frozen=("b",))(x)
    assert outputs["a"].logits.requires_grad
    assert not outputs["b"].logits.requires_grad


def test_learning_node_runs_without_autograd_where_it_is_off() -> None:
    with torch.no_grad():
        assert not graph_of(edge("label", "a"))(images())["a"].logits.requires_grad


@pytest.mark.parametrize(
    "train",
    [
        lambda graph: graph.train(),
        lambda graph: nn.Sequential(nn.Identity(), graph).train(),
        lambda graph: graph.members.train(),
        lambda graph: graph.members["b"].train(),
        lambda graph: graph.eval().train(),
    ],
    ids=["graph", "parent", "members", "member", "eval_train"],
)
def test_frozen_node_stays_in_evaluation_mode(
    train: Callable[[ktg.KnowledgeTransferGraph], nn.Module],
) -> None:
    graph = graph_of(*FROZEN_B, frozen=("b",))
    assert not any(module.training for module in graph.model("b").modules())
    assert all(module.training for module in graph.model("a").modules())
    train(graph)
    assert not any(module.training for module in graph.model("b").modules())
    assert all(module.training for module in graph.model("a").modules())


def test_frozen_node_is_bit_equal_after_training() -> None:
    graph = graph_of(*FROZEN_B, frozen=("b",))
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    before = {name: state(graph.model(name)) for name in "ab"}
    for _ in range(3):
        graph.train()
        optimizer.zero_grad()
        step(graph)
        optimizer.step()
    assert same(state(graph.model("b")), before["b"])
    for now, then in zip(state(graph.model("a")), before["a"], strict=True):
        assert not torch.equal(now, then)  # BatchNorm's statistics too


def test_frozen_node_without_trained_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="^nodes.b: learns from nothing, so it is frozen and"):
        graph_of(*FROZEN_B)


def test_node_whose_only_edge_is_cut_off_is_frozen() -> None:
    edges = [*FROZEN_B, edge("a", "b", "cutoff")]
    assert graph_of(*edges, frozen=("b",)).frozen == ("b",)
    with pytest.raises(ValueError, match="nodes.b: learns from nothing, so it is frozen"):
        graph_of(*edges)


def test_node_with_only_a_network_edge_is_trained() -> None:
    graph = graph_of(*FROZEN_B, edge("a", "b"))
    assert graph.learning == ("a", "b")
    step(graph)
    assert any(gradient.abs().sum() > 0 for gradient in gradients(graph.model("b")))


def test_pretrained_node_with_an_edge_is_trained() -> None:
    graph = graph_of(*FROZEN_B, edge("label", "b"), frozen=("b",))
    assert graph.learning == ("a", "b")
    assert graph.model("b").training


# Left out


def test_node_that_cannot_influence_the_target_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        graph = graph_of(
            edge("label", "a"),
            edge("b", "a"),
            edge("label", "b"),
            edge("a", "c"),
            edge("label", "c"),
            edge("c", "d"),
        )
    ours = [each for each in caplog.records if each.name.startswith("timm_ktg")]
    assert [each.levelname for each in ours] == ["WARNING"]
    assert ours[0].getMessage() == (
        "Left out of training, because they cannot influence the target `a`: c, d."
    )
    assert graph.left_out == ("c", "d")
    assert list(graph.members) == ["a", "b"]
    assert [each.pair for each in graph.edges] == [("label", "a"), ("b", "a"), ("label", "b")]
    assert list(graph(images())) == list(step(graph).nodes) == ["a", "b"]
    assert {name.split(".")[1] for name, _ in graph.named_parameters()} == {"a", "b"}


def test_graph_with_nothing_left_out_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        graph = graph_of(edge("label", "a"), edge("b", "a"), edge("c", "b"), edge("label", "c"))
    assert graph.left_out == ()
    assert not [each for each in caplog.records if each.name.startswith("timm_ktg")]


def test_node_behind_a_cut_off_edge_is_left_out() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", "cutoff"), edge("label", "b"))
    assert graph.left_out == ("b",)


def test_node_that_is_kept_by_name_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    graph = graph_of(edge("label", "a"), edge("label", "b"), edge("b", "c"), keep=("c",))
    assert graph.learning == ("a", "b", "c")
    assert graph.left_out == ()
    assert not caplog.records
    step(graph)
    assert gradients(graph.model("c"))


# Cutoff


def test_cut_off_edge_does_not_exist() -> None:
    graph = graph_of(edge("label", "a"), edge("b", "a", "cutoff"), edge("label", "b"), keep=("b",))
    assert [each.pair for each in graph.edges] == [("label", "a"), ("label", "b")]
    losses = step(graph)
    assert "b->a" not in losses.edges
    assert "b->a" not in losses.passed


def test_cut_off_edge_from_a_broken_source_changes_nothing() -> None:
    def graph(*edges: ktg.Edge) -> ktg.KnowledgeTransferGraph:
        made = graph_of(edge("label", "a"), *edges, frozen=("b",), keep=("b",))
        nn.init.constant_(made.model("b").head.weight, float("nan"))
        return made

    cut, without = graph(edge("b", "a", "cutoff")), graph()
    assert cut(images())["b"].logits.isnan().all()
    losses = step(cut)
    assert torch.equal(losses.total, step(without).total)
    assert losses.total.isfinite()
    assert same(gradients(cut.model("a")), gradients(without.model("a")))
    # The same edge with another gate is poisoned, so this graph would have shown it.
    assert step(graph(edge("b", "a", "linear"))).total.isnan()


def test_bare_cutoff_function_cuts_off_too() -> None:
    cutoff = ktg.create_gate("cutoff").function
    graph = graph_of(edge("label", "a"), ktg.Edge("b", "a", gate=cutoff), edge("label", "b"))
    assert [each.pair for each in graph.edges] == [("label", "a")]


# Normalization

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def normalized(raw: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (raw - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Seen(nn.Module):
    """Keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.net(x)


def one_node(node: ktg.Node, **options: tuple[float, ...]) -> ktg.KnowledgeTransferGraph:
    return ktg.KnowledgeTransferGraph([node], [edge("label", node.name)], node.name, **options)


def test_node_sees_the_images_normalized_as_it_expects() -> None:
    raw = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Seen()
    node = ktg.Node("a", model, mean=IMAGENET[0], std=IMAGENET[1])
    graph = one_node(node, mean=CIFAR[0], std=CIFAR[1])
    logits = graph(normalized(raw, *CIFAR))["a"].logits
    own = normalized(raw, *IMAGENET)
    torch.testing.assert_close(model.seen, own, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(logits, model(own), rtol=1e-5, atol=1e-5)
    assert not [name for name in graph.state_dict() if not name.startswith("members.a.model.")]


@pytest.mark.parametrize("expected", [CIFAR, (None, None)], ids=["the_same", "anything"])
def test_node_sees_the_images_as_they_are_if_it_expects_so(
    expected: tuple[tuple[float, ...] | None, tuple[float, ...] | None],
) -> None:
    model, x = Seen(), images()
    graph = one_node(ktg.Node("a", model, mean=expected[0], std=expected[1]), **_as(CIFAR))
    graph(x)
    assert model.seen is x


def _as(statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {"mean": statistics[0], "std": statistics[1]}


@pytest.mark.parametrize("given", [{}, {"mean": CIFAR[0]}, {"std": CIFAR[1]}])
def test_node_that_expects_a_normalization_needs_the_images_own(
    given: dict[str, tuple[float, ...]],
) -> None:
    node = ktg.Node("a", TinyNet(), mean=IMAGENET[0], std=IMAGENET[1])
    with pytest.raises(ValueError, match=r"^nodes.a: expects images normalized with mean \(0.485"):
        one_node(node, **given)


@pytest.mark.parametrize("half", [{"mean": IMAGENET[0]}, {"std": IMAGENET[1]}])
def test_node_with_half_a_normalization_is_refused(half: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="nodes.a"):
        one_node(ktg.Node("a", TinyNet(), **half), **_as(CIFAR))
