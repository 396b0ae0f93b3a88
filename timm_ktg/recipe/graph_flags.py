"""Flags that add and remove whole nodes and edges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .flags import Flag, below, read_mapping


def restructured(
    values: dict[str, Any], flags: Iterable[Flag]
) -> tuple[dict[str, Any], list[Flag]]:
    """Add and remove the nodes and edges that flags name as a whole.

    `--graph.nodes.helper '{model: ...}'` adds a node, `null` removes one and all edges from it;
    `--graph.nodes.student.learns_from.helper null` removes an edge.

    Args:
        values: The recipe, unchecked.
        flags: The flags for its fields.

    Returns:
        The recipe, and the other flags.

    Raises:
        RecipeError: The text of a flag is not YAML.
    """
    graph = below(values, "graph")
    nodes = dict(below(graph, "nodes"))
    left = []
    for flag, text in flags:
        node, edge = (re.fullmatch(each, flag) for each in (_NODE, _EDGE))
        name = _called(node or edge, nodes)
        if node and name not in nodes and text.startswith("{"):
            nodes[name] = read_mapping(flag, text)
        elif node and name in nodes and text == "null":
            del nodes[name]
            nodes = {each: _without_edge(nodes[each], name) for each in nodes}
        elif edge and name in nodes and text == "null":
            nodes[name] = _without_edge(nodes[name], edge[2])
        else:
            left.append((flag, text))
    return {**values, "graph": {**graph, "nodes": nodes}} if graph else values, left


_NODE = r"graph\.nodes\.([^.]+)"
_EDGE = r"graph\.nodes\.([^.]+)\.learns_from\.([^.]+)"


def _ends(key: str) -> tuple[str, str]:
    """Return an edge's key, `source` or `source/tag`, and its source."""
    return key, key.partition("/")[0]


def _called(found: re.Match[str] | None, names: Iterable[str]) -> str:
    """Return the name that a flag means; flags have _ for each -."""
    said = found[1] if found else ""
    return next((name for name in names if name.replace("-", "_") == said), said)


def _without_edge(node: Any, key: str) -> Any:
    """Return a node without an edge, or without all edges from a source."""
    learns_from = below(node, "learns_from")
    kept = {
        each: edge
        for each, edge in learns_from.items()
        if key.replace("-", "_") not in _ends(each.replace("-", "_"))
    }
    return {**node, "learns_from": kept} if kept != learns_from else node
