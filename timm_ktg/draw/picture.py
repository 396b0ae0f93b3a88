"""A graph as a picture: `python -m timm_ktg.draw RECIPE -o graph.svg`, or .png, or .md."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..recipe.graph_config import GraphConfig
from ..recipe.recipe import find_recipe
from ..records.files import replace_whole
from ..terminal import fail
from .mermaid import mermaid
from .paint import paint, rendered
from .reading import load_graph, results_of
from .scene import Results, scene_of
from .svg import inlined

__all__ = ["Results", "draw_graph", "main", "mermaid_of", "results_of", "svg_of"]

ENDINGS = (".svg", ".png", ".md")


def draw_graph(graph: GraphConfig, path: Path, results: Results | None = None) -> None:
    """Write a graph's picture.

    Edges that are cut off are not drawn; nodes that cannot influence the target are drawn pale and
    said to be left out.

    Args:
        graph: The graph.
        path: The file; its ending decides what it is: .svg, .png, or .md for Mermaid.
        results: What a run of the graph measured.

    Raises:
        RecipeError: The ending is another one, or the file cannot be written.
    """
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
    """Return a graph's picture as an `<svg>` element, on a white ground of its own.

    Its ids begin with a hash of what it shows, so that a page may hold several.

    Args:
        graph: The graph.
        results: What a run of it measured.
    """
    svg = rendered(paint(scene_of(graph, results)), "svg").decode()
    return inlined(svg, f"Knowledge transfer graph, target {graph.target}")


def mermaid_of(graph: GraphConfig, results: Results | None = None) -> str:
    """Return a graph as a Mermaid flowchart.

    Args:
        graph: The graph.
        results: What a run of it measured.
    """
    return mermaid(scene_of(graph, results))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what is asked for.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, or 2 if what was asked for is wrong.
    """
    parser = ArgumentParser(prog="python -m timm_ktg.draw", description=__doc__)
    parser.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        help="path of a recipe, name of a bundled one, or directory of a run; by default digits",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=".svg, .png or .md")
    parser.add_argument("--run", type=Path, help="directory of a run, whose results are shown")
    arguments = parser.parse_args(argv)
    try:
        _draw(arguments.recipe, arguments.output, arguments.run)
    except RecipeError as error:
        return fail(error.problems, 2)
    print(f"Drawn: {arguments.output}")
    return 0


def _draw(recipe: str, output: Path | None, run: Path | None) -> None:
    if output is None:
        raise RecipeError(["output: should be a file, as in -o graph.svg. Found none."])
    if Path(recipe).is_dir():
        run = run or Path(recipe)
        recipe = str(Path(recipe) / "recipe.yaml")
    graph = load_graph(find_recipe(recipe))
    results = results_of(run) if run else None
    if results:
        _check_same_graph(graph, results, f"run: {run}")
    draw_graph(graph, output, results)


def _check_same_graph(graph: GraphConfig, results: Results, where: str) -> None:
    """Raise RecipeError if a run is of another graph."""
    edges = {link.name for link in graph.edges}
    others = [name for name in results.top1 if name not in graph.nodes]
    others += results.passed.keys() - edges
    if others:
        found = ", ".join(sorted(others))
        raise RecipeError([f"{where}: should be a run of this graph. Found another's: {found}."])
