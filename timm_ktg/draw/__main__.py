"""A graph as a picture: `python -m timm_ktg.draw RECIPE -o graph.svg`, or .png, or .md."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..recipe.graph_config import GraphConfig
from ..recipe.recipe import find_recipe
from ..records.metrics import ALL_NETWORKS
from ..records.run_directory import RunDirectory
from ..terminal import fail
from .picture import draw_graph
from .reading import load_graph, results_of
from .scene import Results


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a graph.

    Args:
        argv: The arguments; None: the command line's.

    Returns:
        The exit code: 0, or 2 if the arguments are wrong.
    """
    parser = ArgumentParser(prog="python -m timm_ktg.draw", description=__doc__)
    parser.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        help="path of a recipe, name of a bundled one, or directory of a run (default: digits)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=".svg, .png or .md")
    parser.add_argument("--run", type=Path, help="directory of a run whose results to show")
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
    path = find_recipe(recipe)
    if path == RunDirectory(Path(recipe)).recipe:
        run = run or Path(recipe)
    graph = load_graph(path)
    results = results_of(run) if run else None
    if results:
        _check_same_graph(graph, results, f"run: {run}")
    draw_graph(graph, output, results)


def _check_same_graph(graph: GraphConfig, results: Results, where: str) -> None:
    """Raise RecipeError if the run has a different graph."""
    edges = {link.name for link in graph.edges}
    nodes = {*graph.nodes, ALL_NETWORKS}
    others = [*(results.top1.keys() - nodes), *(results.weights.keys() - edges)]
    if others:
        found = ", ".join(sorted(others))
        raise RecipeError([f"{where}: should be a run of this graph. Found another's: {found}."])


if __name__ == "__main__":
    sys.exit(main())
