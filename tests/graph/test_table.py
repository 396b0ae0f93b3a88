"""Logits in a table: rounded once, the same in any batch, and computed only when they are new."""

import pytest
import timm
import torch
from torch import Tensor

import timm_ktg as ktg
from tests.nets import TinyNet, edge, images
from timm_ktg.graph.table import CHUNK, LogitTable


class Counting:
    """A node that counts the images that it computes."""

    def __init__(self) -> None:
        self.model = TinyNet(0).eval()
        self.count = 0

    def __call__(self, some: Tensor) -> ktg.NodeOutput:
        self.count += len(some)
        return ktg.NodeOutput(self.model(some))


def empty(rows: int, classes: int = 4) -> LogitTable:
    return LogitTable(torch.zeros(rows, classes, dtype=torch.float16))


def test_table_gives_the_logits_rounded_and_computes_each_once() -> None:
    table, node, some = empty(50), Counting(), images(10)
    views = torch.randperm(50)[:10]
    first = table.look_up(views, some, node)
    assert node.count == CHUNK
    assert torch.equal(first.logits, node.model(some).half().float())
    order = torch.randperm(10)
    again = table.look_up(views[order], some[order], node)
    assert node.count == CHUNK and torch.equal(again.logits, first.logits[order])


@pytest.mark.parametrize("model", ["resnet8_cifar", "wrn16_2_cifar"])
def test_rows_do_not_depend_on_what_else_is_missing(model: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=10).eval()
    some, views = torch.randn(80, 3, 16, 16), torch.arange(80)

    def node(few: Tensor) -> ktg.NodeOutput:
        with torch.no_grad():
            return ktg.NodeOutput(net(few))

    whole, parts = empty(80, 10), empty(80, 10)
    expected = whole.look_up(views, some, node).logits
    for part in torch.randperm(80).split([1, 40, 7, 32]):
        parts.look_up(views[part], some[part], node)
    assert torch.equal(parts.logits, whole.logits)
    assert torch.equal(parts.look_up(views, some, node).logits, expected)


def test_graph_looks_up_what_is_in_its_tables() -> None:
    nodes = [ktg.Node("a", TinyNet(0)), ktg.Node("b", TinyNet(1), pretrained=True)]
    graph = ktg.KnowledgeTransferGraph(nodes, [edge("label", "a"), edge("b", "a")], "a")
    graph.tables["b"] = empty(8)
    some, views = images(8), torch.arange(8)
    computed = graph(some)["b"].logits
    assert torch.equal(graph(some, views)["b"].logits, computed.half().float())
    with torch.no_grad():
        graph.model("b").head.weight.zero_()
    assert torch.equal(graph(some, views)["b"].logits, computed.half().float())
    assert not torch.equal(graph(some)["b"].logits, computed)


def test_half_written_row_is_computed_again() -> None:
    table, node, some = empty(8), Counting(), images(8)
    expected = table.look_up(torch.arange(8), some, node).logits
    table.logits[3, 2:] = 0
    again = table.look_up(torch.arange(8), some, node).logits
    assert torch.equal(again, expected) and node.count == 2 * CHUNK
