"""Graphs of studies and runs as pictures, which any machine can draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..graph.registry import with_arguments
from ..recipe.graph_config import EdgeConfig, GraphConfig, NodeConfig, from_word
from ..search.canonical import TARGET, GraphEdge


def section_of(
    models: Mapping[str, str], edges: Iterable[GraphEdge], reduction: str, gates: Iterable[Any]
) -> dict[str, Any]:
    """Return a search's graph as the section `graph` of a recipe.

    Args:
        models: The nodes' models by name.
        edges: The edges that exist.
        reduction: How a node's losses from networks add up.
        gates: The candidate gates, as the search's recipe writes them.
    """
    specs = {
        with_arguments(spec["gate"], spec.get("gate_kwargs", {})): spec
        for spec in map(from_word, gates)
    }
    nodes: dict[str, dict[str, Any]] = {name: {"model": model} for name, model in models.items()}
    for source, destination, gate in edges:
        nodes[destination].setdefault("learns_from", {})[source] = specs.get(gate, gate)
    return {"target": TARGET, "reduction": reduction, "nodes": nodes}


def picture(section: Mapping[str, Any]) -> str:
    """Return the section `graph` of a recipe as a picture, an `<svg>` element."""
    from ..draw.picture import svg_of

    return svg_of(_unchecked(section))


def _unchecked(section: Mapping[str, Any]) -> GraphConfig:
    """Return the section unchecked, because its gates and files may be on another machine."""
    nodes = {}
    for name, node in section["nodes"].items():
        sources = node.get("learns_from", {})
        learns_from = {
            source: EdgeConfig.model_construct(**from_word(edge))
            for source, edge in sources.items()
        }
        nodes[name] = NodeConfig.model_construct(**{**node, "learns_from": learns_from})
    return GraphConfig.model_construct(**{**section, "nodes": nodes})
