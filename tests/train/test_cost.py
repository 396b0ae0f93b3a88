"""The cost of a graph is what one counts by hand; counting it changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets import TinyNet, ktg_tiny
from tests.recipe_cases import Values, recipe_values
from tests.training_cases import build, on_cpu, same_state, state_of
from timm_ktg import Edge, Ema, Ensemble, KnowledgeTransferGraph, Node
from timm_ktg.graph.losses import create_loss, register_loss
from timm_ktg.graph.node import GraphNode
from timm_ktg.graph.table import LogitTable
from timm_ktg.graph.weights import export_node
from timm_ktg.records.result import Cost
from timm_ktg.train import cost

PIXELS, CLASSES = 3 * 4 * 4, 5
FORWARD = 2 * PIXELS * CLASSES  # a multiplication and an addition for each weight
BACKWARD = FORWARD  # for the weights; the images need no gradient
PARAMETERS = PIXELS * CLASSES + CLASSES


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(PIXELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))  # type: ignore[no-any-return]


def cost_of(graph: KnowledgeTransferGraph, images: Tensor) -> Cost:
    outputs = graph.eval()(images)
    return cost.cost_of(graph, images, outputs, {})


def counted(*nodes: GraphNode, edges: tuple[tuple[str, str], ...], target: str = "a") -> Cost:
    graph = KnowledgeTransferGraph(nodes, [Edge(*pair) for pair in edges], target)
    return cost_of(graph, torch.randn(3, 3, 4, 4))


def a_node(name: str, frozen: bool = False) -> Node:
    return Node(name, Linear(), pretrained=frozen)


def test_linear_net_costs_what_one_counts_by_hand() -> None:
    found = counted(a_node("a"), edges=(("label", "a"),))
    assert found == Cost(FORWARD + BACKWARD, FORWARD, PARAMETERS)


def test_module_that_is_called_on_a_parameter_is_counted() -> None:
    class Token(Linear):  # as the class token of timm's CaiT, which is normalized by itself
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, CLASSES))
            self.mix = nn.Linear(CLASSES, CLASSES, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.mix(self.token)

    graph = KnowledgeTransferGraph([Node("a", Token())], [Edge("label", "a")], "a")
    mix = 2 * CLASSES * CLASSES  # of one token, whatever the batch; backward, of both factors
    found = cost_of(graph, torch.randn(1, 3, 4, 4))
    assert found.inference_flops == FORWARD + mix
    assert found.training_flops == FORWARD + BACKWARD + 3 * mix


def test_hidden_layer_passes_gradients_on() -> None:
    net = TinyNet(num_classes=CLASSES, norm=False)  # 4 patches of 48 numbers, 8 channels, 32 to C
    graph = KnowledgeTransferGraph([Node("a", net)], [Edge("label", "a")], "a")
    patches, head = 2 * 4 * 48 * 8, 2 * 32 * CLASSES
    found = cost_of(graph, torch.randn(2, 3, 8, 8))
    assert found == Cost(
        2 * patches + 3 * head, patches + head, 48 * 8 + 8 + 32 * CLASSES + CLASSES
    )


def test_frozen_node_costs_its_forward_unless_it_is_looked_up() -> None:
    nodes, edges = [a_node("a"), a_node("b", frozen=True)], [Edge("label", "a"), Edge("b", "a")]
    graph, images = KnowledgeTransferGraph(nodes, edges, "a"), torch.randn(2, 3, 4, 4)
    student = FORWARD + BACKWARD
    assert cost_of(graph, images) == Cost(student + FORWARD, FORWARD, PARAMETERS)
    graph.tables["b"] = LogitTable(torch.zeros(2, CLASSES, dtype=torch.float16))
    assert cost_of(graph, images) == Cost(student, FORWARD, PARAMETERS)


def test_average_that_teaches_costs_its_forward_and_one_that_does_not_costs_nothing() -> None:
    nodes = (a_node("a"), Ema("slow", "a"))
    taught = counted(*nodes, edges=(("label", "a"), ("slow", "a")))
    assert taught.training_flops == FORWARD + BACKWARD + FORWARD
    alone = counted(*nodes, edges=(("label", "a"),), target="slow")
    assert alone == Cost(FORWARD + BACKWARD, FORWARD, PARAMETERS)


def test_ensemble_costs_all_its_members_once_in_use_and_nothing_in_training() -> None:
    nodes = (a_node("a"), a_node("b"), Ensemble("pair", ("a", "b")), Ensemble("all", ("pair", "a")))
    found = counted(*nodes, edges=(("label", "a"), ("label", "b")), target="all")
    assert found == Cost(2 * (FORWARD + BACKWARD), 2 * FORWARD, 2 * PARAMETERS)


class Distance(nn.Module):
    """A loss on features with a projector of its own."""

    def __init__(self, source: Any, destination: Any) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32, bias=False)

    def forward(self, source: Any, destination: Any, labels: Tensor, *, temperature: float) -> Any:
        (mine,), (theirs,) = destination.features.values(), source.features.values()
        return (self.project(mine) - theirs).pow(2).mean(1)


def test_node_that_learns_by_a_tap_costs_no_gradient_of_its_head() -> None:
    nodes = [Node(name, TinyNet(num_classes=CLASSES, norm=False)) for name in "ab"]
    edges = [Edge("label", "a"), Edge("label", "b"), Edge("b", "a")]
    patches, head, projector = 2 * 4 * 48 * 8, 2 * 32 * CLASSES, 2 * 32 * 32
    whole = cost_of(KnowledgeTransferGraph(nodes, edges, "a"), torch.randn(2, 3, 8, 8))
    assert whole.training_flops == 2 * (2 * patches + 3 * head)
    register_loss(Distance)
    by_tap = Edge("b", "a", loss=create_loss("Distance"), taps="drop")
    graph = KnowledgeTransferGraph(nodes, [Edge("label", "b"), by_tap], "a")
    images = torch.randn(2, 3, 8, 8)
    graph.build_edges(graph(images))
    found = cost_of(graph, images).training_flops
    assert found == (2 * patches + 3 * head) + (2 * patches + head) + 3 * projector


def test_network_is_counted_once_for_each_way_that_it_takes_part() -> None:
    known: dict[Any, int] = {}
    edges = [Edge("label", "a"), Edge("b", "a")]
    images = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        graph = KnowledgeTransferGraph([a_node("a"), a_node("b", frozen=True)], edges, "a").eval()
        found = cost.cost_of(graph, images, graph(images), known)
        assert found == Cost(2 * FORWARD + BACKWARD, FORWARD, PARAMETERS)
    assert len(known) == 3  # learning, frozen, and used


@on_cpu
def test_counting_changes_nothing() -> None:
    graph = build(
        recipe_values({"a": {"model": "test_resnet", "learns_from": {"label": "through"}}})
    ).graph
    before, drawn = state_of(graph), torch.get_rng_state()
    first = cost_of(graph, torch.randn(2, 3, 8, 8, generator=torch.Generator()))
    assert same_state(before, state_of(graph)) and torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in graph.parameters())
    assert cost_of(graph, torch.randn(2, 3, 8, 8)) == first


@pytest.mark.parametrize("table", ["auto", "never"])
@on_cpu
def test_training_knows_its_cost(table: str, workplace: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    export_node(ktg_tiny(), Path("teacher.safetensors"))
    nodes: Values = {
        "a": {"model": "ktg_tiny", "learns_from": {"label": "through", "b": "through"}},
        "b": {"model": "ktg_tiny", "checkpoint_path": "teacher.safetensors"},
    }
    found = build(recipe_values(nodes, teacher_table=table)).cost
    patches, head = 2 * 4 * 48 * 8, 2 * 32 * 10
    teacher = 0 if table == "auto" else patches + head
    assert found.inference_flops == patches + head
    assert found.training_flops == 2 * patches + 3 * head + teacher
