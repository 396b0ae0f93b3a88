"""Whether nodes of one architecture compute faster stacked than one after another.

    python -m tests.benchmarks.stacked [--nodes 2 3 4] [--model resnet32_cifar]

- `stacked`: forward in training mode, cross-entropy and backward of all nodes at once, by
  `torch.func.stack_module_state` and `vmap` over weights and BatchNorm's statistics, which makes
  grouped convolutions of the nodes'.
- `nodes`: the same of one node after another.

Both on one batch of 64 random images [3, 32, 32], 100 classes; each in torch's own layout and in
channels-last, for a layout that is good for one need not be for the other. On a CUDA device in
bfloat16 and, beside operator by operator, recorded and replayed as one CUDA graph. Before anything
is measured, the losses of both must agree.

On a CPU stacking does not pay, and so nothing in the package stacks: resnet32_cifar, channels-last,
took 1.40 of the time of one after another at 2 nodes (quartiles 1.35 to 1.45) and 1.23 at 4 (1.19
to 1.32; n=6, 2 cores of an AMD EPYC, torch 2.15.0, commit 7291ff6). On CUDA: not yet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from tests.benchmarks.ratios import Group, Ratio, Seconds, Variants, header, line
from timm_ktg.train.allocator import keep_freed_memory
from timm_ktg.train.cuda_graph import RECORDERS, WARM_UP

BATCH, CLASSES = 64, 100
LAYOUTS = {"": torch.contiguous_format, "-cl": torch.channels_last}
RATIOS = (Ratio("stacked", "nodes"), Ratio("stacked-cl", "nodes-cl"), Ratio("stacked", "nodes-cl"))


class Nodes:
    """Nodes of one architecture on one batch, in both ways.

    Args:
        model: timm's name.
        count: How many nodes.
        layout: Of images and weights.
        device: Where.
    """

    def __init__(
        self, model: str, count: int, layout: torch.memory_format, device: torch.device
    ) -> None:
        made = [timm.create_model(model, num_classes=CLASSES) for _ in range(count)]
        self.models = [each.to(device, memory_format=layout).train() for each in made]
        self.parameters, self.buffers = stack_module_state(self.models)  # type: ignore[arg-type]
        self.base = deepcopy(self.models[0]).to("meta")
        self.images = torch.randn(BATCH, 3, 32, 32, device=device)
        self.images = self.images.contiguous(memory_format=layout)
        self.labels = torch.randint(CLASSES, (BATCH,), device=device)

    def nodes(self) -> Tensor:
        """Do one node after another; return the sum of their losses."""
        losses = [self._loss(model(self.images)) for model in self.models]
        return self._backward(torch.stack(losses))

    def stacked(self) -> Tensor:
        """Do all at once; return the sum of their losses."""

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return self._loss(functional_call(self.base, (parameters, buffers), (self.images,)))

        return self._backward(vmap(loss, randomness="different")(self.parameters, self.buffers))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self.parameters.values(), *nn.ModuleList(self.models).parameters()):
            parameter.grad = None

    def _loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), self.labels)

    def _backward(self, losses: Tensor) -> Tensor:
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach().sum()


def variants(model: str, count: int, device: torch.device, captured: bool) -> Variants:
    """Return both ways in both layouts."""
    found: Variants = {}
    for suffix, layout in LAYOUTS.items():
        nodes = Nodes(model, count, layout, device)
        autocast = partial(torch.autocast, device.type, torch.bfloat16, device.type == "cuda")
        with autocast():
            torch.testing.assert_close(nodes.stacked(), nodes.nodes(), rtol=0.01, atol=0.0)
        for name in ("stacked", "nodes"):
            work = partial(_done, nodes, getattr(nodes, name), autocast)
            if captured:
                work = _recorded(work, device)
            found[name + suffix] = partial(_timed, work, device)
    return found


def _done(nodes: Nodes, work: Callable[[], Tensor], context: Callable[[], torch.autocast]) -> None:
    nodes.zero_grad()
    with context():
        work()


def _recorded(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    recorder = RECORDERS[device.type](device)
    with recorder.aside():
        for _ in range(WARM_UP):
            work()
    return recorder.record(work)


def _timed(work: Callable[[], None], device: torch.device) -> Seconds:
    """Return what a call takes, the device's work included."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def main() -> None:
    """Measure, and print the table line by line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.stacked")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--model", default="resnet32_cifar")
    parser.add_argument("--repeats", type=int, default=12, help="rounds, at least 5")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    keep_freed_memory()
    torch.manual_seed(0)
    print(header(), flush=True)
    for count in arguments.nodes:
        for captured in (False, True) if device.type in RECORDERS else (False,):
            build = partial(variants, arguments.model, count, device, captured)
            results = Group(build, RATIOS).measure(arguments.repeats)
            name = f"{'graph' if captured else 'nodes'}-{count}"
            print("\n".join(line(name, ratio, results) for ratio in RATIOS), flush=True)


if __name__ == "__main__":
    main()
