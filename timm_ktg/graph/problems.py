"""What can be wrong with a graph of given nodes and edges, beyond its shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Literal, get_args

from torch import nn

from .edge import Edge
from .node import GraphNode, Node
from .topology import ENSEMBLE, Topology

Reduction = Literal["sum", "mean"]


def graph_problems(
    topology: Topology, nodes: Sequence[GraphNode], edges: Sequence[Edge], reduction: str
) -> Iterator[str]:
    """Yield what is wrong with a graph, a line each.

    Args:
        topology: The shape of the graph.
        nodes: The nodes.
        edges: The edges.
        reduction: How a node's losses from networks add up.
    """
    if reduction not in get_args(Reduction):
        choices = ", ".join(get_args(Reduction))
        yield f"reduction: should be one of {choices}. Found `{reduction}`."
    for where, what, _ in topology.problems():
        yield f"{'.'.join(where)}: {what}"
    for name in dict.fromkeys(topology.names):
        if hasattr(nn.ModuleDict(), name):
            yield f"nodes.{name}: `{name}` is a name that torch reserves; choose another."
    made = {node.traits.name: node.traits.kind for node in nodes}
    for edge in edges:
        if edge.tapped.source and made.get(edge.source) == ENSEMBLE:
            what = f"`{edge.source}` is an ensemble and has no modules to tap"
            yield f"edges.{edge}: {what}. Found {edge.tapped.source[0]}."
    networks = [node for node in nodes if isinstance(node, Node)]
    yield from _sharing_problems(networks)
    classes = {
        node.name: node.model.num_classes for node in networks if hasattr(node.model, "num_classes")
    }
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in classes.items())
        yield f"nodes: all should have the same number of classes. Found {counts}."


def _sharing_problems(networks: Sequence[Node]) -> Iterator[str]:
    """Yield the nodes that share parameters, because freezing one would freeze the other."""
    owned = [(node, _names_by_id(node.model)) for node in networks]
    for (first, ours), (second, theirs) in combinations(owned, 2):
        shared = ours.keys() & theirs.keys()
        if first.model is second.model:
            for name in (first.name, second.name):
                yield f"nodes.{name}: should have a model of its own. Found it in two nodes."
        elif shared:
            found = ", ".join(sorted(theirs[each] for each in shared)[:3])
            yield (
                f"nodes.{second.name}: should have a model of its own. Found {found} in "
                f"`{first.name}`, too."
            )


def _names_by_id(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's parameters, keyed by the parameters' identity."""
    return {id(parameter): name for name, parameter in model.named_parameters()}
