"""The content of a picture, independent of the renderer: nodes, edges, words, colors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..graph.edge import default_loss
from ..graph.registry import with_arguments
from ..graph.topology import Link, Topology
from ..recipe.graph_config import EdgeConfig, GraphConfig

Role = Literal["target", "frozen", "left out", ""]

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
        weights: Mean weight of each gate in the last epoch, what passed over what came, by the
            name of the edge.
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
        model: Name of its model.
        role: Its special role, if any.
        top1: Top-1 in percent, if known.
    """

    name: str
    model: str
    role: Role
    top1: float | None

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
        weight: Mean weight of the gate, if known.
        left_out: Whether its destination is left out of training.
    """

    link: Link
    word: str
    color: str
    weight: float | None
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
        """Thickness of the arrow, in points."""
        return 1.4 if self.weight is None else 0.8 + 2.2 * min(max(self.weight, 0.0), 1.5)


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


def scene_of(graph: GraphConfig, results: Results | None = None) -> Scene:
    """Return the scene of a graph.

    Args:
        graph: The graph.
        results: The results of a run of it.
    """
    results = results or Results()
    topology, configs = graph.topology, graph.edges
    names = [graph.target, *(name for name in graph.nodes if name != graph.target)]
    nodes = tuple(
        SceneNode(name, graph.nodes[name].title, _role(name, topology), results.top1.get(name))
        for name in names
    )
    colors = gate_colors(configs[link].gate for link in topology.live)
    edges = tuple(
        SceneEdge(
            link,
            word_of(configs[link], link.source),
            colors[configs[link].gate],
            results.weights.get(link.name),
            link.destination in topology.left_out,
        )
        for link in topology.live
    )
    return Scene(nodes, edges, _caption(results))


def gate_colors(gates: Iterable[str]) -> dict[str, str]:
    """Return a color for every gate: fixed colors for ours, the next free one for others."""
    gates = set(gates)
    others = sorted(gates - _COLORS.keys())
    more = {gate: _MORE_COLORS[i % len(_MORE_COLORS)] for i, gate in enumerate(others)}
    return {gate: color for gate, color in (_COLORS | more).items() if gate in gates}


def word_of(edge: EdgeConfig, source: str) -> str:
    """Return an edge's gate, with arguments, temperature and loss unless they are the default.

    Neither the gate nor the loss needs to be installed.

    Args:
        edge: The edge.
        source: Name of its source.
    """
    words = [with_arguments(edge.gate, edge.gate_kwargs)]
    if edge.temperature != 1:
        words.append(f"T={edge.temperature:g}")
    if edge.loss is not None and (edge.loss != default_loss(source) or edge.loss_kwargs):
        words.append(with_arguments(edge.loss, edge.loss_kwargs))
    return ", ".join(words)


def _role(name: str, topology: Topology) -> Role:
    if name == topology.target:
        return "target"
    if name in topology.left_out:
        return "left out"
    return "frozen" if name in topology.frozen else ""


def _caption(results: Results) -> str:
    parts = []
    if results.top1:
        parts.append(f"Top-1 on {results.split} images.")
    if results.weights:
        parts.append("Thickness: mean weight of the gate in the last epoch.")
    return " ".join(parts)
