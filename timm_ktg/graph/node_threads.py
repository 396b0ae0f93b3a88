"""Nodes side by side on a CPU: a thread a node, where threads inside an operator scale badly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

from .losses import NodeOutput
from .node import Member

Job = Callable[[], Any]


class NodeThreads:
    """Computes the nodes' forwards side by side, and their backwards, with one thread a node.

    What a node computes is bit for bit what it computes alone with one intra-op thread. Gradients
    reach the parameters by `backward`; `torch.autograd.grad` does not see them. A model that draws
    random numbers in training, as dropout does, would draw them in any order: see `draws`.

    Args:
        count: Threads.
        costs: Of each node, in any unit; the most expensive starts first.
    """

    def __init__(self, count: int, costs: Mapping[str, float]) -> None:
        self.count = count
        self.names = tuple(sorted(costs, key=costs.__getitem__, reverse=True))

    def __call__(self, members: Mapping[str, Member], images: Tensor) -> dict[str, NodeOutput]:
        """Return every node's output for images [B, 3, H, W] on a CPU."""
        if not torch.is_grad_enabled():
            outputs = dict(zip(self.names, self.forward(members, images), strict=True))
            return {name: outputs[name] for name in members}
        found: dict[str, NodeOutput] = {}
        start = torch.zeros((), requires_grad=True)  # what makes autograd record the function
        tensors = iter(_SideBySide.apply(start, self, members, images, found))
        outputs = {
            name: NodeOutput(next(tensors), {tap: next(tensors) for tap in found[name].features})
            for name in self.names
        }
        return {name: outputs[name] for name in members}

    def forward(self, members: Mapping[str, Member], images: Tensor) -> list[NodeOutput]:
        """Return the outputs of the nodes in the order of `names`."""
        # A thread begins without what its caller has set.
        grad = torch.is_grad_enabled()
        enabled, kind = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def output(name: str) -> NodeOutput:
            with torch.set_grad_enabled(grad), torch.autocast("cpu", kind, enabled):
                return members[name](images)  # type: ignore[no-any-return]

        found = self.run({name: partial(output, name) for name in self.names})
        return [found[name] for name in self.names]

    def run(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """Return the result of each node's job; raises what the first that failed raised."""
        pool = _pool(self.count)
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        return {name: future.result() for name, future in futures.items()}


class _SideBySide(torch.autograd.Function):
    """All nodes as one function of autograd, with a graph of its own behind every node."""

    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor,
        threads: NodeThreads,
        members: Mapping[str, Member],
        images: Tensor,
        found: dict[str, NodeOutput],
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # off inside a function of autograd
            outputs = threads.forward(members, images)
        found.update(zip(threads.names, outputs, strict=True))
        ctx.set_materialize_grads(False)
        ctx.threads, ctx.outputs = threads, [[o.logits, *o.features.values()] for o in outputs]
        tensors = [tensor for output in ctx.outputs for tensor in output]
        detached = [tensor.detach() for tensor in tensors]
        pairs = zip(tensors, detached, strict=True)
        ctx.mark_non_differentiable(*[new for old, new in pairs if not old.requires_grad])
        return tuple(detached)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        rest = iter(gradients)
        jobs = {}
        for name, output in zip(ctx.threads.names, ctx.outputs, strict=True):
            pairs = [(tensor, next(rest)) for tensor in output]
            some = [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]
            if some:
                jobs[name] = partial(_backward, some)
        ctx.threads.run(jobs)
        return (None,) * 5


def build_threads(members: Mapping[str, Member], images: Tensor, count: int) -> NodeThreads | None:
    """Return how to run the nodes side by side, or None to run them one after another.

    Nothing does so by itself. With channels-last images, which a CPU gets, nodes of one size took
    0.97 to 1.08 of the time of one after another at 2, 4 and 7 nodes (two runs, medians of n=10,
    resnet20_cifar, batch 64; 2 cores of an AMD EPYC, torch 2.15.0, commits d20d43e and 11359e9). In
    torch's own layout it was 0.76 to 1.03, the less the busier the machine was (commits 6c24e4d to
    0c29117).

    Args:
        members: The nodes.
        images: A few images [B, 3, H, W] to count operations with.
        count: Threads.

    Raises:
        ValueError: A node draws random numbers.
    """
    if count == 1 or len(members) == 1:
        return None
    drawing = [name for name, member in members.items() if draws(member, images)]
    if drawing:
        raise ValueError(
            "should be 1 with nodes that draw random numbers in training (dropout), which would "
            f"draw them in any order. Found {count}, and {', '.join(drawing)}."
        )
    costs = {name: _operations(member, images) for name, member in members.items()}
    return NodeThreads(count, costs)


def draws(member: Member, images: Tensor) -> bool:
    """Say whether a node draws random numbers in training, and leave it as it was."""
    buffers = {name: buffer.clone() for name, buffer in member.named_buffers()}
    mode = member.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        member.train()
        torch.func.functional_call(member, buffers, (images,))
        member.train(mode)
        return not torch.equal(before, torch.get_rng_state())


def _operations(member: Member, images: Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        member.eval()
        member(images)
    passes = 1 if member.frozen else 3  # a backward computes both kinds of gradients
    return float(counter.get_total_flops() * passes)


def _backward(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    tensors, gradients = zip(*pairs, strict=True)
    torch.autograd.backward(tensors, gradients)


def _be_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # else the first operator would take the number that others set later


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Return threads of one intra-op thread each."""
    before = torch.get_num_threads()
    ready = Barrier(count + 1)
    pool = ThreadPoolExecutor(count, "node", initializer=_be_one_thread)
    for _ in range(count):
        pool.submit(ready.wait)
    ready.wait()
    torch.set_num_threads(before)  # a thread's own number is also that of threads still to come
    return pool
