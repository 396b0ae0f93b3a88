"""What a graph costs: the floating-point operations of its training, and of its target's use."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..graph.ensemble import EnsembleModule
from ..graph.graph import KnowledgeTransferGraph
from ..graph.losses import NodeOutput
from ..graph.node import Network
from ..records.result import Cost


def cost_of(
    graph: KnowledgeTransferGraph,
    images: Tensor,
    outputs: Mapping[str, NodeOutput],
    known: dict[Any, int],
) -> Cost:
    """Return what a graph costs, counted on one real step; see `Cost`.

    The step runs in evaluation mode, which costs the same and changes no BatchNorm statistics. A
    node with a table counts as looked up: filling the table is left out. Count before anything is
    compiled, because the counter does not look into compiled code.

    Beside a learner of the same model, another learner adds 1.00 of the learner's operations, and a
    frozen node or a slow copy that teaches adds 0.33 (resnet32_cifar on 32 pixels, vit_tiny on 224)
    or 0.34 (resnet18 on 224), counted once with torch 2.15.0, timm 1.0.31, commit 94ebf6d.

    Args:
        graph: The graph on its device, its edges built and its tables known.
        images: A few images [B, 3, H, W] on that device, as large as those of the training.
        outputs: Every node's output for them.
        known: The operations of networks that were counted before; more are added. The counter
            makes a step several times slower, and a search builds the same networks all the time.
    """
    graph.eval()
    flops, received = _count_losses(graph, outputs)
    for name in set(graph.topology.in_training) & set(graph.networks) - set(graph.tables):
        flops += _count_network(graph.network(name), images, received.get(name, ()), known)
    names = _computed(graph, graph.target)
    used = [_count_network(graph.network(name), images, (), known) for name in names]
    parameters = {each for name in names for each in graph.members[name].parameters()}
    return Cost(
        training_flops=round(flops / len(images)),
        inference_flops=round(sum(used) / len(images)),
        parameters=sum(parameter.numel() for parameter in parameters),
    )


class _NoModules:
    """Takes the place of the counter's module tracker, because only the sum is wanted.

    The tracker fails where a module is called on a parameter, as in timm's CaiT, TNT and SigLIP.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


def _count_losses(
    graph: KnowledgeTransferGraph, outputs: Mapping[str, NodeOutput]
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Return the operations of the losses, and which of a node's tensors get a gradient by them.

    Where all losses are of logits alone, and have no parameters, their operations are left out:
    they are nothing beside a network's, and to count them takes a hundredth of a short search.
    """
    ends = {name: _attached(outputs[name]) for name in graph.topology.in_training}
    logits = next(iter(ends.values())).logits
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
    places = [(name, at) for name, end in ends.items() for at in range(len(_tensors(end)))]
    tensors = [tensor for end in ends.values() for tensor in _tensors(end)]
    own = [each for each in graph.edge_modules.parameters() if each.requires_grad]
    counter = _counter()
    with counter if own or len(tensors) > len(ends) else nullcontext():
        total = graph.losses(ends, labels).total
        gradients = torch.autograd.grad(total, [*tensors, *own], allow_unused=True)
    received: dict[str, tuple[int, ...]] = {}
    for (name, at), gradient in zip(places, gradients, strict=False):
        if gradient is not None:
            received[name] = (*received.get(name, ()), at)
    return counter.get_total_flops(), received


def _count_network(
    network: Network, images: Tensor, received: tuple[int, ...], known: dict[Any, int]
) -> int:
    """Return the operations of a network's forward and, if it gets gradients, of its backward.

    Args:
        network: The network.
        images: The images.
        received: Which of its output's tensors get a gradient.
        known: What was counted before.
    """
    parts = [(key, each.shape, each.requires_grad) for key, each in network.named_parameters()]
    key = (str(network), network.size, *parts, images.shape, received)
    if key not in known:
        trained = [each for each in network.parameters() if each.requires_grad]
        with torch.set_grad_enabled(bool(received)), _counter() as counter:
            tensors = _tensors(network(images, {}))
            if received:
                ends = [tensors[at] for at in received]
                ones = [torch.ones_like(end) for end in ends]
                torch.autograd.grad(ends, trained, ones, allow_unused=True)
        known[key] = counter.get_total_flops()
    return known[key]


def _tensors(output: NodeOutput) -> list[Tensor]:
    return [output.logits, *output.features.values(), *output.heads.values()]


def _attached(output: NodeOutput) -> NodeOutput:
    """Return a copy of an output whose tensors take gradients."""

    def attached(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    features = {name: attached(each) for name, each in output.features.items()}
    heads = {name: attached(each) for name, each in output.heads.items()}
    return NodeOutput(attached(output.logits), features, heads)


def _computed(graph: KnowledgeTransferGraph, name: str) -> set[str]:
    """Return the networks that predict for a node: itself, or all members of an ensemble."""
    module = graph.members[name]
    if not isinstance(module, EnsembleModule):
        return {name}
    return {each for member in module.members for each in _computed(graph, member)}
