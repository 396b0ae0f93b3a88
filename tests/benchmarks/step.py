"""What a graph's step costs beside the training that it replaces, as ratios within one run.

    python -m tests.benchmarks.step [--repeats N] [--only GROUP ...]

The variants of a group run in turn, back and forth, after one round that does not count. A ratio
is that of one round; the table shows the median over the rounds and the quartiles. Wall time
is judged; the median ratio of CPU times stands beside it. Torch has 2 threads, for 2 cores, and
freed memory is kept, as in the main job, for all variants.

Nodes are resnet20_cifar, 100 classes, on one batch of 64 random images [3, 32, 32]; timm's `sgd`.

- `graph`: one forward of every node, all losses, one backward, one step of an optimizer with a
  parameter group per node. Everyone learns from the label and from all others.
  Images and weights are channels-last, as the main job has them on a CPU.
- `separate`: the same nodes, each with its own forward, cross-entropy, backward, optimizer step, in
  torch's own layout; in `separate-cl`, channels-last: what is left for the graph itself to save.
- `dml`: Algorithm 1 of Zhang et al. 2018 for 4 nodes, all on this batch. For each node in turn the
  predictions of all are computed anew with the parameters of that moment, as in the authors' code
  (the others' without autograd, BatchNorm in training mode); then come the node's loss, its
  backward, its own optimizer's step. M nodes make M^2 forwards, M of them with autograd.
- `changed`: the same updates from fewer forwards. Only the node that has just been updated is
  computed anew, and the last one not at all: 2 M - 1 forwards, M of them with autograd.
- `copy`: the forward of a frozen node as the main job has it (`timm_ktg/graph/inference.py`);
  `model`: that of its model without autograd.
- `load`: the next augmented batch of a MemoryLoader over 50,000 images; the start of an epoch, once
  in 782 batches, is not counted. `train`: a plain step of one node, without loading.
- `timm`, `timm_ktg`: the import alone, in a fresh interpreter, from compiled files in the page
  cache. The round that does not count compiles them, into a folder of this run's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import timm_ktg as ktg
from tests.benchmarks.ratios import ROOT, Group, Ratio, Seconds, Variants, header, line, timed
from timm_ktg.data import MemoryLoader
from timm_ktg.train.allocator import keep_freed_memory

THREADS = 2  # more than there are idle cores would measure how threads wait for each other
BATCH, CLASSES = 64, 100
IMPORT = """
import json, sys, time
cpu, wall = time.process_time(), time.perf_counter()
__import__(sys.argv[1])
print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]))
"""


class Nodes:
    """The same nodes, trained by each procedure on the same batch.

    Args:
        count: M, the number of nodes.
        layout: Of images and weights.
    """

    def __init__(self, count: int, layout: torch.memory_format = torch.channels_last) -> None:
        self.images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=layout)
        self.labels = torch.randint(CLASSES, (BATCH,))
        names = [f"node{index}" for index in range(count)]
        models = [timm.create_model("resnet20_cifar", num_classes=CLASSES) for _ in names]
        self.models = [model.to(memory_format=layout) for model in models]
        nodes = [ktg.Node(name, model) for name, model in zip(names, self.models, strict=True)]
        pairs = itertools.product(["label", *names], names)
        edges = [ktg.Edge(source, name) for source, name in pairs if source != name]
        self.graph = ktg.KnowledgeTransferGraph(nodes, edges, target=names[0])
        self.graph.train()
        self.joint, self.own = sgd(*self.models), [sgd(model) for model in self.models]

    def step(self) -> None:
        """Train all nodes by the graph, as the main job does."""
        losses = self.graph.losses(self.graph(self.images), self.labels)
        update(self.joint, losses.total)

    def separate(self) -> None:
        """Train each node by itself."""
        for model, optimizer in zip(self.models, self.own, strict=True):
            update(optimizer, F.cross_entropy(model(self.images), self.labels))

    def dml(self) -> None:
        """Train by deep mutual learning, with all predictions computed before each update."""
        for turn, model in enumerate(self.models):
            with torch.no_grad():
                others = [other(self.images) for other in self.models if other is not model]
            self._learn(turn, model(self.images), others)

    def changed(self) -> None:
        """Train by deep mutual learning, with only those predictions computed anew that changed."""
        attached = [model(self.images) for model in self.models]
        logits = [each.detach() for each in attached]
        for turn, model in enumerate(self.models):
            self._learn(turn, attached[turn], logits[:turn] + logits[turn + 1 :])
            if turn < len(self.models) - 1:
                with torch.no_grad():
                    logits[turn] = model(self.images)

    def _learn(self, turn: int, logits: Tensor, others: list[Tensor]) -> None:
        loss, log_p = F.cross_entropy(logits, self.labels), logits.log_softmax(-1)
        for other in others:
            log_q = other.log_softmax(-1)
            loss = loss + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        update(self.own[turn], loss)


def sgd(*models: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer with a parameter group per model."""
    groups = [{"params": list(model.parameters())} for model in models]
    return create_optimizer_v2(groups, opt="sgd", lr=1e-3, weight_decay=5e-4, momentum=0.9)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Do one backward and one optimizer step."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def steps(count: int) -> Variants:
    """Return the graph's step, and the steps of its nodes apart, in both layouts."""
    nodes, plain = Nodes(count), Nodes(count, torch.contiguous_format)
    procedures = {
        "graph": nodes.step,
        "separate": plain.separate,
        "separate-cl": nodes.separate,
    }
    return {name: partial(timed, procedure) for name, procedure in procedures.items()}


