"""The section `graph`: the nodes, and who learns from whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

from ..graph.problems import Reduction
from ..graph.topology import EMA, ENSEMBLE, LABEL, NETWORK, Link, Topology, Traits
from .node_config import AnyNode, EdgeConfig, NodeConfig, is_on, kind_of, spread
from .section import Section, problem


class GraphConfig(Section):
    """Who teaches whom."""

    target: str
    """Name of the node to make accurate."""
    nodes: dict[str, AnyNode]
    """The networks by name, and the nodes that are made from them: {ensemble: [a, b]}, {ema: a}."""
    reduction: Reduction = "sum"
    """How a node's losses from networks add up: sum (Eq. 3), or mean (Zhang et al., DML)."""
    keep: list[str] = []
    """Nodes to train even if they cannot influence the target."""

    @property
    def edges(self) -> dict[Link, EdgeConfig]:
        """All edges with their links, including edges that are cut off."""
        return {
            _link(key, name, edge): edge
            for name, node in self.nodes.items()
            for key, edge in node.learns_from.items()
        }

    @property
    def topology(self) -> Topology:
        """The graph by name: which nodes learn, are frozen, or are left out."""
        traits = (node.traits(name) for name, node in self.nodes.items())
        return Topology(tuple(traits), tuple(self.edges), self.target, tuple(self.keep))

    @property
    def sets_images(self) -> str:
        """The network whose images all nodes get: the target, or the first that it is made from."""
        names = self.topology.made_from(self.target)
        return next(
            name
            for name, node in self.nodes.items()
            if name in names and isinstance(node, NodeConfig)
        )

    @property
    def trained_first(self) -> list[str]:
        """The frozen nodes that a run trains before it begins."""
        frozen = self.topology.frozen
        return [
            name
            for name, node in self.nodes.items()
            if isinstance(node, NodeConfig) and node.is_trained_first and name in frozen
        ]

    @classmethod
    def problems(cls, data: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
        """Yield the problems of the graph's structure."""
        if data.get("nodes") == {}:
            yield problem(("nodes",), "should name at least one node. Found none.")
        nodes = _nodes(data)
        topology = _topology(data, nodes)
        for where, what, edge in topology.problems():
            if where == ("target",) and not (isinstance(data.get("target"), str) and nodes):
                continue  # pydantic reports it
            location = ("nodes", edge.destination, "learns_from") if edge else where
            yield problem(location, what)
        for name, node in nodes.items():
            yield from _label_problems(name, node.get("learns_from"))


Values = Mapping[str, Any]


def _nodes(data: Values) -> dict[str, Values]:
    """Return the nodes that can be read from unchecked data, with `learns_from` as a mapping."""
    nodes = data.get("nodes")
    network = f"[{NETWORK}]"
    return {
        name: {
            **node,
            # pydantic reports that the other kinds have no such field
            "learns_from": _mapping(node.get("learns_from")) if kind_of(node) == network else {},
        }
        if isinstance(node, Mapping)
        else {}
        for name, node in (nodes.items() if isinstance(nodes, Mapping) else ())
        if isinstance(name, str)  # pydantic reports the others
    }


def _mapping(learns_from: Any) -> dict[str, Any]:
    """Return a node's `learns_from`, as far as it can be read, with a key for every edge."""
    result: dict[str, Any] = {}
    for source, edges in learns_from.items() if isinstance(learns_from, Mapping) else ():
        try:
            spread_out = spread({source: edges})
        except PydanticCustomError:  # the field's own validator reports it
            spread_out = {source: edges[0]}
        result |= {key: edge for key, edge in spread_out.items() if isinstance(key, str)}
    return result


def _topology(data: Values, nodes: Mapping[str, Values]) -> Topology:
    """Return the topology of unchecked data."""
    traits = (_traits(name, node) for name, node in nodes.items())
    links = (
        _link(key, name, edge)
        for name, node in nodes.items()
        for key, edge in node.get("learns_from", {}).items()
    )
    keep = data["keep"] if isinstance(data.get("keep"), list) else []
    return Topology(tuple(traits), tuple(links), str(data.get("target")), tuple(map(str, keep)))


def _traits(name: str, node: Values) -> Traits:
    """Return the traits of an unchecked node."""
    members, source = node.get("ensemble"), node.get("ema")
    if isinstance(members, list):
        return Traits(name, needs=tuple(map(str, members)), kind=ENSEMBLE)
    if "ensemble" in node:
        return Traits(name, has_weights=True)  # pydantic reports it
    if "ema" in node:
        return Traits(name, needs=(str(source),), kind=EMA)
    given = any(is_on(node.get(each)) for each in ("pretrained", "train_first"))
    return Traits(name, given or bool(node.get("checkpoint_path") or not node))


def _link(key: str, destination: str, edge: Any) -> Link:
    """Return the link of an edge; `key` is `source` or `source/tag`."""
    source, _, tag = key.partition("/")
    if isinstance(edge, EdgeConfig):
        gate = edge.gate
    else:
        gate = edge.get("gate", "through") if isinstance(edge, Mapping) else edge
    return Link(source, destination, tag, str(gate))


def _label_problems(name: str, learns_from: Any) -> Iterator[InitErrorDetails]:
    for key, edge in _mapping(learns_from).items():
        temperature = edge.get("temperature", 1) if isinstance(edge, Mapping) else 1
        if key.partition("/")[0] == LABEL and str(temperature) not in ("1", "1.0"):
            yield problem(
                ("nodes", name, "learns_from", key, "temperature"),
                f"should be 1 on an edge from the label. Found {temperature}.",
            )
