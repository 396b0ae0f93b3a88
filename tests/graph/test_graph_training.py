"""A graph at work: it trains, it is saved and copied, and it does not wait for the device."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import timm_ktg as ktg
from tests.nets import CLASSES, SIZE, TinyNet, edge, gradients, graph_of, hard_labels, images, same

MUTUAL = [edge("label", "a"), edge("b", "a"), edge("label", "b"), edge("a", "b", temperature=2.0)]


def separable(batch: int = 32) -> tuple[Tensor, Tensor]:
    """Images that are their class's prototype and a little noise."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(CLASSES, 3, 1, 1, generator=generator)
    labels = torch.arange(batch) % CLASSES
    noise = torch.randn(batch, 3, SIZE, SIZE, generator=generator)
    return 0.2 * prototypes[labels] + 0.02 * noise, labels


def test_training_lowers_the_loss_of_every_node() -> None:
    nets = {"a": TinyNet(0), "b": TinyNet(1, width=4, norm=False), "c": TinyNet(2)}
    nodes = [ktg.Node(name, net) for name, net in nets.items()]
    edges = [*MUTUAL, edge("c", "a", "correct"), edge("label", "c"), edge("b", "c", "linear")]
    graph = ktg.KnowledgeTransferGraph(nodes, edges, "a")
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1, momentum=0.9)
    x, y = separable()
    first: dict[str, float] = {}
    for _ in range(30):
        outputs = graph(x)
        losses = graph.losses(outputs, y, 1.0)
        first = first or {name: loss.item() for name, loss in losses.nodes.items()}
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert set(first) == {"a", "b", "c"}
    for name, loss in losses.nodes.items():
        assert loss.item() < 0.5 * first[name], name
        assert (outputs[name].logits.argmax(-1) == y).float().mean() > 0.9, name


def test_timm_cnn_and_vit_take_a_step_together() -> None:
    torch.manual_seed(0)
    cnn = timm.create_model("test_resnet", num_classes=CLASSES)
    vit = timm.create_model("test_vit", num_classes=CLASSES, img_size=32)
    graph = ktg.KnowledgeTransferGraph(
        [ktg.Node("a", cnn, taps=("layer4",)), ktg.Node("b", vit, taps=("blocks.0.mlp",))],
        MUTUAL,
        target="a",
    )
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.01)
    outputs = graph(torch.randn(4, 3, 32, 32))
    losses = graph.losses(outputs, hard_labels(4), 0.5)
    losses.total.backward()
    assert outputs["a"].features["layer4"].shape == (4, 96, 1, 1)
    assert outputs["b"].features["blocks.0.mlp"].shape == (4, 5, 64)
    for name in "ab":
        found = gradients(graph.model(name))
        assert all(gradient.isfinite().all() for gradient in found)
    before = [parameter.detach().clone() for parameter in graph.parameters()]
    optimizer.step()
    assert not same(before, [parameter.detach() for parameter in graph.parameters()])


# Saving and copying


def test_state_of_a_graph_comes_back_bit_for_bit() -> None:
    graph = graph_of(*MUTUAL)
    graph.train()(images())  # BatchNorm's statistics leave their start
    other = graph_of(*MUTUAL).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    saved = pickle.loads(pickle.dumps(graph.state_dict()))
    other.load_state_dict(saved)
    expected, found = graph.eval()(images()), other(images())
    for name in "ab":
        assert torch.equal(found[name].logits, expected[name].logits)
        assert found[name].logits.abs().sum() > 0


def test_state_of_a_graph_holds_nothing_but_its_models() -> None:
    graph = graph_of(*MUTUAL)
    expected = [
        f"members.{name}.model.{key}" for name in "ab" for key in graph.model(name).state_dict()
    ]
    assert list(graph.state_dict()) == expected


@pytest.mark.parametrize("taps", [(), ("act",)], ids=["plain", "tapped"])
def test_deep_copy_of_a_graph_is_a_graph_of_its_own(taps: tuple[str, ...]) -> None:
    # A copy as in timm's ModelEma.
    nodes = [ktg.Node(name, TinyNet(seed), taps=taps) for seed, name in enumerate("ab")]
    graph = ktg.KnowledgeTransferGraph(nodes, MUTUAL, "a").eval()
    expected = graph(images())["a"]
    twin = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.zero_()
    found = twin(images())["a"]
    assert torch.equal(found.logits, expected.logits)
    assert list(found.features) == list(taps)
    for tap in taps:
        assert torch.equal(found.features[tap], expected.features[tap])
    assert graph(images())["a"].logits.abs().sum() == 0


def test_deep_copy_of_a_graph_keeps_a_frozen_node_frozen() -> None:
    twin = copy.deepcopy(graph_of(edge("label", "a"), edge("b", "a"), frozen=("b",))).train()
    assert twin.frozen == ("b",)
    assert not twin.model("b").training
    assert not twin(images())["b"].logits.requires_grad


@pytest.mark.parametrize("taps", [(), ("act",)], ids=["plain", "tapped"])
def test_graph_can_be_pickled(taps: tuple[str, ...]) -> None:
    node = ktg.Node("a", TinyNet(), taps=taps)
    graph = ktg.KnowledgeTransferGraph([node], [edge("label", "a")], "a").eval()
    found = pickle.loads(pickle.dumps(graph))(images())["a"]
    assert torch.equal(found.logits, graph(images())["a"].logits)
    assert list(found.features) == list(taps)


# Waiting for the device


def _has_mask(argument: Any) -> bool:
    if isinstance(argument, list | tuple):
        return any(_has_mask(each) for each in argument)
    return isinstance(argument, Tensor) and argument.dtype == torch.bool


class Operations(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__.startswith("index") and _has_mask(args[1:2]):
            self.names.add("mask")
        return func(*args, **(kwargs or {}))


# Operators that read a value back from the device, or make a shape depend on one.
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"}
WAITS |= {"unique", "_unique2", "unique_dim", "bincount", "allclose", "one_hot", "mask"}


def operations_of_a_step(*more: ktg.Edge, progress: float | Tensor = 0.5) -> set[str]:
    smooth = ktg.create_loss("cross_entropy", smoothing=0.1)
    graph = graph_of(
        edge("label", "a", "through"),
        edge("b", "a", "correct", temperature=2.0),
        edge("c", "a", "linear"),
        edge("d", "a", "negative_linear"),
        edge("label", "b", "correct", loss=smooth),
        edge("a", "b", "cutoff"),
        edge("label", "c", "linear"),
        *more,
        frozen=("d",),
        reduction="mean",
    )
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    x, y = images(), hard_labels()
    with Operations() as operations:
        losses = graph.losses(graph(x), y, progress)
        losses.total.backward()
        optimizer.step()
    assert list(losses.nodes) == ["a", "b", "c"]
    assert {"_log_softmax", "_log_softmax_backward_data", "scatter_"} <= operations.names
    return operations.names


@pytest.mark.parametrize("progress", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_step_does_not_wait_for_the_device(progress: float | Tensor) -> None:
    assert not operations_of_a_step(progress=progress) & WAITS


@pytest.mark.parametrize(
    "gate",
    [
        lambda x, c: x * x.mean().item(),
        lambda x, c: x * 1.0 if (x > 0).all() else x,
        lambda x, c: x.index_put((x > 1,), torch.tensor(0.0)),
    ],
    ids=["item", "if", "mask"],
)
def test_step_that_waits_for_the_device_is_seen(gate: Callable[..., Tensor]) -> None:
    assert operations_of_a_step(ktg.Edge("c", "b", gate=gate)) & WAITS
