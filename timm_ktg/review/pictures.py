"""Graphs of studies and runs as pictures, which any machine can draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..recipe.graph_config import GraphConfig
from ..recipe.node_config import KINDS, EdgeConfig, from_word, kind_of


def title(node: Mapping[str, Any]) -> str:
    """Return what a node of an unchecked graph is, in a word or two."""
    return KINDS[kind_of(node)].model_construct(**node).title


def picture(section: Mapping[str, Any]) -> str:
    """Return the section `graph` of a recipe as a picture, an `<svg>` element.

    The section is taken unchecked, because its gates and files may be on another machine.
    """
    from ..draw.picture import svg_of

    nodes = {}
    for name, node in section["nodes"].items():
        learns_from = {
            source: EdgeConfig.model_construct(**from_word(edge))
            for source, edge in node.get("learns_from", {}).items()
        }
        own = {"learns_from": learns_from} if learns_from else {}
        nodes[name] = KINDS[kind_of(node)].model_construct(**{**node, **own})
    return svg_of(GraphConfig.model_construct(**{**section, "nodes": nodes}))
