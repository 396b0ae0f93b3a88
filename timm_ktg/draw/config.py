"""Converts anything that holds a graph into the section `graph` of a recipe, to be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..graph.edge import Edge, EdgeTaps, default_loss, loss_name
from ..graph.ema import Ema
from ..graph.ensemble import Ensemble
from ..graph.graph import KnowledgeTransferGraph
from ..graph.registry import Bound, shown
from ..graph.topology import Traits
from ..recipe.graph_config import GraphConfig
from ..recipe.node_config import AnyNode, EdgeConfig, EmaConfig, EnsembleConfig, NodeConfig
from ..recipe.recipe import Recipe, load_recipe

Drawable = GraphConfig | Recipe | KnowledgeTransferGraph | str | Path


def config_of(graph: Drawable) -> GraphConfig:
    """Return the section `graph` for anything that holds a graph.

    Args:
        graph: A graph built by hand, or a recipe: itself, its section, path, or bundled name.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; lists all problems.
    """
    if isinstance(graph, GraphConfig):
        return graph
    if isinstance(graph, KnowledgeTransferGraph):
        return _config_by_hand(graph)
    return load_recipe(graph).graph


def _config_by_hand(graph: KnowledgeTransferGraph) -> GraphConfig:
    """Return the section unchecked, because a graph by hand may not fit a recipe."""
    topology, edges = graph.topology, {edge.link: edge for edge in graph.edges}
    learns_from: dict[str, dict[str, EdgeConfig]] = {name: {} for name in topology.names}
    for link in topology.live:  # including those of left-out nodes
        edge = edges.get(link, Edge(link.source, link.destination))
        learns_from[link.destination][link.key] = edge_config(edge, link.gate)
    nodes = {
        traits.name: _node_config(graph, traits, learns_from[traits.name])
        for traits in topology.nodes
    }
    return GraphConfig.model_construct(
        target=graph.target, nodes=nodes, reduction=graph.reduction, keep=list(topology.keep)
    )


def _node_config(
    graph: KnowledgeTransferGraph, traits: Traits, learns_from: dict[str, EdgeConfig]
) -> AnyNode:
    made = graph.made.get(traits.name)
    if isinstance(made, Ensemble):
        members, weights = list(made.members), made.weights and list(made.weights)
        return EnsembleConfig.model_construct(
            ensemble=members, combine=made.combine, weights=weights
        )
    if isinstance(made, Ema):
        return EmaConfig.model_construct(ema=made.source, decay=made.decay, warmup=made.warmup)
    return NodeConfig.model_construct(
        model=_model_name(graph, traits.name),
        pretrained=traits.has_weights,
        learns_from=learns_from,
    )


def edge_config(edge: Edge, gate: str) -> EdgeConfig:
    """Return the section for an edge, unchecked.

    Args:
        edge: The edge.
        gate: Name of the gate, if it is not a registered one.
    """
    bound: dict[str, Any] = {
        "gate": gate,
        "temperature": edge.temperature,
        "weight": edge.weight,
        "head": edge.head or None,
    }
    if edge.tapped != EdgeTaps():
        bound["taps"] = {end: list(names) for end, names in edge.tapped._asdict().items()}
    if isinstance(edge.gate, Bound):
        bound |= {"gate": edge.gate.name, "gate_kwargs": dict(edge.gate.arguments)}
    if loss_name(edge) != default_loss(edge.source) or getattr(edge.loss, "arguments", None):
        arguments = getattr(edge.loss, "arguments", {})
        name = loss_name(edge) if isinstance(edge.loss, Bound) else shown(edge.loss)
        bound |= {"loss": name, "loss_kwargs": dict(arguments)}
    return EdgeConfig.model_construct(**bound)


def _model_name(graph: KnowledgeTransferGraph, name: str) -> str:
    if name not in graph.members:
        return ""  # left-out nodes are not kept
    module = graph.networks[name].model if name in graph.networks else graph.members[name]
    architecture = getattr(module, "pretrained_cfg", {}).get("architecture")
    return str(architecture or type(module).__name__)
