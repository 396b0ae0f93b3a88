"""What the language of nodes and edges costs, as ratios within one run.

    python -m tests.benchmarks.language [--repeats N] [--only GROUP ...]

Models, batch and rounds are those of `tests.benchmarks.step`.

- `losses`: the losses of 7 nodes that all learn from all, and their backward, on given logits
  [64, 100]; `apart`: the same with a loss that the graph computes edge by edge.
- `taught`: a step of one node with two frozen teachers of resnet14_cifar and decoupled distillation
  (T = 4); `by-hand`: the same as a plain loop, channels-last, with the models themselves.
- `ema`: a step of one node that an average follows; `plain`: the same without it.
- `ensemble`: a step of two nodes with an ensemble that teaches one of them; `pair`: the other node
  teaches instead.
- `tabled`: a step of one node with two frozen teachers of resnet14_cifar, whose logits are looked
  up in full tables of 5,000 images and 162 views each; `alone`: the same node without teachers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_ktg as ktg
from tests.benchmarks.ratios import Group, Ratio, Variants, timed
from tests.benchmarks.step import BATCH, CLASSES, Nodes, main, sgd, update
from timm_ktg.graph.logit_losses import kl_div
from timm_ktg.graph.table import LogitTable


def losses() -> Variants:
    """Return the losses of 7 nodes, computed at once and edge by edge."""
    names = [f"node{index}" for index in range(7)]
    logits = {name: torch.randn(BATCH, CLASSES, requires_grad=True) for name in names}
    outputs = {name: ktg.NodeOutput(each) for name, each in logits.items()}
    labels = torch.randint(CLASSES, (BATCH,))

    def apart(*outputs: Any, **arguments: Any) -> Tensor:
        return kl_div(*outputs, **arguments)

    def variant(loss: Any) -> Callable[[], None]:
        nodes = [ktg.Node(name, nn.Linear(1, 1)) for name in names]
        edges = [ktg.Edge("label", name) for name in names]
        pairs = itertools.permutations(names, 2)
        edges += [ktg.Edge(source, name, loss=loss) for source, name in pairs]
        graph = ktg.KnowledgeTransferGraph(nodes, edges, names[0])
        return lambda: graph.losses(outputs, labels).total.backward()  # type: ignore[no-untyped-call]

    return {
        "losses": partial(timed, several(variant(None))),
        "apart": partial(timed, several(variant(apart))),
    }


def several(function: Callable[[], object], times: int = 20) -> Callable[[], None]:
    """Return a function that calls another one so often that it takes a while."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def taught() -> Variants:
    """Return a step with two frozen teachers, and the same by hand."""
    nodes = Nodes(2)
    teachers = [timm.create_model("resnet14_cifar", num_classes=CLASSES) for _ in range(2)]
    teachers = [each.to(memory_format=torch.channels_last).eval() for each in teachers]
    names = ("teacher1", "teacher2")
    frozen = [
        ktg.Node(n, deepcopy(t), pretrained=True) for n, t in zip(names, teachers, strict=True)
    ]
    loss = ktg.create_loss("dkd")
    edges = [ktg.Edge(name, "node0", loss=loss, temperature=4.0) for name in names]
    student = ktg.Node("node0", nodes.models[0])
    graph = ktg.KnowledgeTransferGraph(
        [student, *frozen], [ktg.Edge("label", "node0"), *edges], "node0"
    )
    graph.train()
    graph.speed_up_frozen(nodes.images[:2])
    joint = sgd(nodes.models[0])

    def by_graph() -> None:
        update(joint, graph.losses(graph(nodes.images), nodes.labels).total)

    def by_hand() -> None:
        with torch.no_grad():
            given = [teacher(nodes.images) for teacher in teachers]
        logits = nodes.models[1](nodes.images)
        total = F.cross_entropy(logits, nodes.labels)
        update(nodes.own[1], total + sum(_dkd(each, logits, nodes.labels) for each in given))

    return {"taught": partial(timed, by_graph), "by-hand": partial(timed, by_hand)}


