"""From the nodes of a graph to their modules, each in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from .edge import Edge
from .node import Channels, GraphNode, Network, Place
from .topology import Topology


def modules_of(
    nodes: Mapping[str, GraphNode],
    topology: Topology,
    edges: Sequence[Edge],
    mean: Channels | None,
    std: Channels | None,
) -> dict[str, nn.Module]:
    """Return the modules of the nodes by name, without the nodes that are left out.

    Args:
        nodes: The nodes by name.
        topology: Their topology.
        edges: The edges that train something.
        mean: Per-channel mean that the images are normalized with.
        std: Per-channel standard deviation, likewise.

    Raises:
        ValueError: A node does not fit into the graph. No model keeps a tap or an open head.
    """
    modules: dict[str, nn.Module] = {}
    try:
        for name in topology.order:
            place = _place(name, topology, edges, mean, std)
            needed = {each: modules[each] for each in nodes[name].traits.needs}
            modules[name] = nodes[name].at_work(place, needed)
    except BaseException:
        for module in modules.values():
            if isinstance(module, Network):
                module.release()
        raise
    return {name: modules[name] for name in nodes if name in modules}


def _place(
    name: str,
    topology: Topology,
    edges: Sequence[Edge],
    mean: Channels | None,
    std: Channels | None,
) -> Place:
    """Return a node's place in the graph."""
    taps: dict[str, None] = {}
    for edge in edges:
        ends = zip(edge.pair, edge.tapped, strict=True)
        taps |= dict.fromkeys(tap for end, names in ends if end == name for tap in names)
    heads = dict.fromkeys(edge.head for edge in edges if edge.destination == name and edge.head)
    return Place(name in topology.frozen, mean, std, tuple(taps), tuple(heads))
