"""The contract of losses and gates, tried once on what the nodes of a graph really return."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import one_line
from .edge import EdgeModule
from .gates import EdgeContext
from .graph import KnowledgeTransferGraph, label_output
from .losses import NodeOutput, problem_of
from .registry import shown
from .topology import LABEL, Link

Arguments = Callable[[], tuple[Any, ...]]


def contract_problems(
    graph: KnowledgeTransferGraph,
    outputs: Mapping[str, NodeOutput],
    mixed: bool,
    names: Collection[str] | None = None,
) -> Iterator[tuple[Link, str, str]]:
    """Yield every loss and every gate that breaks its contract: its edge, `loss` or `gate`, why.

    The contract: one finite number a sample [B], attached to the destination's outputs or to the
    losses, no argument changed in place. A function returns the same for the same arguments. A
    loss may draw random numbers, a gate may not. Modules are tried as copies, in evaluation mode.

    Args:
        graph: The graph, its edges built.
        outputs: What `forward` returned for a few images.
        mixed: Whether the labels of the training are mixed; if so, both kinds are tried.
        names: Names of the edges to try; None: all.
    """
    logits = next(iter(outputs.values())).logits
    hard = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
    one_hot = label_output(hard, logits).logits
    for edge in (each for each in graph.edges if names is None or each.name in names):
        module = deepcopy(graph.edge_module(edge.name)).eval()
        found = None
        for labels in (hard, 0.7 * one_hot + 0.3 * one_hot.flip(0)) if mixed else (hard,):
            source = label_output(labels, logits)
            source = source if edge.source == LABEL else outputs[edge.source].detach()
            with torch.enable_grad(), torch.random.fork_rng():
                found = found or _problem(module, source, outputs[edge.destination], labels)
        if found:
            yield edge.link, *found


def _problem(
    module: EdgeModule, source: NodeOutput, destination: NodeOutput, labels: Tensor
) -> tuple[str, str] | None:
    """Return which part of an edge breaks its contract, and how; None: neither does."""

    def ends() -> tuple[NodeOutput, NodeOutput, Tensor]:
        return _copied(source), _copied(destination, attached=True), labels.clone()

    def loss(source: NodeOutput, destination: NodeOutput, labels: Tensor) -> Any:
        torch.manual_seed(0)
        seen = module.ends(source, destination)
        return module.loss(*seen, labels, temperature=module.edge.temperature)

    losses, problem = _tried(loss, ends, not isinstance(module.loss, nn.Module))
    if problem:
        return "loss", _said(f"loss `{shown(module.edge.loss)}`", problem, source, destination)
    leaf = losses.detach().requires_grad_()
    for progress in (1e-3, 0.5, 1.0):
        _, problem = _tried(
            module.gate,
            lambda progress=progress: (leaf * 1, EdgeContext(*ends(), progress)),  # type: ignore[misc]
            not isinstance(module.gate, nn.Module),
        )
        if problem:
            return "gate", _said(f"gate `{shown(module.edge.gate)}`", problem, source, destination)
    return None


def _tried(call: Callable[..., Any], arguments: Arguments, pure: bool) -> tuple[Any, str | None]:
    """Return what a function returns, and how that breaks the contract.

    Args:
        call: The function.
        arguments: Makes its arguments anew, with the same values each time.
        pure: Whether two calls should return the same.
    """
    given = arguments()
    tensors = list(_tensors(given))
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        returned = call(*given)
        problem = problem_of(returned, (len(before[0]),), attached=True)
        if problem is None and not returned.isfinite().all():
            problem = f"finite numbers. Found {returned.tolist()}"
        if problem is None and not all(map(torch.equal, before, tensors)):
            problem = "a new tensor. Found its arguments changed in place"
        if problem is None and pure and not torch.allclose(returned, call(*arguments())):
            problem = "the same for the same arguments. Found two different answers"
    except ValueError as error:
        return None, f"says: {one_line(error)}"
    except Exception as error:  # somebody else's loss or gate may raise anything
        return None, f"should return losses [{len(before[0])}]. It raised {one_line(error)}"
    return returned, problem and f"should return {problem}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in the arguments of a loss or a gate."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _copied(output: NodeOutput, attached: bool = False) -> NodeOutput:
    """Return a copy of an output; its numbers are results of autograd if it is attached."""

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().clone()
        return tensor.requires_grad_() * 1 if attached and tensor.is_floating_point() else tensor

    return NodeOutput(
        copied(output.logits),
        {name: copied(each) for name, each in output.features.items()},
        {name: copied(each) for name, each in output.heads.items()},
    )


def _said(name: str, problem: str, source: NodeOutput, destination: NodeOutput) -> str:
    said = f"{name} {problem.removesuffix('.')}."
    if "KeyError" in problem:  # a tap that is not there
        taps = (", ".join(each.features) or "none" for each in (source, destination))
        said += " Taps of the source: {}; of the destination: {}.".format(*taps)
    return said