def _dkd(source: Tensor, destination: Tensor, labels: Tensor) -> Tensor:
    """Return decoupled distillation as a loop by hand would have it, T = 4, alpha 1, beta 8."""
    own = F.one_hot(labels, CLASSES).bool()
    parts = []
    for logits in (source / 4, destination / 4):
        p = logits.softmax(-1)
        binary = torch.stack([p[own], 1 - p[own]], -1)
        parts.append((binary, logits.masked_fill(own, -1000.0).log_softmax(-1)))
    (binary_s, rest_s), (binary_t, rest_t) = parts
    tckd = F.kl_div(binary_t.log(), binary_s, reduction="batchmean")
    nckd = F.kl_div(rest_t, rest_s, reduction="batchmean", log_target=True)
    return 16 * (tckd + 8 * nckd)


def averages() -> Variants:
    """Return a step of a node with an average that follows it, and without."""
    return {
        "ema": partial(timed, _made(1, [ktg.Ema("slow", "node0")], [])),
        "plain": partial(timed, _made(1, [], [])),
    }


def ensembles() -> Variants:
    """Return a step of two nodes, one taught by their ensemble or by the other."""
    crowd = ktg.Ensemble("crowd", ("node0", "node1"))
    return {
        "ensemble": partial(timed, _made(2, [crowd], [ktg.Edge("crowd", "node0")])),
        "pair": partial(timed, _made(2, [], [ktg.Edge("node1", "node0")])),
    }


def _made(count: int, made: list[Any], edges: list[ktg.Edge]) -> Callable[[], None]:
    nodes = Nodes(count)
    names = [f"node{index}" for index in range(count)]
    networks = [ktg.Node(name, model) for name, model in zip(names, nodes.models, strict=True)]
    own = [ktg.Edge("label", name) for name in names]
    graph = ktg.KnowledgeTransferGraph([*networks, *made], [*own, *edges], "node0", keep=names)
    graph.train()

    def step() -> None:
        update(nodes.joint, graph.losses(graph(nodes.images), nodes.labels).total)
        graph.update_emas(2)

    return step


def tabled() -> Variants:
    """Return a step with two frozen teachers in tables, and one without teachers."""
    nodes, rows = Nodes(2), 5_000 * 162
    names = ("teacher1", "teacher2")
    teachers = [timm.create_model("resnet14_cifar", num_classes=CLASSES) for _ in names]
    frozen = [
        ktg.Node(name, model, pretrained=True) for name, model in zip(names, teachers, strict=True)
    ]
    edges = [ktg.Edge("label", "node0"), *(ktg.Edge(name, "node0") for name in names)]
    student = ktg.Node("node0", nodes.models[0])
    graph = ktg.KnowledgeTransferGraph([student, *frozen], edges, "node0").train()
    for name in names:
        graph.tables[name] = LogitTable(torch.rand(rows, CLASSES).half() + 0.1)
    alone = ktg.Node("node1", nodes.models[1])
    single = ktg.KnowledgeTransferGraph([alone], [ktg.Edge("label", "node1")], "node1").train()
    joint = sgd(nodes.models[0])

    def taught() -> None:
        views = torch.randint(rows, (BATCH,))
        update(joint, graph.losses(graph(nodes.images, views), nodes.labels).total)

    def untaught() -> None:
        update(nodes.own[1], single.losses(single(nodes.images), nodes.labels).total)

    return {"tabled": partial(timed, taught), "alone": partial(timed, untaught)}


GROUPS = {
    "losses": Group(losses, (Ratio("losses", "apart"),)),
    "taught": Group(taught, (Ratio("taught", "by-hand", ("<=", 1.02)),)),
    "ema": Group(averages, (Ratio("ema", "plain", ("<=", 1.03)),)),
    "ensemble": Group(ensembles, (Ratio("ensemble", "pair"),)),
    "tabled": Group(tabled, (Ratio("tabled", "alone", ("<=", 1.05)),)),
}

if __name__ == "__main__":
    main("python -m tests.benchmarks.language", GROUPS)
