"""Flags that add and remove whole nodes and edges."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from .flag_values import merged, read_mapping
from .flags import Flag, below
from .node_config import spread


def restructured(
    values: dict[str, Any], flags: Iterable[Flag]
) -> tuple[dict[str, Any], list[Flag]]:
    """Add, replace and remove the nodes and edges that flags name as a whole.

    `--graph.nodes.helper '{model: ...}'` adds a node, or takes the place of the one of that name;
    `null` removes one and all edges from it; `--graph.nodes.student.learns_from.helper null`
    removes an edge. Where a source has a list of edges, each gets a key of its own, by which flags
    name it.

    Args:
        values: The recipe, unchecked.
        flags: The flags for its fields.

    Returns:
        The recipe, and the other flags.

    Raises:
        RecipeError: The text of a flag is not YAML.
    """
    graph = below(values, "graph")
    before = below(graph, "nodes")
    nodes, left = {name: _spread(node) for name, node in before.items()}, []
    given: dict[str, Any] = {}
    for flag, text in flags:
        node, edge = (re.fullmatch(each, flag) for each in (_NODE, _EDGE))
        if node and text.startswith("{"):
            given[flag] = merged(given.get(flag, {}), read_mapping(flag, text))
            nodes[node[1]] = _spread(given[flag])
        elif node and node[1] in nodes and text == "null":
            del nodes[node[1]]
            nodes = {each: _without_edge(nodes[each], node[1]) for each in nodes}
        elif edge and text == "null" and _has_edge(nodes.get(edge[1]), edge[2]):
            nodes[edge[1]] = _without_edge(nodes[edge[1]], edge[2])
        else:
            left.append((flag, text))
    if nodes == before:
        return values, left
    return {**values, "graph": {**graph, "nodes": nodes}}, left


_NODE = r"graph\.nodes\.([^.]+)"
_EDGE = r"graph\.nodes\.([^.]+)\.learns_from\.([^.]+)"


def _spread(node: Any) -> Any:
    """Return a node whose edges have a key each; a wrong one as it is, for the recipe's check."""
    if not isinstance(node, Mapping) or "learns_from" not in node:
        return node
    try:
        return {**node, "learns_from": spread(node["learns_from"])}
    except PydanticCustomError:
        return node


def _has_edge(node: Any, key: str) -> bool:
    return any(key in _ends(each) for each in below(node, "learns_from"))


def _without_edge(node: Any, key: str) -> Any:
    """Return a node without an edge, or without all edges from a source."""
    if not _has_edge(node, key):
        return node
    edges = below(node, "learns_from")
    return {**node, "learns_from": {k: v for k, v in edges.items() if key not in _ends(k)}}


def _ends(key: str) -> tuple[str, str]:
    """Return an edge's key, `source` or `source/tag`, and its source."""
    return key, key.partition("/")[0]
