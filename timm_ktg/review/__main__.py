"""Look at what was trained: `python -m timm_ktg.review compare RUN RUN ...`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..terminal import fail
from .compare import show_compare


def main(argv: Sequence[str] | None = None) -> int:
    """Show what is asked for.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, or 2 if what was asked for is wrong.
    """
    parser = ArgumentParser(prog="python -m timm_ktg.review", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="several runs in one table")
    compare.add_argument("runs", nargs="+", type=Path, help="directories of runs, or of seeds")
    compare.add_argument("--node", help="node to compare; by default each run's target")
    arguments = parser.parse_args(argv)
    try:
        show_compare(arguments.runs, arguments.node)
    except RecipeError as error:
        return fail(error.problems, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
