"""What a graph costs: the floating-point operations of its training, and of its target's use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..graph.ensemble import EnsembleModule
from ..graph.graph import KnowledgeTransferGraph
from ..graph.losses import NodeOutput
from ..records.result import Cost


def cost_of(graph: KnowledgeTransferGraph, images: Tensor, num_classes: int) -> Cost:
    """Return what a graph costs, counted on one real step; see `Cost`.

    The step runs in evaluation mode, which costs the same and changes no BatchNorm statistics. A
    node with a table counts as looked up: filling the table is left out. Count before anything is
    compiled, because the counter does not look into compiled code.

    Args:
        graph: The graph on its device, its edges built and its tables known.
        images: A few images [B, 3, H, W] on that device, as large as those of the training.
        num_classes: C.
    """
    graph.eval()
    with FlopCounterMode(display=False) as training:
        _step(graph, images, num_classes)
    names = _computed(graph, graph.target)
    with torch.no_grad(), FlopCounterMode(display=False) as inference:
        for name in names:
            graph.members[name](images, {})
    parameters = {each for name in names for each in graph.members[name].parameters()}
    return Cost(
        training_flops=round(training.get_total_flops() / len(images)),
        inference_flops=round(inference.get_total_flops() / len(images)),
        parameters=sum(parameter.numel() for parameter in parameters),
    )


def _step(graph: KnowledgeTransferGraph, images: Tensor, num_classes: int) -> None:
    """Do what a training step does before its update, and leave no gradients behind."""
    outputs: dict[str, NodeOutput] = {}
    for name in graph.topology.in_training:
        if name in graph.tables:
            outputs[name] = NodeOutput(images.new_zeros(len(images), num_classes))
        else:
            outputs[name] = graph.members[name](images, outputs)
    labels = torch.arange(len(images), device=images.device) % num_classes
    trained = [each for own in graph.parameter_owners().values() for each in own]
    torch.autograd.grad(graph.losses(outputs, labels).total, trained, allow_unused=True)


def _computed(graph: KnowledgeTransferGraph, name: str) -> set[str]:
    """Return the networks that predict for a node: itself, or all members of an ensemble."""
    module = graph.members[name]
    if not isinstance(module, EnsembleModule):
        return {name}
    return {each for member in module.members for each in _computed(graph, member)}
