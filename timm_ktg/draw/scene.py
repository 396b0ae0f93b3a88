"""The content of a picture, independent of the renderer: nodes, edges, words, colors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..graph.edge import EdgeTaps, default_loss
from ..graph.registry import with_arguments
from ..graph.topology import EMA, ENSEMBLE, NETWORK, Link, Pair, Topology, Traits
from ..recipe.graph_config import GraphConfig
from ..recipe.node_config import EdgeConfig

Role = Literal["target", "frozen", "left out", "ensemble", "slow copy", ""]
_MADE: dict[str, Role] = {ENSEMBLE: "ensemble", EMA: "slow copy", NETWORK: ""}

# Distinct for all kinds of color vision, and dark enough to read on white.
_COLORS = {
    "through": "#0060A8",
    "linear": "#007A57",
    "negative_linear": "#B84F00",
    "correct": "#A1307F",
}
# For gates of other packages, in the order of their names.
_MORE_COLORS = ("#7A6000", "#5B4FC4", "#0B7A8C", "#8C2F39", "#555B66")


@dataclass(frozen=True)
class Results:
    """The results of a run.

    Args:
        top1: Top-1 by node, in percent.
        weights: Mean weight of each edge in the last epoch, the gate's times its own, by the name
            of the edge.
        split: The images for top-1: `train`, `val` or `test`.
    """

    top1: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    split: str = "test"


@dataclass(frozen=True)
class SceneNode:
    """A node in a picture.

    Args:
        name: Name of the node.
        model: Name of its model, or what it is made from.
        role: Its special role, if any.
        top1: Top-1 in percent, if known.
        kind: `network`, `ensemble` or `ema`.
        needs: Names of the nodes that it is made from.
    """

    name: str
    model: str
    role: Role
    top1: float | None
    kind: str = NETWORK
    needs: tuple[str, ...] = ()

    @property
    def accuracy(self) -> str:
        """Top-1 as text; empty if it is not known."""
        return "" if self.top1 is None else f"{self.top1:.2f} % top-1"


@dataclass(frozen=True)
class SceneEdge:
    """An edge in a picture.

    Args:
        link: The ends and the name.
        word: The gate, with all other settings that are not the default.
        color: Color of the gate.
        weight: Mean weight in the last epoch, if known; otherwise its own weight.
        left_out: Whether its destination is left out of training.
    """

    link: Link
    word: str
    color: str
    weight: float
    left_out: bool

    @property
    def source(self) -> str:
        """Name of the source; can be `label`."""
        return self.link.source

    @property
    def destination(self) -> str:
        """Name of the destination."""
        return self.link.destination

    @property
    def name(self) -> str:
        """Name of the edge, as in the metrics."""
        return self.link.name

    @property
    def width(self) -> float:
        """Thickness of the arrow, in points.

        It grows with the logarithm of 1 + weight: nearly in proportion for gates, which are mostly
        in 0..1, and slowly above, so that a weight of 9 does not cover the picture.
        """
        return 0.6 + 1.8 * math.log2(1 + min(max(self.weight, 0.0), 15.0))


@dataclass(frozen=True)
class Scene:
    """A graph in a picture.

    Args:
        nodes: The nodes, the target first.
        edges: The edges that are not cut off.
        caption: Explains accuracy and thickness; empty if there is neither.
    """

    nodes: tuple[SceneNode, ...]
    edges: tuple[SceneEdge, ...]
    caption: str

    @property
    def ensembles(self) -> dict[str, tuple[str, ...]]:
        """The members of every ensemble, by its name."""
        return {node.name: node.needs for node in self.nodes if node.kind == ENSEMBLE}

    @property
    def copies(self) -> tuple[Pair, ...]:
        """Every network that has a slow copy, with its copy."""
        return tuple((node.needs[0], node.name) for node in self.nodes if node.kind == EMA)


def scene_of(graph: GraphConfig, results: Results | None = None) -> Scene:
    """Return the scene of a graph.

    Args:
        graph: The graph.
        results: The results of a run of it.
    """
    results = results or Results()
    topology, configs = graph.topology, graph.edges
    names = [graph.target, *(name for name in graph.nodes if name != graph.target)]
    traits = {each.name: each for each in topology.nodes}
    nodes = tuple(
        _node(traits[name], graph.nodes[name].title, topology, results.top1.get(name))
        for name in names
    )
    colors = gate_colors(configs[link].gate for link in topology.live)
    edges = tuple(
        SceneEdge(
            link,
            word_of(configs[link], link.source),
            colors[configs[link].gate],
            results.weights.get(link.name, configs[link].weight),
            link.destination in topology.left_out,
        )
        for link in topology.live
    )
    return Scene(nodes, edges, _caption(results, edges))


def gate_colors(gates: Iterable[str]) -> dict[str, str]:
    """Return a color for every gate: fixed colors for ours, the next free one for others."""
    gates = set(gates)
    others = sorted(gates - _COLORS.keys())
    more = {gate: _MORE_COLORS[i % len(_MORE_COLORS)] for i, gate in enumerate(others)}
    return {gate: color for gate, color in (_COLORS | more).items() if gate in gates}


def word_of(edge: EdgeConfig, source: str) -> str:
    """Return an edge's gate, and all other settings that are not the default.

    Neither the gate nor the loss needs to be installed.

    Args:
        edge: The edge.
        source: Name of its source.
    """
    loss = edge.loss or default_loss(source)
    is_default = loss == default_loss(source) and not edge.loss_kwargs
    words = [
        with_arguments(edge.gate, edge.gate_kwargs),
        "" if is_default else with_arguments(loss, edge.loss_kwargs),
        f"T={edge.temperature:g}" if edge.temperature != 1 else "",
        f"weight={edge.weight:g}" if edge.weight != 1 else "",
        _taps_word(EdgeTaps.of(edge.taps or ())),
        f"head={edge.head}" if edge.head else "",
    ]
    return ", ".join(filter(None, words))


def _taps_word(taps: EdgeTaps) -> str:
    """Return the modules that are compared: `taps=layer3`, or `taps=layer3→blocks.5`."""
    ends = dict.fromkeys("+".join(names) for names in taps if names)
    return f"taps={'→'.join(ends)}" if ends else ""


def role_of(node: Traits, topology: Topology) -> Role:
    """Return the special role of a node, if it has one."""
    if node.name == topology.target:
        return "target"
    if node.name in topology.left_out:
        return "left out"
    return "frozen" if node.name in topology.frozen else _MADE[node.kind]


def _node(node: Traits, title: str, topology: Topology, top1: float | None) -> SceneNode:
    role = role_of(node, topology)
    model = title.removeprefix(f"{role} ")  # the role is not said twice
    return SceneNode(node.name, model, role, top1, node.kind, node.needs)


def _caption(results: Results, edges: Iterable[SceneEdge]) -> str:
    parts = []
    if results.top1:
        parts.append(f"Top-1 on {results.split} images.")
    if results.weights:
        parts.append("Thickness: mean weight in the last epoch, the gate's times the edge's.")
    elif any(edge.weight != 1 for edge in edges):
        parts.append("Thickness: weight of the edge.")
    return " ".join(parts)
