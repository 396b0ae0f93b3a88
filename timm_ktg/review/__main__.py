"""Look at what was trained: `compare RUN RUN ...`, `report STUDY|RUN ...`, or `wandb STUDY`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from ..terminal import Parser, fail
from .compare import show_compare


def main(argv: Sequence[str] | None = None) -> int:
    """Show what is asked for.

    Args:
        argv: The arguments; None: those of the command line.

    Returns:
        The exit code: 0, or 2 if what was asked for is wrong.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except RecipeError as error:
        return fail(error.problems, 2)
    return 0


def _parser() -> ArgumentParser:
    parser = Parser(prog="python -m timm_ktg.review", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser("compare", help="several runs in one table")
    compare.add_argument("runs", nargs="+", type=Path, help="directories of runs, or of seeds")
    compare.add_argument(
        "--node", help="node to compare, or all-networks; by default each run's target"
    )
    compare.set_defaults(run=lambda given: show_compare(given.runs, given.node))
    report = commands.add_parser("report", help="a search, or runs, as one HTML page")
    report.add_argument(
        "paths", nargs="+", type=Path, metavar="STUDY|RUN",
        help="directory of a search, or directories of runs, or of seeds",
    )  # fmt: skip
    report.add_argument(
        "-o", "--output", type=Path, help="the page; by default report.html in the first directory"
    )
    report.set_defaults(run=_report)
    view = commands.add_parser(
        "wandb", help="a view of a search in Weights & Biases, and its sweep"
    )
    view.add_argument("path", type=Path, metavar="STUDY", help="directory of a search")
    view.set_defaults(run=_wandb)
    for each in (report, view):
        each.add_argument("--storage", help="where the study is kept, such as postgresql://...")
        each.add_argument("--study", help="name of the study, where several are kept")
    return parser


def _report(arguments: Namespace) -> None:
    from .report import write_report

    path = write_report(arguments.paths, arguments.output, arguments.storage, arguments.study)
    print(f"report     {path}")


def _wandb(arguments: Namespace) -> None:
    from .wandb_view import show_wandb

    for what, where in show_wandb(arguments.path, arguments.storage, arguments.study):
        print(f"{what:<10} {where}")


if __name__ == "__main__":
    sys.exit(main())
