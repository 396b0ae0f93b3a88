"""A graph as a picture, in a file or as text."""

from __future__ import annotations

from pathlib import Path

from ..errors import RecipeError
from ..recipe.graph_config import GraphConfig
from ..records.files import replace_whole
from .config import Drawable, config_of
from .mermaid import mermaid
from .paint import paint, rendered
from .scene import Results, scene_of
from .svg import inlined

ENDINGS = (".svg", ".png", ".md")


def draw_graph(graph: Drawable, path: Path | str, results: Results | None = None) -> None:
    """Write the picture of a graph.

    Edges that are cut off are not drawn. Nodes that cannot influence the target are pale and marked
    as left out.

    Args:
        graph: A graph built by hand, or a recipe: itself, its path, or its bundled name.
        path: The file; its suffix sets the format: .svg, .png, or .md for Mermaid.
        results: The results of a run of the graph.

    Raises:
        RecipeError: The suffix is unknown, the file cannot be written, or there is no such recipe.
    """
    graph, path = config_of(graph), Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise RecipeError([f"{path}: should end in {', '.join(ENDINGS)}. Found `{ending}`."])
    if not path.parent.is_dir():
        raise RecipeError([f"{path}: should be in a directory that exists. Found none."])
    if ending == ".md":
        content = f"```mermaid\n{mermaid_of(graph, results)}```\n".encode()
    elif ending == ".svg":
        content = svg_of(graph, results).encode()
    else:
        content = rendered(paint(scene_of(graph, results)), "png")
    try:
        with replace_whole(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise RecipeError([f"{path}: cannot be written: {error.strerror}."]) from error


def svg_of(graph: GraphConfig, results: Results | None = None) -> str:
    """Return the picture of a graph as an `<svg>` element with a white background.

    Its ids start with a hash of the picture, so a page can hold several.

    Args:
        graph: The graph.
        results: The results of a run of the graph.
    """
    svg = rendered(paint(scene_of(graph, results)), "svg").decode()
    return inlined(svg, f"Knowledge transfer graph, target {graph.target}")


def mermaid_of(graph: GraphConfig, results: Results | None = None) -> str:
    """Return a graph as a Mermaid flowchart.

    Args:
        graph: The graph.
        results: The results of a run of the graph.
    """
    return mermaid(scene_of(graph, results))