def dml() -> Variants:
    """Return the graph's step and both ways of deep mutual learning, with 4 nodes."""
    nodes = Nodes(4)
    procedures = {"graph": nodes.step, "dml": nodes.dml, "changed": nodes.changed}
    return {name: partial(timed, procedure) for name, procedure in procedures.items()}


def frozen() -> Variants:
    """Return the forward of a frozen node, and that of its model."""
    nodes = Nodes(1)
    model = timm.create_model("resnet20_cifar", num_classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)
    teacher = ktg.Node("teacher", model, pretrained=True)
    edges = [ktg.Edge("label", "node0"), ktg.Edge("teacher", "node0")]
    student = ktg.Node("node0", nodes.models[0])
    graph = ktg.KnowledgeTransferGraph([student, teacher], edges, target="node0")
    graph.speed_up_frozen(nodes.images[:2])

    def alone() -> None:
        with torch.no_grad():
            model(nodes.images)

    copy = partial(graph.members["teacher"], nodes.images)
    return {"copy": partial(timed, copy), "model": partial(timed, alone)}


def loader() -> Variants:
    """Return how to load a batch, and how to train on one."""
    images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (len(images),))
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    batches = endless(
        MemoryLoader(
            images, labels, batch_size=BATCH, mean=mean, std=std, device="cpu", train=True, pad=4
        )
    )
    train = Nodes(1).separate
    return {"load": partial(timed, lambda: next(batches)), "train": partial(timed, train)}


def endless(batches: MemoryLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from batches


def imports() -> Variants:
    """Return the imports."""
    cache = tempfile.TemporaryDirectory()  # removed with the last variant that refers to it
    return {name: partial(import_time, name, cache) for name in ("timm", "timm_ktg")}


def import_time(module: str, cache: tempfile.TemporaryDirectory[str]) -> Seconds:
    """Return what an import takes in a fresh interpreter that keeps compiled files in `cache`."""
    keep = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, module],
        cwd=ROOT,
        env={**keep, "PYTHONPYCACHEPREFIX": cache.name},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Seconds(*json.loads(done.stdout))


STEP = (
    Ratio("graph", "separate", ("<=", 1.0)),
    Ratio("graph", "separate-cl"),
    Ratio("separate-cl", "separate"),
)
DML = (Ratio("dml", "graph", (">=", 1.5)), Ratio("changed", "graph"))
GROUPS = {
    "step-2": Group(partial(steps, 2), STEP),
    "step-4": Group(partial(steps, 4), STEP),
    "step-7": Group(partial(steps, 7), STEP),
    "dml": Group(dml, DML, share=1 / 3),
    "frozen": Group(frozen, (Ratio("copy", "model"),)),
    "loader": Group(loader, (Ratio("load", "train", ("<=", 0.05), percent=True),)),
    "import": Group(imports, (Ratio("timm_ktg", "timm", ("<=", 1.1)),), share=1 / 2),
}


def main(prog: str, groups: Mapping[str, Group]) -> None:
    """Measure groups, and print the table line by line.

    Args:
        prog: The command, for the help.
        groups: The groups by name.
    """
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--repeats", type=int, default=12, help="rounds, at least 5")
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups))
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    torch.manual_seed(0)
    print(header(), flush=True)
    for name in arguments.only:
        group = groups[name]
        results = group.measure(arguments.repeats)
        print("\n".join(line(name, ratio, results) for ratio in group.ratios), flush=True)


if __name__ == "__main__":
    main("python -m tests.benchmarks.step", GROUPS)
