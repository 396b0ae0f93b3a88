"""Nodes side by side: the same numbers as one after another, and when it is done."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import timm_ktg as ktg
from tests.nets import ConvNet, LinearNet, edge, hard_labels, images
from tests.training_cases import build, recipe_values
from timm_ktg.errors import RecipeError
from timm_ktg.graph.node_threads import NodeThreads, build_threads, draws


class DroppingNet(ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


def three_nodes(tap: bool = False) -> ktg.KnowledgeTransferGraph:
    """Two that learn from each other, one of them with a tap, and a frozen one."""
    nodes = [
        ktg.Node("a", ConvNet(0), taps=("stem.0",) if tap else ()),
        ktg.Node("b", ConvNet(1)),
        ktg.Node("f", LinearNet(2), pretrained=True),
    ]
    edges = [edge("label", "a"), edge("b", "a"), edge("f", "a"), edge("label", "b"), edge("a", "b")]
    return ktg.KnowledgeTransferGraph(nodes, edges, "a")


def members(graph: ktg.KnowledgeTransferGraph) -> dict[str, Any]:
    return {name: graph.member(name) for name in graph.members}


def train(graph: ktg.KnowledgeTransferGraph, steps: int, kind: torch.dtype | None) -> list[Tensor]:
    optimizer = torch.optim.SGD([p for p in graph.parameters() if p.requires_grad], lr=0.1)
    totals = []
    graph.train()
    for step in range(steps):
        with torch.autocast("cpu", kind, enabled=kind is not None):
            outputs = graph(images(seed=step))
        losses = graph.losses(outputs, hard_labels(seed=step))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.detach())
    return totals


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", [None, torch.bfloat16])
def test_node_threads_train_bit_for_bit_as_one_thread(count: int, kind: torch.dtype | None) -> None:
    alone, together = three_nodes(), three_nodes()
    together.threads = NodeThreads(count, {"a": 2, "b": 3, "f": 1})
    assert train(alone, 5, kind) == train(together, 5, kind)
    state = together.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())


def test_node_threads_hand_over_features_and_their_gradients() -> None:
    gradients = []
    for count in (None, 2):
        graph = three_nodes(tap=True).train()
        graph.threads = count and NodeThreads(count, dict.fromkeys("abf", 1))
        outputs = graph(images())
        assert not outputs["f"].logits.requires_grad
        outputs["a"].features["stem.0"].square().sum().backward()
        gradients.append(graph.model("a").stem[0].weight.grad)
        assert graph.model("a").head.weight.grad is None
    assert torch.equal(*gradients)


def test_node_threads_evaluate_without_autograd() -> None:
    graph = three_nodes().eval()
    expected = graph(images())
    graph.threads = NodeThreads(2, dict.fromkeys("abf", 1))
    with torch.no_grad():
        outputs = graph(images())
    assert list(outputs) == list(expected)
    for name, found in outputs.items():
        assert not found.logits.requires_grad
        assert torch.equal(found.logits, expected[name].logits)


def test_node_threads_pass_on_what_a_node_raises() -> None:
    graph = three_nodes()
    graph.threads = NodeThreads(2, dict.fromkeys("abf", 1))
    with pytest.raises(RuntimeError, match="channels"):
        graph(torch.zeros(2, 5, 6, 6))


def test_node_threads_are_of_one_thread_each_and_leave_the_callers_number(
    two_threads: None,
) -> None:
    costs = dict.fromkeys("abcd", 1)
    seen = NodeThreads(3, costs).run(dict.fromkeys("abcd", torch.get_num_threads))
    assert seen == dict.fromkeys("abcd", 1)
    assert torch.get_num_threads() == 2


def test_draws_tells_a_model_that_drops_and_leaves_it_as_it_was() -> None:
    for net, expected in ((ConvNet(), False), (DroppingNet(), True)):
        graph = ktg.KnowledgeTransferGraph([ktg.Node("a", net)], [edge("label", "a")], "a")
        state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        assert draws(graph.member("a"), images(2)) is expected
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(one_thread: None) -> None:
    torch.set_num_threads(2)


def graph_of_models(*models: nn.Module) -> ktg.KnowledgeTransferGraph:
    names = "abc"[: len(models)]
    nodes = [ktg.Node(name, model) for name, model in zip(names, models, strict=True)]
    edges = [edge(source, name) for name in names for source in ("label", *names) if source != name]
    return ktg.KnowledgeTransferGraph(nodes, edges, "a")


def test_build_threads_starts_with_the_most_expensive_node(two_threads: None) -> None:
    unlike = members(graph_of_models(LinearNet(0), ConvNet(1)))
    threads = build_threads(unlike, images(2), 3)
    assert threads is not None and threads.count == 3 and threads.names == ("b", "a")
    assert build_threads(unlike, images(2), 1) is None
    dropping = members(graph_of_models(ConvNet(0), DroppingNet(1)))
    with pytest.raises(ValueError, match=r"draw random numbers.* Found 2, and b\."):
        build_threads(dropping, images(2), 2)


def test_training_takes_the_threads_that_the_recipe_wants() -> None:
    values = recipe_values()
    assert build(values).graph.threads is None  # one thread in tests
    values["train"]["node_threads"] = 2
    threads = build(values).graph.threads
    assert threads is not None and threads.count == 2
    values["train"]["torchcompile"] = True
    with pytest.raises(RecipeError, match=r"train.node_threads: should be 1 unless.* Found 2"):
        build(values)
