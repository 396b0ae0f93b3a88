"""A graph as Mermaid text, which GitHub renders."""

from __future__ import annotations

from collections.abc import Iterator

from ..graph.topology import LABEL
from .scene import Scene, SceneNode

_LABEL = "label_"  # not a node's id, because those have a prefix
_CLASSES = {
    "target": ("target", "fill:#FFE7A8,stroke:#C77700,stroke-width:4px,color:#1B2430"),
    "frozen": ("frozen", "fill:#E8F1FA,stroke:#5A6472,stroke-dasharray:6 4,color:#1B2430"),
    "ensemble": ("ensemble", "fill:#F1ECFA,stroke:#7A5FB0,color:#1B2430"),
    "slow copy": ("slow_copy", "fill:#EAF6F1,stroke:#2F8266,stroke-dasharray:2 3,color:#1B2430"),
    "left out": ("left_out", "fill:#FAFBFC,stroke:#CDD3DA,color:#8A929C"),
}


def mermaid(scene: Scene) -> str:
    """Return a scene as a Mermaid flowchart, without the fence.

    The members of an ensemble are joined to it by lines, because a Mermaid subgraph would tear a
    node that belongs to two ensembles away from one of them.

    Args:
        scene: The scene to draw.
    """
    return "\n".join(_lines(scene)) + "\n"


def _lines(scene: Scene) -> Iterator[str]:
    yield "flowchart LR"
    if any(edge.source == LABEL for edge in scene.edges):
        yield f'  {_LABEL}(["label"])'
    for node in scene.nodes:
        kind = f":::{_CLASSES[node.role][0]}" if node.role else ""
        yield f'  {_id(node.name)}["{_described(node)}"]{kind}'
    for edge in scene.edges:
        word = _escaped(edge.word)
        yield f'  {_id(edge.source)} -- "{word}" --> {_id(edge.destination)}'
    members = [(name, each) for each, names in scene.ensembles.items() for name in names]
    yield from (f"  {_id(name)} --- {_id(ensemble)}" for name, ensemble in members)
    yield from (f"  {_id(network)} -.-> {_id(copy)}" for network, copy in scene.copies)
    for index, edge in enumerate(scene.edges):
        faded = ",opacity:0.4" if edge.left_out else ""
        colors = f"stroke:{edge.color},color:{edge.color}"
        yield f"  linkStyle {index} {colors},stroke-width:{edge.width:.1f}px{faded}"
    for kind, style in _CLASSES.values():
        yield f"  classDef {kind} {style}"


def _id(name: str) -> str:
    # With a prefix, because `end` and other names are Mermaid keywords.
    return _LABEL if name == LABEL else f"n_{name}"


def _described(node: SceneNode) -> str:
    role = f" ({node.role})" if node.role else ""
    parts = [f"<b>{node.name}</b>{role}", _escaped(node.model), node.accuracy]
    return "<br/>".join(part for part in parts if part)


def _escaped(text: str) -> str:
    """Escape quotes and HTML in a text."""
    codes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;"}
    return "".join(codes.get(letter, letter) for letter in text)
